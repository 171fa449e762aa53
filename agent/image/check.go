package image

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"wingman/bootstrap"
)

// A Finding is something in an image that belongs to one machine.
type Finding struct {
	Path string `json:"path"` // as it will be on the machine
	What string `json:"what"` // one phrase: what it is
	// Clean says how to get rid of it.
	Clean string `json:"clean"`

	remove bool // Clean removes the file
}

// Report is what a look found. An image without findings is clean, whatever its notes.
type Report struct {
	Root     string            `json:"root"`
	Clean    bool              `json:"clean"`
	Findings []Finding         `json:"findings"` // sorted by path
	Notes    []string          `json:"notes"`    // what is no fault of the image's, and worth a thought
	Units    map[string]string `json:"units"`    // of the agent: "enabled", "disabled", "masked" or "absent"
}

// ByCommand is how to clean what is the agent's, or Istio's.
const ByCommand = "wingman image clean"

// byHand is how to clean what somebody else may need.
const byHand = "remove it by hand: by its name and place it may be somebody else's"

// bundleDir is where user-data puts istioctl's files for the join (packaging/cloud-init).
const bundleDir = "/root/wingman-bundle"

// Check looks at the files below root. Its error means that something could not be looked at: the image is not proven clean then.
func Check(root string) (Report, error) {
	root, err := filepath.Abs(cmp.Or(root, "/"))
	if err != nil {
		return Report{}, err
	}
	t, err := openTree(root)
	if err != nil {
		return Report{}, err
	}
	defer t.dir.Close()
	if err := t.isMachine(); err != nil {
		return Report{}, err
	}
	l := &looker{tree: t, found: map[string]Finding{}}
	l.state()
	l.settings()
	l.units()
	l.rules()
	l.cloudInit()
	l.others()
	r := Report{Root: root, Findings: []Finding{}, Notes: l.notes, Units: l.unitStates()}
	for _, name := range slices.Sorted(maps.Keys(l.found)) {
		r.Findings = append(r.Findings, l.found[name])
	}
	if r.Notes == nil {
		r.Notes = []string{}
	}
	r.Clean = len(r.Findings) == 0 && len(l.problems) == 0
	return r, errors.Join(l.problems...)
}

// A looker gathers what a tree holds.
type looker struct {
	tree     *tree
	found    map[string]Finding // by path: two reasons for one file are one finding
	outputs  []string           // folders that key, certificate and roots are put into
	notes    []string
	problems []error
}

func (l *looker) problem(err error) {
	if err != nil {
		l.problems = append(l.problems, err)
	}
}

func (l *looker) find(file, what, clean string) {
	if f, ok := l.found[file]; ok {
		if !strings.Contains(f.What, what) {
			f.What += ", " + what
		}
		if f.Clean == byHand && clean == ByCommand { // another look knows it for ours
			f.Clean, f.remove = clean, true
		}
		l.found[file] = f
		return
	}
	l.found[file] = Finding{Path: file, What: what, Clean: clean, remove: clean == ByCommand}
}

// scan judges the files at and below a path, by name and by content. The command cleans those that own says are ours; nil: none.
func (l *looker) scan(at string, how extent, judge func(name string, content []byte) string, own func(name string) bool) {
	l.problem(l.tree.walk(at, how, func(e entry) error {
		switch {
		case e.via != "" && inOwn(e.path): // it is looked at there
		case e.info.Mode().IsRegular():
			b, err := l.tree.read(e.path)
			if err != nil && !errors.Is(err, errTooLarge) {
				return err
			}
			what := judge(e.path, b)
			if what == "" && e.via != "" {
				what = judge(e.via, b)
			}
			switch {
			case what == "" && how.strict:
				return err
			case what == "":
			case e.via != "":
				l.find(e.path, fmt.Sprintf("%s (%s leads to it)", what, e.via), byHand)
			case own != nil && own(e.path):
				l.find(e.path, what, ByCommand)
			default:
				l.find(e.path, what, byHand)
			}
		case e.info.Mode()&fs.ModeSymlink != 0:
			to, err := l.tree.dir.Readlink(local(e.path))
			if strings.Contains(to, "var/lib/wingman/") || strings.Contains(to, "run/wingman/") {
				l.find(e.path, "the agent's link to its key, certificate or roots", ByCommand)
			}
			return err
		}
		return nil // a socket that an agent left behind holds nothing
	}))
}

// ours reports a file that the agent, Istio's agent or our user-data put where it is: by a name that nobody else uses, or by its place.
func (l *looker) ours(file string) bool {
	if byName(file) != "" || strings.HasPrefix(file, bundleDir+"/") {
		return true
	}
	return slices.ContainsFunc(l.outputs, func(dir string) bool {
		return strings.HasPrefix(file, dir+"/groups/") || path.Dir(file) == dir && slices.Contains([]string{"key.pem", "cert-chain.pem", "root-cert.pem"}, path.Base(file))
	})
}

// anything is for places where whatever is there is ours.
func anything(string) bool { return true }

// leftovers takes everything below a folder for what must not be there.
func (l *looker) leftovers(at string, what func(name string) string) {
	l.problem(l.tree.walk(at, whole, func(e entry) error {
		if e.via == "" {
			l.find(e.path, what(e.path), ByCommand)
		}
		return nil
	}))
	l.scan(at, whole, secret, nil) // for what links there lead to
}

// secret judges a file by what it holds, and by names that say enough.
func secret(name string, b []byte) string {
	if what := byName(name); what != "" && len(b) > 0 {
		return what
	}
	return strings.Join(contents(b), ", ")
}

// state looks at what is the agent's alone: whatever is there an agent left.
func (l *looker) state() {
	p := bootstrap.DefaultPaths("")
	state := p.StateDir
	if at, err := l.tree.resolve(state); err == nil {
		state = at
	}
	l.leftovers(p.StateDir, func(name string) string { return ofState(strings.TrimPrefix(name, state+"/")) })
	l.leftovers("/var/lib/wingman-adopt", func(string) string { return "the note of wingman adopt" })
	for _, dir := range []string{p.RunDir, "/run/wingman-proxy", "/run/wingman-guard", "/run/wingman-machine"} {
		l.leftovers(dir, func(string) string { return "what an agent left in /run" })
	}
}

// settings looks where settings have the agent take or put something.
func (l *looker) settings() {
	root := l.tree.root
	at := bootstrap.DefaultPaths(root)
	put := bootstrap.Snapshot{}
	if b, err := l.tree.content(l.inside(at.ClusterEnv)); err == nil && len(b) == 0 {
		put[at.ClusterEnv] = []byte("ISTIO_META_CLUSTER_ID='none'\n") // an image has none, and the other settings count all the same
	}
	cfg, problems := bootstrap.LoadAhead(root, put)
	if cfg == nil {
		l.problem(fmt.Errorf("the image's settings cannot be used, so what they name was not looked at: %w", problems.Without(bootstrap.KeyRootCert).Err()))
		cfg = &bootstrap.Config{Paths: at}
	}
	for _, dir := range []string{"/etc/certs", l.inside(cfg.Paths.OutputCerts), l.inside(cfg.Paths.ProvCert)} {
		if at, err := l.tree.resolve(dir); err == nil && at != "/" {
			l.outputs = append(l.outputs, at)
		}
	}
	for _, dir := range []string{"/etc/certs", "/etc/istio", "/var/lib/istio", "/etc/wingman", "/var/run/secrets/tokens", bundleDir} {
		l.scan(dir, whole, secret, l.ours)
	}
	// What a setting names may lie among things that are nobody's business: only files at its side.
	for _, dir := range l.outputs {
		l.scan(dir, flat, secret, l.ours)
		l.scan(path.Join(dir, "groups"), whole, secret, l.ours)
	}
	for _, dir := range []string{path.Dir(l.inside(cfg.Paths.Token)), path.Dir(l.inside(cfg.Paths.RootCert))} {
		if dir != "." && dir != "/" {
			l.scan(dir, beside, secret, l.ours)
		}
	}
	if file := l.inside(cfg.Paths.Token); file != "" {
		l.exactly(file, "a token")
	}
	const aLog = "a log of the machine that built the image"
	l.scan("/var/log/istio", whole, notEmpty(aLog), anything)
	if file := l.inside(cfg.Log.File); file != "" {
		l.exactly(file, aLog)
	}
	if len(cfg.InstanceIPs) > 0 {
		file := "/etc/wingman/wingman.yaml"
		for _, s := range cfg.Settings() {
			if s.Key == "workload.addresses" && s.File != "" {
				file = l.inside(s.File)
			}
		}
		l.find(file, fmt.Sprintf("an address of one machine, %s", cfg.InstanceIPs[0]), "take workload.addresses (ISTIO_SVC_IP) out of it")
	}
	if len(put) == 0 {
		l.notes = append(l.notes, fmt.Sprintf("istioctl's cluster.env is in the image: each machine made from it is one of workload %s, and joins as soon as it has a token", cfg.SPIFFEID()))
	}
}

// exactly looks at one file that is ours by its place; a folder there is not.
func (l *looker) exactly(file, what string) {
	l.scan(file, flat, func(name string, b []byte) string {
		if len(b) > 0 && path.Base(name) == path.Base(file) {
			return what
		}
		return ""
	}, anything)
}

// notEmpty says what for every file that holds something.
func notEmpty(what string) func(string, []byte) string {
	return func(_ string, b []byte) string {
		if len(b) == 0 {
			return ""
		}
		return what
	}
}

// inside is a path of bootstrap's as the machine will have it; "" stays.
func (l *looker) inside(p string) string {
	if p == "" || l.tree.root == "/" {
		return p
	}
	return path.Clean("/" + strings.TrimPrefix(p, l.tree.root))
}

// rules looks at files that put rules into the kernel at boot, whoever saved them.
func (l *looker) rules() {
	for _, at := range []string{"/etc/iptables", "/etc/sysconfig/iptables", "/etc/sysconfig/ip6tables", "/etc/nftables.conf", "/etc/nftables.d", "/etc/sysconfig/nftables.conf"} {
		l.problem(l.tree.walk(at, config, func(e entry) error {
			if !e.info.Mode().IsRegular() {
				return nil
			}
			b, err := l.tree.read(e.path)
			if err == nil && ourRules(b) {
				l.find(e.path, "rules that capture traffic, saved for the next boot", "stop the agent (systemctl stop wingman) and save the rules again")
			}
			return err
		}))
	}
}

// cloudInit looks at what cloud-init, and Azure's agent, keep of the build machine's user-data.
func (l *looker) cloudInit() {
	for _, place := range []struct{ at, whose, clean string }{
		{"/var/lib/cloud", "cloud-init's", "cloud-init clean --logs"},
		{"/var/lib/waagent/ovf-env.xml", "Azure's", "waagent -force -deprovision, or rm it"},
		{"/var/lib/waagent/CustomData", "Azure's", "waagent -force -deprovision, or rm it"},
	} {
		l.problem(l.tree.walk(place.at, whole, func(e entry) error {
			if !e.info.Mode().IsRegular() {
				return nil
			}
			b, err := l.tree.read(e.path)
			if err != nil && !errors.Is(err, errTooLarge) {
				return err
			}
			what := contents(b)
			if len(what) == 0 {
				return err
			}
			l.find(e.path, place.whose+" copy of "+strings.Join(what, ", "), place.clean)
			return nil
		}))
	}
}

// others notes what is not the agent's, and makes copies of a machine look like one machine all the same.
func (l *looker) others() {
	if b, err := l.tree.content("/etc/machine-id"); err == nil {
		if id := strings.TrimSpace(string(b)); id != "" && id != "uninitialized" {
			l.notes = append(l.notes, "/etc/machine-id is not empty: copies would share it (truncate -s 0 /etc/machine-id)")
		}
	}
	if at, err := l.tree.resolve("/var/lib/systemd/credential.secret"); err == nil {
		l.notes = append(l.notes, at+" is the key that systemd-creds seals with: copies would share it (rm it, each machine makes its own)")
	}
	if b, err := l.tree.content("/etc/hostname"); err == nil {
		if name := strings.TrimSpace(string(b)); name != "" && !strings.HasPrefix(name, "localhost") {
			l.notes = append(l.notes, fmt.Sprintf("/etc/hostname is %q: copies begin with that name unless somebody gives them another (truncate -s 0 /etc/hostname)", name))
		}
	}
	journal := false
	l.problem(l.tree.walk("/var/log/journal", extent{depth: 2}, func(e entry) error { journal = journal || strings.HasSuffix(e.path, ".journal"); return nil }))
	if journal {
		l.notes = append(l.notes, "the journal of the build machine is in /var/log/journal (journalctl --rotate --vacuum-time=1s)")
	}
}
