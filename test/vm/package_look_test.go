package vm

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"wingman/test/controlplane"
)

// packaged is a machine on which a package lives its life.
type packaged struct {
	*mesh
	packager
	at map[string]string // where the machine has the package of each version

	files    []string            // tree before the first installation
	accounts map[string][]string // lines of each file of users and groups, before
	bare     string              // rules before
	noise    map[string]bool     // what the journal complained of before
	looked   time.Time           // the last time: the journal was good until then

	settings string   // the settings file as the owner left it; empty before
	stays    []string // patterns of paths that docs/packaging.md says stay
	envoy    int      // process of Envoy, from the first time on that it was seen in this membership
}

// expected is what must hold after a step. The zero value is a machine that knows no package.
type expected struct {
	version    string // installed; empty: none
	unfinished string // dpkg's letters of a package that was installed half-way
	kept       bool   // an earlier version was removed: what it had left is still there
	enabled    string // what systemctl says of the units that can be enabled; empty: not-found
	member     bool   // agent and Envoy run, and all traffic goes by them
	waits      bool   // the agent is to run once the files are there to join with
	runs       string // version of the agent that runs, when it is another than version
	complaints string // pattern of errors in the journal that the step itself is the cause of
}

// Units of the package that are not for owners to enable, and those that run where the agent does.
var (
	staticUnits = []string{"wingman-proxy.service", "wingman-cleanup.service", "wingman-mesh-ready.service", "istio-mesh-ready.target", "wingman.path"}
	memberUnits = []string{"wingman.service", "wingman-proxy.service", "wingman-cleanup.service", "wingman.path"}
)

// newPackaged boots a machine that can join but has no Wingman yet, and notes what it is like.
func newPackaged(t *testing.T, release Release, name string, by packager) *packaged {
	t.Helper()
	versions := buildPackages(t, by.kind)
	p := &packaged{mesh: newMeshOf(t, release, name), packager: by, at: map[string]string{}, noise: map[string]bool{}, stays: documented(t)}
	p.CopyIn(Envoy(t), "/usr/local/bin/envoy", 0o755)
	for version, file := range versions {
		p.at[version] = "/root/wingman-" + version + "." + by.kind
		p.CopyIn(file, p.at[version], 0o644)
	}
	setResources(t, p.istiod)
	serveOther(t, p.segment)
	p.Boot()
	p.Sh(by.prepare)
	p.Run("find", "/etc/systemd/system", "-type", "d", "-empty", "-delete") // deb-systemd-helper tidies these up
	p.mustResolve("www.example.com", "192.0.2.80")
	p.files, p.accounts, p.bare = p.tree(), p.accountLines(), p.allRules()
	for _, e := range p.Journal("") {
		p.noise[e.Message] = true
	}
	p.looked = time.Now()
	return p
}

// sh runs one of the packager's lines.
func (p *packaged) sh(line string, args ...string) string {
	p.t.Helper()
	return strings.TrimSpace(p.Run(append([]string{"sh", "-ec", line, "sh"}, args...)...))
}

// put installs a version over whatever is there.
func (p *packaged) put(version string) { p.t.Helper(); p.sh(p.install, p.at[version]) }

// takeOut removes the package.
func (p *packaged) takeOut() { p.t.Helper(); p.sh(p.remove, "wingman") }

// tree lists the machine's files, each with mode, owner and where it leads, but for what changes while nobody does anything, what dpkg and useradd note in
// places of their own, and what the test itself puts there.
func (m *Machine) tree() []string {
	m.t.Helper()
	return strings.Split(m.Sh(`find / -xdev \( -path /proc -o -path /sys -o -path /tmp -o -path /var/tmp -o -path /var/log/journal -o -path '/var/lib/systemd/timers' -o -path /root -o -path /var/lib/istio/envoy/cluster.env \
		-o -path '/var/lib/systemd/random-seed' -o -path '/var/lib/systemd/timesync*' -o -path '/var/lib/dpkg/*-old' -o -path '/var/lib/dpkg/lock*' -o -path /var/lib/dpkg/triggers \
		-o -path /etc/systemd/network -o -path /usr/local/bin -o -path /usr/lib/sysimage/rpm -o -path /var/lib/rpm \
		-o -path '/etc/passwd*' -o -path '/etc/group*' -o -path '/etc/shadow*' -o -path '/etc/gshadow*' -o -path '/etc/.pwd.lock' \) -prune -o -printf '%M %u:%g %p %l\n' | sort -k3
		find /run -xdev \( -path '/run/systemd' -o -path '/run/udev' -o -path '/run/log' -o -path '/run/user' -o -path /run/secrets -o -path '/run/app-*' -o -path /run/dbus -o -path /run/host -o -path /run/lock -o -path /run/agetty.reload -o -path /run/credentials \) -prune -o -printf '%M %u:%g %p %l\n' | sort -k3
		find /run/systemd/system /run/systemd/transient /run/systemd/generator* -mindepth 1 -printf '%M %u:%g %p %l\n' 2>/dev/null | sort -k3`), "\n")
}

var accountFiles = []string{"/etc/passwd", "/etc/group", "/etc/shadow", "/etc/gshadow"}

func (m *Machine) accountLines() map[string][]string {
	m.t.Helper()
	lines := map[string][]string{}
	for _, file := range accountFiles {
		lines[file] = strings.Split(m.Sh("cat "+file), "\n")
	}
	return lines
}

// What is no rule in the output of iptables-save and nft: comments, counters, and the built-in chains and their tables where they hold nothing, as every
// iptables makes them and none takes them out.
var noRules = []*regexp.Regexp{
	regexp.MustCompile(`(?m)^#.*\n| ?\[\d+:\d+\]| packets \d+ bytes \d+`),
	regexp.MustCompile(`(?m)^:[A-Z]+ ACCEPT *\n`),
	regexp.MustCompile(`(?m)^\*\w+\nCOMMIT\n`),
	regexp.MustCompile(`(?m)^\tchain [A-Z]+ \{\n\t\ttype .* policy accept;\n\t\}\n\n?`),
	regexp.MustCompile(`(?m)^table ip6? \w+ \{\n\}\n`),
}

// allRules is every rule in the kernel, by whatever tool it was made.
func (m *Machine) allRules() string {
	m.t.Helper()
	rules := m.Sh("for f in nft legacy; do iptables-$f-save; ip6tables-$f-save; done 2>/dev/null; nft list ruleset") + "\n"
	for _, pattern := range noRules {
		rules = pattern.ReplaceAllString(rules, "")
	}
	return strings.TrimSpace(rules)
}

// documented are the paths that docs/packaging.md says stay after a purge: the first column of the table below that heading.
func documented(t *testing.T) (patterns []string) {
	t.Helper()
	text, err := os.ReadFile("../../docs/packaging.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(text), "\n## What a purge leaves\n")
	section, _, _ = strings.Cut(section, "\n## ")
	for _, row := range regexp.MustCompile("(?m)^\\| `(/[^`]+)` \\|").FindAllStringSubmatch(section, -1) {
		patterns = append(patterns, row[1])
	}
	if !found || len(patterns) == 0 {
		t.Fatal(`docs/packaging.md has no table of paths below "What a purge leaves"`)
	}
	return patterns
}

// look checks everything that a step may have touched.
func (p *packaged) look(want expected) {
	p.t.Helper()
	p.lookAtPackage(want)
	p.lookAtFiles(want)
	p.lookAtAccounts(want)
	p.lookAtUnits(want)
	p.lookAtTraffic(want)
	p.lookAtJournal(want)
}

func (p *packaged) lookAtPackage(want expected) {
	p.t.Helper()
	state := "ii " + want.version
	if want.unfinished != "" {
		state = want.unfinished + " " + want.version
	}
	got := p.sh(p.state, "wingman")
	switch {
	case want.version == "" && want.kept && p.kind == "deb":
		if !strings.HasPrefix(got, "rc ") {
			p.t.Errorf("the package is %q, want it removed and its settings kept", got)
		}
		return
	case want.version == "":
		if got != "" {
			p.t.Errorf("the package is %q, want none", got)
		}
		return
	case got != state:
		p.t.Errorf("the package is %q, want %q", got, state)
	}
	if got := p.Run("wingman", "version"); !strings.HasPrefix(got, "wingman "+want.version) {
		p.t.Errorf("the program is %q, want %s", got, want.version)
	}
	for line := range strings.Lines(p.sh(p.verify, "wingman")) {
		if edited := strings.HasSuffix(strings.TrimSpace(line), " c "+settingsFile) && p.settings != ""; !edited && want.unfinished == "" {
			p.t.Errorf("not as it was installed: %s", line)
		}
	}
}

// lookAtFiles compares the tree with that of before.
func (p *packaged) lookAtFiles(want expected) {
	p.t.Helper()
	may := slices.Clone(p.stays)
	var has []string
	if want.version != "" {
		has = strings.Split(p.sh(p.list, "wingman"), "\n")
	}
	if want.version != "" || want.kept {
		may = append(may, "/etc/wingman", settingsFile, settingsFile+".*", "/var/lib/wingman", "/var/lib/wingman/**", "/etc/certs", "/etc/certs/*",
			"/run/wingman", "/run/wingman-guard", "/run/wingman-proxy", "/run/wingman/**", "/run/wingman-guard/**", "/run/wingman-proxy/**",
			"/etc/systemd/system/multi-user.target.wants", "/etc/systemd/system/multi-user.target.wants/wingman*.service", "/etc/systemd/system/wingman*.service",
			"/var/lib/systemd/deb-systemd-helper-*", "/var/lib/systemd/deb-systemd-helper-enabled/**", "/var/lib/systemd/deb-systemd-helper-masked/**", "/var/lib/dpkg/info/wingman.*")
	}
	before := map[string]string{}
	for _, line := range p.files {
		before[pathOf(line)] = line
	}
	now := map[string]bool{}
	for _, line := range p.tree() {
		file := pathOf(line)
		now[file] = true
		if before[file] == line || slices.Contains(has, file) && before[file] == "" || matches(may, file) {
			continue
		}
		p.t.Errorf("file %s, before it was %q", line, before[file])
	}
	for file, line := range before {
		if !now[file] {
			p.t.Errorf("file %s is gone", line)
		}
	}
	for _, file := range has {
		if !now[file] && file != "/." {
			p.t.Errorf("file %s of the package is not there", file)
		}
	}
	if p.settings == "" {
		return
	}
	file := settingsFile
	if want.version == "" && want.kept {
		file = p.kept
	}
	if want.version != "" || want.kept {
		if got := p.Sh("cat " + file); got != strings.TrimSpace(p.settings) {
			p.t.Errorf("the owner's settings became\n%s", got)
		}
	}
}

// matches reports whether a path is of one of the patterns: those of path.Match, and "/folder/**" for everything below.
func matches(patterns []string, file string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		if folder, all := strings.CutSuffix(pattern, "/**"); all {
			return strings.HasPrefix(file, folder+"/")
		}
		ok, err := path.Match(pattern, file)
		return ok && err == nil
	})
}

// pathOf finds the path in a line of a tree.
func pathOf(line string) string {
	fields := strings.SplitN(line, " ", 4)
	if len(fields) < 3 {
		return line
	}
	return fields[2]
}

// lookAtAccounts: users and groups are those from before; istio-proxy comes with the first installation and stays.
func (p *packaged) lookAtAccounts(want expected) {
	p.t.Helper()
	now := p.accountLines()
	for file, lines := range p.accounts {
		for _, line := range lines {
			if !slices.Contains(now[file], line) {
				p.t.Errorf("%s: line %q is gone or changed", file, line)
			}
		}
		for _, line := range now[file] {
			if !slices.Contains(lines, line) && !strings.HasPrefix(line, "istio-proxy:") {
				p.t.Errorf("%s: line %q is new", file, line)
			}
		}
	}
	p.Run("id", "istio-proxy")
}

func (p *packaged) lookAtUnits(want expected) {
	p.t.Helper()
	units := []string{"wingman.service", "wingman-rules.service"} // also when the package is gone
	if want.version != "" {
		for file := range strings.Lines(p.sh(p.list, "wingman")) {
			if dir, unit := path.Split(strings.TrimSpace(file)); dir == "/usr/lib/systemd/system/" && !slices.Contains(units, unit) {
				units = append(units, unit)
			}
		}
	}
	for _, unit := range units {
		enabled, active := want.enabled, "inactive"
		if slices.Contains(staticUnits, unit) {
			enabled = "static"
		}
		if want.member && slices.Contains(memberUnits, unit) {
			active = "active"
		}
		if want.waits && unit == "wingman.path" {
			active = "active"
		}
		if enabled == "" {
			enabled = "not-found"
		}
		got, _ := p.Try("systemctl", "is-enabled", unit)
		if got == "" {
			got = "not-found" // what systemd 252 says, on stderr, of a unit without a file
		}
		if got != enabled {
			p.t.Errorf("unit %s is %s, want %s", unit, got, enabled)
		}
		if got := p.show(unit, "ActiveState"); got != active {
			p.t.Errorf("unit %s is %s, want %s", unit, got, active)
		}
	}
	if got, _ := p.Try("systemctl", "is-system-running"); got != "running" {
		p.t.Errorf("the machine is %s, want running: %s", got, p.Run("systemctl", "--failed", "--plain", "--no-legend"))
	}
	if out, _ := p.Try("pgrep", "-a", "wingman|envoy"); (out != "") != want.member {
		p.t.Errorf("member: %v, processes: %q", want.member, out)
	}
}

// lookAtTraffic: a member's goes by Envoy, and its names are known; else it is as if there were no mesh.
func (p *packaged) lookAtTraffic(want expected) {
	p.t.Helper()
	p.mustResolve("www.example.com", "192.0.2.80")
	if !want.member {
		p.envoy = 0
		if got := p.allRules(); got != p.bare {
			p.t.Errorf("the rules are\n%s\nwant those from before:\n%s", got, p.bare)
		}
		if all := p.istiod.Entries(); slices.ContainsFunc(all, func(e controlplane.Entry) bool { return e.Connected }) {
			p.t.Errorf("entries %+v, want none of this machine", all)
		}
		if res, err := p.direct().Get("http://" + otherAddress + "/"); err != nil {
			p.t.Errorf("a request to elsewhere: %v", err)
		} else if res.Body.Close(); res.Header.Get("Server") != "" {
			p.t.Errorf("a request to elsewhere went by %s", res.Header.Get("Server"))
		}
		return
	}
	p.entry("serving", serving)
	envoy := p.awaitEnvoy().PID
	if p.envoy == 0 {
		p.envoy = envoy
	}
	if envoy != p.envoy {
		p.t.Errorf("Envoy is process %d, want %d still", envoy, p.envoy)
	}
	if all := p.istiod.Entries(); len(all) != 1 {
		p.t.Errorf("entries %+v, want one", all)
	}
	runs := want.version
	if want.runs != "" {
		runs = want.runs
	}
	if r, err := p.status(); err != nil || r.Version != runs {
		p.t.Errorf("the agent that runs is %s (%v), want %s", r.Version, err, runs)
	}
	p.mustResolve("webapp.istioinaction.svc.cluster.local", "10.96.97.98")
	if rules := p.allRules(); !strings.Contains(rules, "15001") || !strings.Contains(rules, "15006") || !strings.Contains(rules, "15053") {
		p.t.Errorf("not all traffic is captured:\n%s", rules)
	}
	if v, err := p.visit(); err != nil {
		p.t.Errorf("a request from elsewhere: %v", err)
	} else if _, err := v.get("/"); err != nil {
		p.t.Errorf("a request from elsewhere: %v", err)
	}
	if res, err := p.direct().Get("http://" + otherAddress + "/"); err != nil {
		p.t.Errorf("a request to elsewhere: %v", err)
	} else if err := errors.Join(res.Body.Close(), by("outbound")(res)); err != nil {
		p.t.Errorf("a request to elsewhere: %v", err)
	}
}

// direct sends requests from the machine, each by a connection of its own.
func (p *packaged) direct() *http.Client {
	return &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(_ context.Context, network, addr string) (conn net.Conn, err error) {
		return conn, p.Do(func() (err error) { conn, err = net.DialTimeout(network, addr, 5*time.Second); return err })
	}}}
}

// lookAtJournal fails for every error since the last look, whoever wrote it.
func (p *packaged) lookAtJournal(want expected) {
	p.t.Helper()
	var expected *regexp.Regexp
	if want.complaints != "" {
		expected = regexp.MustCompile(want.complaints)
	}
	for _, e := range p.Journal("") {
		if e.Priority <= 3 && e.At.After(p.looked) && !p.noise[e.Message] && (expected == nil || !expected.MatchString(e.Message)) {
			p.t.Errorf("the journal complains: %+v", e)
		}
	}
	p.looked = time.Now()
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
