package image

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// credstores are where systemd looks for credentials that a unit names without a path (systemd.exec(5)).
var credstores = []string{"/etc/credstore", "/etc/credstore.encrypted", "/run/credstore", "/run/credstore.encrypted", "/usr/lib/credstore", "/usr/lib/credstore.encrypted", "/usr/local/lib/credstore"}

// unitNames are the agent's units that may be given secrets, and the drop-ins that hold for them and for others.
var unitNames = []string{"wingman.service", "wingman-proxy.service", "wingman-rules.service", "wingman.service.d", "wingman-proxy.service.d", "wingman-rules.service.d", "wingman-.service.d", "service.d"}

const aCredential = "a credential of the agent's unit"

// units looks at what the agent's units are given: by name in the stores of credentials, by path, and in the unit itself.
func (l *looker) units() {
	names := []string{"istio-token", "wingman-seal-key"} // whatever they hold
	for _, dir := range []string{"/etc/systemd/system", "/etc/systemd/system.control", "/run/systemd/system", "/usr/lib/systemd/system", "/usr/local/lib/systemd/system"} {
		for _, unit := range unitNames {
			l.problem(l.tree.walk(path.Join(dir, unit), config, func(e entry) error {
				if !e.info.Mode().IsRegular() {
					return nil
				}
				b, err := l.tree.read(e.path)
				if err != nil {
					return err
				}
				g := givenTo(string(b))
				names = append(names, g.names...)
				if g.set {
					l.find(e.path, "a credential in the unit itself (SetCredential=)", "take it out of the file")
				}
				if what := contents(b); len(what) > 0 {
					l.find(e.path, strings.Join(what, ", ")+" in the unit itself", "take it out of the file")
				}
				for _, file := range g.credentials {
					l.scan(file, whole, notEmpty(aCredential), l.ours)
				}
				for _, file := range g.environment {
					l.scan(file, flat, secret, l.ours)
				}
				for _, setting := range g.unknown {
					l.problem(fmt.Errorf("%s: %s: what it names is not known before systemd reads it: look at it yourself", e.path, setting))
				}
				if e.via == "" && path.Base(e.path) == "seal.conf" && strings.HasSuffix(path.Dir(e.path), "wingman.service.d") {
					l.find(e.path, "the drop-in for a key that only the build machine can decrypt", ByCommand)
				}
				return nil
			}))
		}
	}
	for _, file := range []string{"/etc/systemd/system.conf", "/etc/systemd/system.conf.d"} { // DefaultEnvironment=
		l.scan(file, flat, secret, nil)
	}
	for _, dir := range credstores {
		l.scan(dir, whole, secret, l.ours)
		for _, name := range names {
			own := func(string) bool { return name == "istio-token" || name == "wingman-seal-key" }
			if pattern, isPattern := strings.CutPrefix(name, "glob:"); isPattern {
				l.scan(dir, whole, func(file string, b []byte) string {
					if ok, err := path.Match(pattern, path.Base(file)); len(b) == 0 || !ok && err == nil {
						return ""
					}
					return aCredential
				}, l.ours)
				continue
			}
			l.scan(path.Join(dir, name), whole, notEmpty(aCredential), own)
		}
	}
}

// A given is what a unit's settings name.
type given struct {
	credentials []string // files and folders of LoadCredential=
	names       []string // in the stores of credentials; "glob:" begins those of ImportCredential=
	environment []string // files of EnvironmentFile=
	unknown     []string // settings whose files only a running systemd knows
	set         bool     // SetCredential=: the secret is in the unit
}

// givenTo reads a unit or a drop-in. Other credentials than ours count too: whatever is given to the agent is secret. It is pure.
func givenTo(unit string) (g given) {
	for line := range strings.Lines(strings.ReplaceAll(unit, "\\\n", " ")) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		if !ok || value == "" {
			continue
		}
		at := value
		switch key {
		case "LoadCredential", "LoadCredentialEncrypted":
			if _, file, ok := strings.Cut(value, ":"); ok {
				at = strings.TrimSpace(file)
			}
		case "ImportCredential":
			g.names = append(g.names, "glob:"+value)
			continue
		case "EnvironmentFile":
			at = strings.TrimPrefix(value, "-")
		case "SetCredential", "SetCredentialEncrypted":
			g.set = true
			continue
		default:
			continue
		}
		file, known := withoutSpecifiers(at)
		switch {
		case !known, key == "EnvironmentFile" && (!path.IsAbs(file) || strings.ContainsAny(file, "*?[")):
			g.unknown = append(g.unknown, key+"="+value)
		case key == "EnvironmentFile":
			g.environment = append(g.environment, path.Clean(file))
		case path.IsAbs(file):
			g.credentials = append(g.credentials, path.Clean(file))
		case file != "" && path.Base(file) == file && file != "..":
			g.names = append(g.names, file)
		default:
			g.unknown = append(g.unknown, key+"="+value)
		}
	}
	return g
}

// withoutSpecifiers puts in what specifiers of systemd.unit(5) stand for, those that are the same on all machines; known says that there is no other.
func withoutSpecifiers(s string) (_ string, known bool) {
	stands := map[byte]string{'%': "%", 'C': "/var/cache", 'E': "/etc", 'L': "/var/log", 'S': "/var/lib", 'T': "/tmp", 'V': "/var/tmp", 't': "/run"}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			b.WriteByte(s[i])
			continue
		}
		i++
		if i == len(s) || stands[s[i]] == "" {
			return s, false
		}
		b.WriteString(stands[s[i]])
	}
	return b.String(), true
}

// unitStates tells whether the units start on a machine made from the image.
func (l *looker) unitStates() map[string]string {
	states := map[string]string{}
	for _, unit := range []string{"wingman.service", "wingman-rules.service"} {
		states[unit] = l.unitState(unit)
	}
	return states
}

func (l *looker) unitState(unit string) string {
	const etc = "/etc/systemd/system"
	if to, err := l.tree.dir.Readlink(local(path.Join(etc, unit))); err == nil && to == "/dev/null" {
		return "masked"
	}
	there := slices.ContainsFunc([]string{etc, "/usr/lib/systemd/system", "/lib/systemd/system"}, func(dir string) bool {
		_, err := l.tree.resolve(path.Join(dir, unit))
		return err == nil
	})
	if !there {
		return "absent"
	}
	if _, err := l.tree.dir.Lstat(local(path.Join(etc, "multi-user.target.wants", unit))); err == nil {
		return "enabled"
	}
	return "disabled"
}
