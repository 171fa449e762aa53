package automation

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"wingman/test/controlplane"
)

// requirements are what Ansible is run and judged by, from PyPI.
const requirements = "ansible-core==2.19.14\nansible-lint==26.10.1\n"

// ansibleTools returns the folder of Ansible's programs: a Python environment that is made once and kept in the cache.
func ansibleTools(t *testing.T) string {
	t.Helper()
	cache := os.Getenv("WINGMAN_CACHE")
	if cache == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		cache = filepath.Join(user, "wingman")
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		t.Fatal(err)
	}
	env := filepath.Join(cache, fmt.Sprintf("ansible-%x", sha256.Sum256([]byte(requirements)))[:len("ansible-")+12])
	lock, err := os.OpenFile(env+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	done := filepath.Join(env, "complete")
	if _, err := os.Stat(done); err == nil {
		return filepath.Join(env, "bin")
	}
	t.Logf("making %s, once", env)
	run(t, exec.Command(tool(t, "python3"), "-m", "venv", "--clear", env)) // its programs name their place: it cannot be made elsewhere and moved
	run(t, exec.Command(filepath.Join(env, "bin/pip"), "install", "--quiet", "--requirement", write(t, filepath.Join(t.TempDir(), "requirements.txt"), requirements)))
	write(t, done, "")
	return filepath.Join(env, "bin")
}

// A controller is where Ansible is run: its inventory and the settings that hold for all machines.
type controller struct {
	*fleet
	tools, dir string
	sockets    string // ssh's
	settings   string // vars file
}

const ansibleFolder = "../../packaging/ansible"

func newController(f *fleet) *controller {
	f.t.Helper()
	c := &controller{fleet: f, tools: ansibleTools(f.t), dir: f.t.TempDir()}
	var err error
	if c.sockets, err = os.MkdirTemp("", "ssh-"); err != nil { // short, as names of sockets must be
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() {
		open, _ := filepath.Glob(filepath.Join(c.sockets, "*"))
		for _, socket := range open {
			exec.Command("ssh", "-F", "none", "-o", "ControlPath="+socket, "-O", "exit", "any").Run()
		}
		os.RemoveAll(c.sockets)
	})
	inventory := "[wingman]\n"
	for i, name := range sorted(keys(f.machines)) {
		inventory += fmt.Sprintf("%s ansible_host=10.99.0.%d\n", name, 2+i)
		f.bundle(filepath.Join(c.dir, "bundles", name))
	}
	inventory += "[wingman:vars]\nansible_user=root\nansible_python_interpreter=/usr/bin/python3\nansible_ssh_private_key_file=" + f.key + "\n" +
		"ansible_ssh_common_args=-F none -o StrictHostKeyChecking=yes -o UserKnownHostsFile=" + f.hosts + "\n" +
		"wingman_bundles=" + filepath.Join(c.dir, "bundles") + "\n"
	write(f.t, filepath.Join(c.dir, "hosts.ini"), inventory)
	return c
}

func keys[V any](m map[string]V) (keys []string) {
	for key := range m {
		keys = append(keys, key)
	}
	return keys
}

// A recap is what Ansible counted for one machine.
type recap struct{ ok, changed, unreachable, failed int }

var recapLine = regexp.MustCompile(`(?m)^(\S+)\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)`)

// play runs a playbook and returns what it said and counted; what fails is in the recap.
func (c *controller) play(playbook string, args ...string) (string, map[string]recap) {
	c.t.Helper()
	cmd := exec.Command(filepath.Join(c.tools, "ansible-playbook"), append([]string{"-i", filepath.Join(c.dir, "hosts.ini"), "-e", "@" + c.settings, "playbooks/" + playbook}, args...)...)
	cmd.Dir = ansibleFolder
	cmd.Env = []string{"PATH=" + c.tools + ":" + os.Getenv("PATH"), "HOME=" + c.dir, "LC_ALL=C.UTF-8", "ANSIBLE_HOME=" + c.dir, "ANSIBLE_NOCOLOR=1", "ANSIBLE_NOCOWS=1",
		"ANSIBLE_SSH_CONTROL_PATH_DIR=" + c.sockets, "ANSIBLE_PIPELINING=1", "PYTHONDONTWRITEBYTECODE=1"}
	began := time.Now()
	out, err := c.output(cmd)
	c.t.Logf("%s %q took %s", playbook, args, time.Since(began).Round(100*time.Millisecond))
	counts := map[string]recap{}
	for _, m := range recapLine.FindAllStringSubmatch(out, -1) {
		n := func(i int) int { n, _ := strconv.Atoi(m[i]); return n }
		counts[m[1]] = recap{n(2), n(3), n(4), n(5)}
	}
	if err != nil && len(counts) == 0 {
		c.t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	return out, counts
}

// mustPlay is play for a run in which nothing may fail.
func (c *controller) mustPlay(playbook string, args ...string) (string, map[string]recap) {
	c.t.Helper()
	out, counts := c.play(playbook, args...)
	if len(counts) == 0 {
		c.t.Fatalf("%s did nothing:\n%s", playbook, out)
	}
	for name, n := range counts {
		if n.failed+n.unreachable > 0 {
			c.t.Fatalf("%s: %s failed:\n%s", playbook, name, out)
		}
	}
	return out, counts
}

// set writes the settings of the role as YAML.
func (c *controller) set(vars string) {
	c.t.Helper()
	c.settings = write(c.t, filepath.Join(c.dir, "settings.yml"), vars)
}

// variables are the role's for a package and settings of the agent.
func (c *controller) variables(pkg, more string) string {
	return fmt.Sprintf("wingman_package_files: [%s]\nwingman_ready_retries: 10\nwingman_ready_delay: 1\nwingman_settings:\n  istiod: {address: %q, san: %s}\n%s",
		pkg, istiodAddress, c.istiod.ServerName(), more)
}

func TestAnsibleLint(t *testing.T) {
	tool(t, "git")
	tools := ansibleTools(t)
	cmd := exec.Command(filepath.Join(tools, "ansible-lint"), "--nocolor", "--offline", "--profile", "production", "--strict")
	cmd.Dir = ansibleFolder
	cmd.Env = append(cmd.Environ(), "PATH="+tools+":"+os.Getenv("PATH"), "HOME="+t.TempDir())
	t.Log(run(t, cmd))
}

// Paths that are not absolute are refused before anything is looked for, on no machine.
func TestAnsibleRefusesRelativePaths(t *testing.T) {
	vars := write(t, filepath.Join(t.TempDir(), "vars.yml"), "wingman_package_files: [dist/wingman.deb]\nwingman_repository_key: ~/wingman.asc\nwingman_bundles: bundles\n")
	cmd := exec.Command(filepath.Join(ansibleTools(t), "ansible-playbook"), "-i", "nowhere.invalid,", "-e", "@"+vars, "/dev/stdin")
	cmd.Dir = ansibleFolder
	cmd.Env = append(cmd.Environ(), "LC_ALL=C.UTF-8", "HOME="+t.TempDir(), "ANSIBLE_NOCOLOR=1")
	cmd.Stdin = strings.NewReader("[{hosts: all, gather_facts: false, roles: [wingman]}]")
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "not an absolute path: dist/wingman.deb, ~/wingman.asc, bundles/nowhere.invalid") {
		t.Errorf("relative paths: %v\n%s", err, out)
	}
}

// A playbook that finds no machine to do its work on fails, and says how machines are named. The one that it finds is nobody, and so cannot be reached.
func TestAnsibleWithoutAMachineFails(t *testing.T) {
	inventory := write(t, filepath.Join(t.TempDir(), "hosts.ini"), "[vms]\nweb1 ansible_connection=local ansible_python_interpreter=/nowhere/python\n")
	for _, playbook := range []string{"site.yml", "upgrade.yml", "leave.yml"} {
		for _, tt := range []struct{ args, want string }{
			{"", `the inventory has no machine for "wingman"`},
			{"wingman_hosts=nobody", `the inventory has no machine for "nobody"`},
			{"wingman_hosts=vms", "fatal: [web1]"},
		} {
			cmd := exec.Command(filepath.Join(ansibleTools(t), "ansible-playbook"), "-i", inventory, "-e", tt.args, "playbooks/"+playbook)
			cmd.Dir = ansibleFolder
			cmd.Env = append(cmd.Environ(), "LC_ALL=C.UTF-8", "HOME="+t.TempDir(), "ANSIBLE_NOCOLOR=1")
			if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), tt.want) {
				t.Errorf("%s %s: %v, want %q:\n%s", playbook, tt.args, err, tt.want, out)
			}
		}
	}
}

// A degraded machine is healthy only to who says so. The program's place is taken by one that says nothing else.
func TestAnsibleAcceptsDegraded(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(write(t, filepath.Join(dir, "wingman"), "#!/bin/sh\nexit 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, accept := range []bool{false, true} {
		cmd := exec.Command(filepath.Join(ansibleTools(t), "ansible-playbook"), "-i", "here,", "-e", fmt.Sprintf("wingman_accept_degraded=%t wingman_ready_retries=1 wingman_ready_delay=0", accept), "/dev/stdin")
		cmd.Dir = ansibleFolder
		cmd.Env = append(cmd.Environ(), "LC_ALL=C.UTF-8", "HOME="+dir, "ANSIBLE_NOCOLOR=1", "PATH="+dir+":"+os.Getenv("PATH"))
		cmd.Stdin = strings.NewReader(`[{hosts: all, gather_facts: false, connection: local, vars: {ansible_python_interpreter: "{{ ansible_playbook_python }}"},
			tasks: [{ansible.builtin.include_role: {name: wingman, tasks_from: healthy.yml}}]}]`)
		if out, err := cmd.CombinedOutput(); (err == nil) != accept || !strings.Contains(string(out), "Wait until the machine is healthy") {
			t.Errorf("wingman_accept_degraded=%t: %v\n%s", accept, err, out)
		}
	}
}

// The role from machines that have nothing to machines that have left, in the hands of real Ansible over real ssh.
func TestAnsible(t *testing.T) {
	c := newController(newFleet(t, "web1", "web2"))
	c.set(c.variables(packageOf(t, oldVersion, "deb"), ""))
	version := func(name string) string {
		return c.machines[name].Run("dpkg-query", "--show", "--showformat=${source:Upstream-Version}", "wingman")
	}
	pid := func(name string) string {
		return c.machines[name].Run("systemctl", "show", "--value", "--property=MainPID", "wingman")
	}
	secrets := c.tokens()

	out, counts := c.mustPlay("site.yml", "--check", "--diff", "--limit", "web1")
	c.mustNotLeak(out, secrets)
	if n := counts["web1"]; n.changed == 0 {
		t.Errorf("--check of a machine that has nothing announces no change:\n%s", out)
	}
	for name, m := range c.machines {
		if left, _ := m.Try("ls", "-d", "/usr/bin/wingman", "/var/lib/wingman-ansible", "/etc/wingman"); left != "" {
			t.Errorf("--check left %q on %s", left, name)
		}
	}

	out, _ = c.mustPlay("site.yml", "--diff")
	c.mustNotLeak(out, secrets)
	c.serving(2)
	for name, m := range c.machines {
		if got := m.Sh("systemctl is-enabled wingman; systemctl is-active wingman; stat -c '%a %U' /run/secrets/tokens/istio-token; ls -d /tmp/wingman.* 2>/dev/null || :"); got != "enabled\nactive\n600 istio-proxy" {
			t.Errorf("%s after the join: %q", name, got)
		}
	}

	// Tokens are good for the join alone: one is gone, the other another one.
	if err := os.Remove(filepath.Join(c.dir, "bundles/web1/istio-token")); err != nil {
		t.Fatal(err)
	}
	c.bundle(filepath.Join(c.dir, "bundles/web2"))
	secrets = append(secrets, c.tokens()...)
	pids := pid("web1") + pid("web2")
	for _, args := range [][]string{{"--check", "--diff", "--limit", "web1"}, {"--diff"}} {
		out, counts := c.mustPlay("site.yml", args...)
		c.mustNotLeak(out, secrets)
		for name, n := range counts {
			if n.changed > 0 {
				t.Errorf("%q again changes %d things on %s, want none:\n%s", args, n.changed, name, out)
			}
		}
	}
	if got := pid("web1") + pid("web2"); got != pids {
		t.Error("an agent was restarted for nothing")
	}

	t.Run("settings", func(t *testing.T) { c.changeSettings(t, pid) })
	t.Run("upgrade", func(t *testing.T) { c.upgrade(t, version, pid) })
	t.Run("leave", c.leave)
}

// tokens are the secrets that the controller has now.
func (c *controller) tokens() (tokens []string) {
	c.t.Helper()
	found, err := filepath.Glob(filepath.Join(c.dir, "bundles/*/istio-token"))
	if err != nil || len(found) == 0 {
		c.t.Fatalf("no tokens: %v", err)
	}
	for _, file := range found {
		token, err := os.ReadFile(file)
		if err != nil {
			c.t.Fatal(err)
		}
		tokens = append(tokens, string(token))
	}
	return tokens
}

func (c *controller) mustNotLeak(out string, secrets []string) {
	c.t.Helper()
	for _, secret := range secrets {
		parts := strings.Split(secret, ".")
		if strings.Contains(out, parts[len(parts)-1]) { // its signature
			c.t.Errorf("a token is printed:\n%s", out)
		}
	}
}

// Wrong settings replace nothing; right ones take effect by a reload where that is enough, and by a restart of the agent where it is not.
func (c *controller) changeSettings(t *testing.T, pid func(string) string) {
	deb := packageOf(t, oldVersion, "deb")
	m := c.machines["web1"]
	before, pids := m.Read("/etc/wingman/wingman.yaml"), pid("web1")

	c.set(c.variables(deb, "  dns: {lisen: \"127.0.0.1:15053\"}\n"))
	out, counts := c.play("site.yml", "--limit", "web1")
	if n := counts["web1"]; n.failed != 1 || !strings.Contains(out, "did you mean listen?") {
		t.Errorf("wrong settings: %+v, want one failure that says what is wrong:\n%s", n, out)
	}
	if got := m.Read("/etc/wingman/wingman.yaml"); got != before || pid("web1") != pids {
		t.Errorf("wrong settings restarted the agent or were put in place:\n%s", got)
	}

	c.set(c.variables(deb, "  log: {level: debug}\n"))
	c.mustPlay("site.yml", "--limit", "web1")
	if got := m.Sh("wingman config show | grep ^log.level; wingman status >/dev/null; echo $?"); !strings.Contains(got, "debug") || !strings.HasSuffix(got, "\n0") || pid("web1") != pids {
		t.Errorf("log.level by a reload: %q, pid %s and before %s", got, pid("web1"), pids)
	}

	c.set(c.variables(deb, "  log: {level: debug, format: json}\n"))
	load := ask(t, m)
	c.mustPlay("site.yml", "--limit", "web1")
	if sent, lost := load.end(); lost > 0 {
		t.Errorf("a restart for log.format lost %d of %d questions, want none", lost, sent)
	}
	if got := m.Sh("wingman status >/dev/null; echo $?"); got != "0" || pid("web1") == pids {
		t.Errorf("log.format by a restart: status %s, pid %s and before %s", got, pid("web1"), pids)
	}
	c.serving(2)
}

// A rolling upgrade stops at the first machine that does not become healthy, which peers send nothing then; the next one mends that, and loses nothing.
func (c *controller) upgrade(t *testing.T, version, pid func(string) string) {
	deb := packageOf(t, newVersion, "deb")
	c.set(c.variables(brokenPackage(t, deb), ""))
	begun := len(c.istiod.Events())
	out, counts := c.play("upgrade.yml", "-e", "wingman_ready_retries=2")
	if counts["web1"].failed != 1 || counts["web2"] != (recap{}) {
		t.Errorf("an upgrade that breaks the first machine: %+v, want one failure there and nothing else:\n%s", counts, out)
	}
	if got := version("web2"); got != oldVersion {
		t.Errorf("the second machine has version %s, want %s", got, oldVersion)
	}
	if told := c.told(begun); len(told) != 1 || told[0].Healthy {
		t.Errorf("the broken machine told %v, want that it is unhealthy and nothing after that", told)
	}

	// As if the machine had joined by itself or by hand: the role has no note of it, and the agent cannot be asked.
	c.machines["web1"].Run("rm", "/var/lib/wingman-ansible/joined")
	c.set(c.variables(deb, ""))
	begun = len(c.istiod.Events())
	load := ask(t, c.machines["web2"])
	c.mustPlay("upgrade.yml")
	if sent, lost := load.end(); lost > 0 {
		t.Errorf("the upgrade lost %d of %d questions, want none", lost, sent)
	}
	c.serving(2)
	for name, m := range c.machines {
		if got := version(name) + m.Sh("wingman status | grep -i drained || :"); got != newVersion {
			t.Errorf("%s after the upgrade: %q, want %s", name, got, newVersion)
		}
	}
	// One after the other: the second is not drained before the first is back.
	down, times := map[string]bool{}, 0
	for _, e := range c.told(begun) {
		down[e.Entry] = !e.Healthy
		if !e.Healthy {
			times++
		}
		if down["forum-services/forum-10.99.0.2-vm-network"] && down["forum-services/forum-10.99.0.3-vm-network"] {
			t.Errorf("both machines are out of load balancing at once: %+v", c.told(begun))
		}
	}
	if len(down) != 2 || times < 2 {
		t.Errorf("the control plane heard %+v, want both machines to be drained", c.told(begun))
	}

	_, counts = c.mustPlay("upgrade.yml", "--limit", "web1")
	for name, n := range counts {
		if n.changed > 0 {
			t.Errorf("a second upgrade changes %d things on %s, want none", n.changed, name)
		}
	}
	pids := pid("web1")
	begun = len(c.istiod.Events())
	c.mustPlay("upgrade.yml", "--limit", "web1", "-e", "wingman_restart=true")
	if told := c.told(begun); pid("web1") == pids || len(told) < 2 || told[0].Healthy || !told[len(told)-1].Healthy {
		t.Errorf("a restart of its own: pid %s, and before %s; told was %+v", pid("web1"), pids, told)
	}
}

// told are the health reports since an event.
func (c *controller) told(begun int) (told []controlplane.Event) {
	for _, e := range c.istiod.Events()[begun:] {
		if e.Kind == controlplane.HealthReported {
			told = append(told, e)
		}
	}
	return told
}

// brokenPackage is a package whose program does nothing but fail.
func brokenPackage(t *testing.T, deb string) string {
	t.Helper()
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	run(t, exec.Command("dpkg-deb", "--raw-extract", deb, tree))
	if err := os.WriteFile(filepath.Join(tree, "usr/bin/wingman"), []byte("#!/bin/sh\necho this build is broken >&2\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	control := filepath.Join(tree, "DEBIAN/control")
	content, err := os.ReadFile(control)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(control, []byte(strings.Replace(string(content), "Version: "+newVersion, "Version: "+oldVersion+".1", 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	broken := filepath.Join(dir, "wingman-broken.deb")
	run(t, exec.Command("dpkg-deb", "--build", "--root-owner-group", "-Znone", tree, broken))
	return broken
}

// leave takes the machines out of the mesh and the packages off them.
func (c *controller) leave(t *testing.T) {
	envoy, err := os.ReadFile(standIn(t, "wingman-envoy", "all"))
	if err != nil {
		t.Fatal(err)
	}
	c.machines["web1"].Write("/root/envoy.deb", string(envoy), 0o600)
	c.machines["web1"].Run("dpkg", "--install", "/root/envoy.deb")
	c.mustPlay("leave.yml", "-e", "wingman_purge=true")
	for name, m := range c.machines {
		if left := m.Sh("ls -d /usr/bin/wingman /etc/wingman /var/lib/wingman* /etc/certs/key.pem 2>/dev/null || :; iptables-save | grep -i istio || :"); left != "" {
			t.Errorf("left on %s: %q", name, left)
		}
		if left := m.Sh("dpkg-query --show 'wingman*' 2>/dev/null || :"); left != "" {
			t.Errorf("packages left on %s: %q", name, left)
		}
	}
}
