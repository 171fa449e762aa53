package bootstrap

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"wingman/internal/plainfile"

	"go.yaml.in/yaml/v3"
)

// Where a value came from; the higher rank wins.
const (
	rankBuiltin     = iota
	rankMesh        // mesh.yaml's defaultConfig and its proxyMetadata
	rankSidecar     // sidecar.env
	rankCluster     // cluster.env
	rankProxyConfig // fields of PROXY_CONFIG, which either env file may hold
	rankWingman     // wingman.yaml
)

// Load reads every file below root, merges and checks them, and looks up the users and groups they name. root "" or "/" is the
// machine itself.
//
// Every problem of every file is returned at once. The Config is nil when one of severity Error makes it unusable; errors with
// Key KeyRootCert alone leave it whole, for an agent that has roots of an earlier join. A missing token is no problem: a machine
// that has joined lives without it. Load opens no sockets and never executes anything.
func Load(root string) (*Config, Problems) { return load(root, nil, nil) }

// load reads from a snapshot where there is one, and before it from what is to be put in place.
func load(root string, from, ahead Snapshot) (*Config, Problems) {
	l := &loader{
		from:  from,
		ahead: ahead,
		taken: Snapshot{},
		c:     &Config{Root: absolute(root), Paths: DefaultPaths(root)},
		vars:  map[string]envVar{},
		proxy: builtinProxyConfig(),
		own:   map[string]value{},
	}
	l.readEnvFiles()
	l.readAgentFlags()
	l.readMesh()
	l.readWingman()
	l.apply()
	l.finish()
	problems := l.problems.sorted()
	if problems.Without(KeyRootCert).Err() != nil {
		return nil, problems
	}
	l.c.snapshot = l.taken
	return l.c, problems
}

// loader holds what the files say while they become a Config.
type loader struct {
	from     Snapshot // where the settings' files are; nil: on disk
	ahead    Snapshot // of files that are not there yet, and count all the same; the root certificate may be one
	taken    Snapshot // what was read
	c        *Config
	vars     map[string]envVar // variables of the env files, proxyMetadata, and flags
	proxy    *proxyConfig
	own      map[string]value // wingman.yaml by dotted path
	ownTrees map[string]ownTree
	problems Problems
}

// readEnvFiles reads sidecar.env, which need not exist, and cluster.env, which must.
func (l *loader) readEnvFiles() {
	if src, ok := l.read(l.c.Paths.SidecarEnv, Problem{}); ok {
		l.add(readEnv(l.c.Paths.SidecarEnv, src, rankSidecar, l.vars)...)
	}
	file := l.c.Paths.ClusterEnv
	how := "make it with istioctl x workload entry configure and copy it here"
	src, ok := l.read(file, Problem{Severity: Error, Hint: how})
	if !ok {
		return
	}
	problems := readEnv(file, src, rankCluster, l.vars)
	l.add(problems...)
	for _, v := range l.vars {
		if v.file == file {
			return
		}
	}
	if problems.Err() == nil {
		l.add(Problem{Severity: Error, File: file, Found: "no variables", Expected: "istioctl's cluster.env", Hint: how})
	}
}

// readMesh reads mesh.yaml, which need not exist, and PROXY_CONFIG. proxyMetadata then counts as variables that nothing else
// set: the injector does the same with it in a pod, and istioctl copies it to cluster.env.
func (l *loader) readMesh() {
	file := l.c.Paths.MeshConfig
	missing := Problem{Severity: Warning, Hint: "Istio's defaults are used, and there is no readiness probe unless wingman.yaml has one"}
	if src, ok := l.read(file, missing); ok {
		y := &yamlFile{file: file}
		if top := y.parse(src); top != nil {
			l.meshFields(y, top)
		} else if len(y.problems) == 0 {
			missing.File, missing.Found, missing.Expected = file, "an empty file", "istioctl's mesh.yaml" // Istio's package makes an empty one
			l.add(missing)
		}
		l.add(y.problems...)
	}
	if v, ok := l.vars["PROXY_CONFIG"]; ok && strings.TrimSpace(v.value) != "" {
		y := &yamlFile{file: v.file, offset: v.line - 1}
		if top := y.parse([]byte(v.value)); top != nil {
			l.proxy.overlay(y, top, "PROXY_CONFIG", rankProxyConfig)
		}
		l.add(y.problems...)
	}
	for name, v := range l.proxy.metadata {
		if _, ok := l.vars[name]; !ok && envName.FindString(name) == name {
			l.vars[name] = envVar{value: v.text, file: v.file, line: v.line, rank: rankMesh}
		}
	}
}

func (l *loader) meshFields(y *yamlFile, top *yaml.Node) {
	found := false
	for _, e := range y.entries(top, "") {
		switch {
		case e.name == "defaultConfig" && e.value.Kind == yaml.MappingNode:
			l.proxy.overlay(y, e.value, "defaultConfig", rankMesh)
			found = true
		case e.name == "defaultConfig" && !isNull(e.value):
			y.refuse(e.value, "defaultConfig", describe(e.value), "a mapping", "")
			found = true
		default:
			if _, ok := proxyFields[e.name]; ok {
				y.warn(e.key, e.name, "a field of ProxyConfig at the top", "it below defaultConfig", "it has no effect here")
			}
		}
	}
	if !found {
		y.warn(top, "defaultConfig", "no such key", "a MeshConfig with defaultConfig", "Istio's defaults are used")
	}
}

// apply gives every setting the value of its strongest source.
func (l *loader) apply() {
	for _, s := range settings {
		if s.tree {
			continue
		}
		v := l.pick(s)
		l.disagree(s, v)
		if v.rank == rankBuiltin && s.def == "" {
			continue
		}
		if bad := s.read(l.c, v.text); bad != nil {
			l.add(Problem{Severity: Error, File: v.file, Line: v.line, Key: v.key, Found: bad.found, Expected: bad.expected, Hint: bad.hint})
			continue
		}
		l.set(s.key, v)
	}
}

// pick returns the strongest value of a setting. Among the variables of the env files the order of names decides, as in
// pilot-agent, which sees one environment; an empty variable counts only where empty is a decision.
func (l *loader) pick(s setting) value {
	if v, ok := l.own[s.key]; ok {
		return v
	}
	best := value{text: s.def, key: s.key}
	if at, ok := l.proxy.at[s.mesh]; s.mesh != "" && ok && (at.text != "" || s.empty) {
		best = at
	}
	for _, name := range s.istio {
		v, ok := l.vars[name]
		if !ok || s.proxy && best.rank == rankProxyConfig || v.rank == rankMesh && best.rank > rankMesh {
			continue
		}
		text, bad := v.value, (*badValue)(nil)
		if convert := conversions[name]; convert != nil && text != "" {
			text, bad = convert(l.c, text)
		}
		if bad != nil {
			l.add(Problem{Severity: Error, File: v.file, Line: v.line, Key: shownName(name), Found: bad.found, Expected: bad.expected, Hint: bad.hint})
			continue
		}
		if text != "" || s.empty {
			best = value{text: text, file: v.file, line: v.line, key: shownName(name), rank: v.rank}
		}
	}
	return best
}

// disagree warns of two variables of the env files that say different things about one setting; Istio lets one win in silence.
func (l *loader) disagree(s setting, winner value) {
	for _, name := range s.istio {
		v, ok := l.vars[name]
		if !ok || v.rank == rankMesh || v.value == "" || winner.rank != rankSidecar && winner.rank != rankCluster || shownName(name) == winner.key {
			continue
		}
		text, bad := v.value, (*badValue)(nil)
		if convert := conversions[name]; convert != nil {
			text, bad = convert(l.c, text)
		}
		if bad == nil && text != "" && text != winner.text {
			l.add(Problem{Severity: Warning, File: v.file, Line: v.line, Key: shownName(name), Found: quote(v.value),
				Expected: "the same as " + winner.key, Hint: fmt.Sprintf("%s:%d wins with %s", winner.file, winner.line, quote(winner.text))})
		}
	}
}

// set records what set a setting.
func (l *loader) set(key string, v value) {
	s := Setting{Key: key, Value: v.text, File: v.file, Line: v.line}
	if v.rank != rankBuiltin && v.rank != rankWingman {
		s.Istio = v.key
	}
	l.c.settings = append(l.c.settings, s)
}

func (l *loader) add(problems ...Problem) { l.problems = append(l.problems, problems...) }

// maxFile bounds the files that are read: the largest real one has a few kilobytes.
const maxFile = 4 << 20

// read returns a file's content. missing says how bad it is when there is none; its zero value says not at all. Whatever else
// prevents reading is an error.
func (l *loader) read(file string, missing Problem) ([]byte, bool) {
	src, found, err := l.content(file)
	switch {
	case err == nil && len(src) > 0:
		return src, true
	case err == nil && missing == (Problem{}):
		return nil, false
	case err == nil:
		return src, true
	case errors.Is(err, fs.ErrNotExist):
		if missing != (Problem{}) {
			missing.File, missing.Found, missing.Expected = file, "no file", "one"
			l.add(missing)
		}
		return nil, false
	}
	l.add(Problem{Severity: Error, File: file, Key: missing.Key, Found: found, Expected: "a readable file", Hint: cmp.Or(unreadableHint(err, file), missing.Hint)})
	return nil, false
}

// readFile reads a regular file of at most maxFile bytes; found completes "found …" when it cannot. It does not open what
// could block, such as a pipe.
func readFile(file string) (src []byte, found string, err error) {
	st, err := os.Stat(file)
	if err != nil {
		return nil, reason(err), err
	}
	switch {
	case st.IsDir():
		return nil, "a folder", errNotAFile
	case !st.Mode().IsRegular():
		return nil, "a pipe, socket or device", errNotAFile
	case st.Size() > maxFile:
		return nil, fmt.Sprintf("%d bytes", st.Size()), errTooLarge
	}
	src, _, err = plainfile.Read(file, maxFile) // another file may lie there by now
	if err != nil {
		return nil, reason(err), err
	}
	return src, "", nil
}

var (
	errNotAFile = errors.New("not a regular file")
	errTooLarge = fmt.Errorf("more than %d bytes", maxFile)
)

// reason is the system's own word for what went wrong, without the path.
func reason(err error) string {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno.Error()
	}
	return err.Error()
}

// unreadableHint tells mode and owner of a file that may not be read.
func unreadableHint(err error, file string) string {
	if !errors.Is(err, fs.ErrPermission) {
		return ""
	}
	st, statErr := os.Stat(file)
	if statErr != nil {
		return fmt.Sprintf("uid %d may not enter its folder", os.Geteuid())
	}
	owner := ""
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		owner = fmt.Sprintf(" of uid %d", sys.Uid)
	}
	return fmt.Sprintf("mode %04o%s, read by uid %d", st.Mode().Perm(), owner, os.Geteuid())
}
