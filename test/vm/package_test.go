package vm

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// Versions of the package that the tests install over each other.
const (
	oldVersion = "1.0.0"
	newVersion = "1.1.0~rc.1" // after 1.0.0, and spelled as the build script does for a tag v1.1.0-rc.1
)

// buildPackages builds both versions for this computer's architecture and returns the files of one kind ("deb", "rpm"), by version.
func buildPackages(t *testing.T, kind string) map[string]string {
	t.Helper()
	Require(t)
	files := map[string]string{}
	for _, version := range []string{oldVersion, newVersion} {
		dir := t.TempDir()
		cmd := exec.Command("sh", "../../packaging/build.sh", runtime.GOARCH)
		cmd.Env = append(cmd.Environ(), "VERSION="+version, "DIST="+dir, "KINDS="+kind)
		must(t, cmd)
		found, err := filepath.Glob(filepath.Join(dir, "*."+kind))
		if err != nil || len(found) != 1 {
			t.Fatalf("packaging/build.sh left %q of kind %s, want one file (%v)", found, kind, err)
		}
		files[version] = found[0]
	}
	return files
}

// tree lists the machine's files but for what changes by itself while it runs, and what dpkg and useradd note in places of their own.
func (m *Machine) tree() []string {
	m.t.Helper()
	return strings.Split(m.Sh(`find / -xdev \( -path /proc -o -path /sys -o -path /run -o -path /tmp -o -path /var/tmp -o -path /var/log -o -path /var/cache \
		-o -path /var/lib/dpkg -o -path /var/lib/systemd -o -path /etc/systemd/network \) -prune \
		-o \( -name 'passwd*' -o -name 'group*' -o -name 'shadow*' -o -name 'gshadow*' -o -name '.pwd.lock' \) -path '/etc/*' -prune -o -printf '%M %u:%g %p %l\n' | sort -k3`), "\n")
}

// differences lists what one list has and the other has not.
func differences(before, after []string) string {
	var b strings.Builder
	for _, line := range after {
		if !slices.Contains(before, line) {
			fmt.Fprintf(&b, "+ %s\n", line)
		}
	}
	for _, line := range before {
		if !slices.Contains(after, line) {
			fmt.Fprintf(&b, "- %s\n", line)
		}
	}
	return b.String()
}

// install hands a package to dpkg, as an unattended upgrade does: it keeps settings that were edited.
func (m *Machine) install(file string) {
	m.t.Helper()
	m.CopyIn(file, "/root/wingman.deb", 0o644)
	m.Run("dpkg", "--force-confold", "--install", "/root/wingman.deb")
}

// mustBeQuiet fails for every complaint in the journal by or about Wingman's units since the boot.
func (m *Machine) mustBeQuiet() {
	m.t.Helper()
	for _, e := range m.Journal("") {
		if e.Priority <= 3 && strings.Contains(e.Unit+e.Message, "wingman") {
			m.t.Errorf("the journal complains: %+v", e)
		}
	}
}

// A .deb from its first installation to its purge, each step followed by a look at what the machine has become.
func TestADebianPackageThroughItsLife(t *testing.T) {
	debs := buildPackages(t, "deb")
	m := newMeshWithout(t)
	m.Boot()
	m.Run("find", "/etc/systemd/system", "-type", "d", "-empty", "-delete") // deb-systemd-helper tidies these up
	before, bareRules := m.tree(), m.rules()
	enabled := func() string {
		out, _ := m.Try("systemctl", "is-enabled", "wingman.service", "wingman-rules.service")
		return strings.Join(strings.Fields(out), " ")
	}
	version := func() string { return strings.Fields(m.Run("wingman", "version"))[1] }

	m.install(debs[oldVersion])
	if got := enabled(); !strings.HasPrefix(got, "disabled disabled") {
		t.Errorf("after the first installation the units are %q, want them disabled: nothing is captured before the owner says so", got)
	}
	if out, _ := m.Try("systemctl", "is-active", "wingman.service", "wingman-proxy.service", "wingman-rules.service"); strings.Contains(out, "active\nactive") || strings.HasPrefix(out, "active") {
		t.Errorf("the first installation started units: %q", out)
	}
	if got := m.rules(); got != bareRules {
		t.Errorf("the first installation changed rules:\n%s", got)
	}
	m.Run("id", "istio-proxy")
	for _, look := range []string{"man --version >/dev/null 2>&1 || true; test -s /usr/share/man/man1/wingman-run.1.gz", "dpkg --verify wingman", "bash -n /usr/share/bash-completion/completions/wingman"} {
		m.Sh(look)
	}
	m.Run("wingman", "config", "check", "--help")

	m.settings() // an owner's edit of the conffile
	edited := m.Read(settingsFile)
	m.token()
	m.Run("systemctl", "enable", "--now", "wingman")
	m.entry("joined", serving)
	m.mustResolve("webapp.istioinaction.svc.cluster.local", "10.96.97.98")
	entry := m.istiod.Entries()[0]

	for _, step := range []struct{ name, version string }{{"upgrade", newVersion}, {"downgrade", oldVersion}, {"upgrade again", newVersion}} {
		load := startQueries(t, m.Machine, "127.0.0.53:53", lookUp("www.example.com."))
		pid, events := m.mainPID("wingman.service"), len(m.istiod.Events())
		m.install(debs[step.version])
		m.waitActive("wingman.service")
		if got := version(); !strings.HasPrefix(got, step.version) {
			t.Errorf("%s: the program is %s, want %s", step.name, got, step.version)
		}
		if m.mainPID("wingman.service") == pid {
			t.Errorf("%s: the agent was not restarted", step.name)
		}
		m.await("a stream of the new agent", func() bool { return len(m.istiod.Events()) > events && serving(m.istiod.Entries()[0]) })
		if sent, lost := load.end(); lost > 0 {
			t.Errorf("%s: %d of %d queries were lost, want none", step.name, lost, sent)
		}
		if got := m.Read(settingsFile); got != edited {
			t.Errorf("%s: the owner's settings became\n%s", step.name, got)
		}
		if all := m.istiod.Entries(); len(all) != 1 || all[0].Name != entry.Name {
			t.Errorf("%s: entries %+v, want the one from before", step.name, all)
		}
	}

	// dpkg is killed between its two halves, and every script runs again.
	m.CopyIn(debs[oldVersion], "/root/wingman.deb", 0o644)
	m.Run("dpkg", "--unpack", "/root/wingman.deb")
	m.Run("systemctl", "restart", "wingman")
	m.Run("dpkg", "--configure", "-a")
	m.Run("/var/lib/dpkg/info/wingman.postinst", "configure", oldVersion)
	m.Run("/var/lib/dpkg/info/wingman.postinst", "abort-upgrade", newVersion)
	m.waitActive("wingman.service")
	m.entry("serving after the interruption", serving)

	m.Run("dpkg", "--remove", "wingman")
	m.mustBeGone(bareRules, entry.Namespace, entry.Name)
	if got := m.Read(settingsFile); got != edited {
		t.Errorf("a removal took the settings: %q", got)
	}
	m.Run("test", "-e", "/var/lib/wingman/joined.json")
	if got := enabled(); !strings.Contains(got, "masked") {
		t.Errorf("after the removal the units are %q, want them masked until they are back", got)
	}

	// Back again: settings, state and the owner's word still hold.
	m.install(debs[newVersion])
	if got := enabled(); got != "enabled enabled" {
		t.Errorf("installed again the units are %q, want them enabled as they were", got)
	}
	m.Run("systemctl", "start", "wingman")
	m.entry("back in the mesh", serving)

	m.Run("dpkg", "--purge", "wingman")
	m.mustBeGone(bareRules, entry.Namespace, entry.Name)
	m.Run("rm", "/root/wingman.deb")
	// The agent took over istioctl's root-cert.pem; the purge put it back.
	m.Run("chown", "root:root", "/etc/certs") // its owner stays, and so does what the owner owns
	if diff := differences(before, m.tree()); diff != "" {
		t.Errorf("a purge does not leave the machine as it was:\n%s", diff)
	}
	m.Run("id", "istio-proxy") // users stay: files of theirs may be anywhere
	if failed := m.Run("systemctl", "--failed", "--plain", "--no-legend"); failed != "" {
		t.Errorf("units failed:\n%s", failed)
	}
	m.mustBeQuiet()
}

// mustBeGone fails unless nothing of the agent is at work: units, rules, the entry; and the machine's own resolver answers.
func (m *mesh) mustBeGone(bareRules, namespace, entry string) {
	m.t.Helper()
	if out, _ := m.Try("pgrep", "-a", "wingman"); out != "" {
		m.t.Errorf("processes are left: %s", out)
	}
	if out := m.rules(); strings.Contains(out, "ISTIO") || strings.Contains(strings.ToLower(out), "wingman") {
		m.t.Errorf("rules are left:\n%s\nbefore there were\n%s", out, bareRules)
	}
	ctx, cancel := context.WithTimeout(m.t.Context(), time.Minute)
	defer cancel()
	if err := m.istiod.WaitNoEntry(ctx, namespace, entry); err != nil {
		m.t.Errorf("the entry is still there: %v", err)
	}
	m.mustResolve("www.example.com", "192.0.2.80")
}

// An .rpm in a root of its own, by the real rpm: its scriptlets run there without systemd, as in an image build.
func TestAnRPMPackageThroughItsLife(t *testing.T) {
	if _, err := exec.LookPath("rpm"); err != nil {
		t.Fatalf("rpm is needed: %v (test/setup/setup.sh vm installs it)", err)
	}
	rpms := buildPackages(t, "rpm")
	root := filepath.Join(t.TempDir(), "root")
	unpack(t, image(t), root)
	rpm := func(argv ...string) string {
		t.Helper()
		cmd := exec.Command("rpm", append([]string{"--root", root}, argv...)...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", cmd, err, out)
		}
		return string(out)
	}
	files := func() []string {
		t.Helper()
		out, err := exec.Command("find", root, "(", "-path", root+"/var/lib/rpm", "-o", "-path", root+"/var/log", "-o", "-path", root+"/var/cache", ")", "-prune",
			"-o", "(", "-name", "passwd*", "-o", "-name", "group*", "-o", "-name", "shadow*", "-o", "-name", "gshadow*", "-o", "-name", ".pwd.lock", ")", "-path", root+"/etc/*", "-prune",
			"-o", "-printf", "%M %U:%G %P %l\n").Output()
		if err != nil {
			t.Fatal(err)
		}
		return strings.Split(string(out), "\n")
	}
	must(t, exec.Command("rpm", "--root", root, "--initdb"))
	// Folders that the package "filesystem" owns where rpm is at home.
	for _, dir := range []string{"doc", "licenses", "man/man1", "man/man5", "zsh/site-functions", "fish/vendor_completions.d", "bash-completion/completions"} {
		if err := os.MkdirAll(filepath.Join(root, "usr/share", dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	before := files()

	rpm("--install", "--nodeps", rpms[oldVersion])
	passwd, err := os.ReadFile(filepath.Join(root, "etc/passwd"))
	if err != nil || !strings.Contains(string(passwd), "istio-proxy") {
		t.Errorf("the scriptlet made no user istio-proxy (%v)", err)
	}
	if links, _ := filepath.Glob(filepath.Join(root, "etc/systemd/system/*.wants/wingman*")); len(links) > 0 {
		t.Errorf("the installation enabled %q", links)
	}
	if out := rpm("--verify", "--nodeps", "wingman"); out != "" {
		t.Errorf("rpm --verify says:\n%s", out)
	}
	settings := filepath.Join(root, "etc/wingman/wingman.yaml")
	if err := os.WriteFile(settings, []byte("log: {level: debug}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	rpm("--upgrade", "--nodeps", rpms[newVersion])
	rpm("--upgrade", "--nodeps", "--oldpackage", rpms[oldVersion])
	rpm("--upgrade", "--nodeps", rpms[newVersion])
	if got, err := os.ReadFile(settings); err != nil || string(got) != "log: {level: debug}\n" {
		t.Errorf("an upgrade changed the owner's settings to %q (%v)", got, err)
	}
	if got := rpm("--query", "--queryformat", "%{VERSION}", "wingman"); got != newVersion {
		t.Errorf("version %s is installed, want %s", got, newVersion)
	}
	rpm("--erase", "--nodeps", "wingman")
	// rpm keeps settings that were edited beside their place.
	if err := os.Remove(settings + ".rpmsave"); err != nil {
		t.Errorf("the owner's settings were not kept: %v", err)
	}
	os.Remove(filepath.Dir(settings))
	if diff := differences(before, files()); diff != "" {
		t.Errorf("after the removal:\n%s", diff)
	}
}
