package bootstrap

import (
	"cmp"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// finish derives what no single source says and checks what concerns several settings.
func (l *loader) finish() {
	l.placePaths()
	l.endpoints()
	l.labels()
	l.logScopes()
	l.forwardZones()
	l.probe()
	l.credentials()
	l.addresses()
	l.capture()
	l.users()
	l.distinctPorts()
	l.scrapeTargets()
	l.checkVariables()
	l.c.Hosts = l.hosts()
	l.outputCerts()
	l.rootCert()
	l.c.env = l.vars
	l.c.proxyConfig = l.nodeProxyConfig()
	l.otherSettings()
	slices.SortFunc(l.c.settings, func(a, b Setting) int { return cmp.Or(strings.Compare(a.Key, b.Key), cmp.Compare(a.Line, b.Line)) })
}

// placePaths puts the paths that settings name below root.
func (l *loader) placePaths() {
	p := &l.c.Paths
	place := func(path *string) {
		if *path != "" {
			*path = under(l.c.Root, *path)
		}
	}
	if l.isSet("istiod.rootCert") {
		place(&p.RootCert)
	} else {
		p.RootCert = DefaultPaths(l.c.Root).RootCert
		if l.c.Paths.ProvCert != "" {
			p.RootCert = fileUnder(l.c.Root, l.c.Paths.ProvCert, "root-cert.pem")
		}
	}
	place(&p.Token)
	place(&p.ProvCert)
	place(&p.OutputCerts)
	place(&p.WorkloadSocket)
	place(&l.c.Log.File)
}

// inside reports whether path is dir or below it, by their names.
func inside(dir, path string) bool {
	rest, err := filepath.Rel(dir, path)
	return err == nil && filepath.IsLocal(rest)
}

// isSet reports whether some source sets the setting at key.
func (l *loader) isSet(key string) bool {
	return slices.ContainsFunc(l.c.settings, func(s Setting) bool { return s.Key == key && s.File != "" })
}

// source returns the setting at key, with an empty File when it is built-in or unset.
func (l *loader) source(key string) Setting {
	for _, s := range l.c.settings {
		if s.Key == key {
			return s
		}
	}
	return Setting{Key: key}
}

// refuse reports a problem with a setting at the place that set it.
func (l *loader) refuse(severity Severity, key, found, expected, hint string) {
	s := l.source(key)
	l.add(Problem{Severity: severity, File: s.File, Line: s.Line, Key: cmp.Or(s.Istio, key), Found: found, Expected: expected, Hint: hint})
}

// ownMap reads a mapping of names to texts in wingman.yaml; with lists a YAML list will do for a text with commas.
func (l *loader) ownMap(key string, lists bool) map[string]value {
	t, ok := l.ownTrees[key]
	if !ok {
		return nil
	}
	s, _ := settingByKey(key)
	m := map[string]value{}
	before := len(t.y.problems)
	if t.node.Kind != yaml.MappingNode {
		t.y.refuse(t.node, key, describe(t.node), s.accepts, "")
	} else {
		for _, e := range t.y.entries(t.node, key) {
			text, ok := scalarText(e.value, lists)
			if !ok {
				t.y.refuse(e.value, join(key, e.name), describe(e.value), "text", "")
				continue
			}
			m[e.name] = value{text: text, file: t.y.file, line: t.y.line(e.key), key: join(key, e.name), rank: rankWingman}
		}
	}
	l.add(t.y.problems[before:]...)
	return m
}

func (l *loader) logScopes() {
	l.c.Log.Scopes = map[string]string{}
	if v, ok := l.vars["--log_output_level"]; ok {
		_, scopes, _ := splitLogLevels(v.value)
		for name, level := range scopes {
			l.c.Log.Scopes[name] = level
			l.knownScope(name, value{file: v.file, line: v.line, key: shownName("--log_output_level")})
			l.set("log.scopes."+name, value{text: level, file: v.file, line: v.line, key: shownName("--log_output_level"), rank: v.rank})
		}
	}
	for name, v := range l.ownMap("log.scopes", false) {
		level, bad := logLevel.read(v.text)
		if bad != nil {
			l.add(Problem{Severity: Error, File: v.file, Line: v.line, Key: v.key, Found: bad.found, Expected: bad.expected})
			continue
		}
		l.c.Log.Scopes[name] = level
		l.knownScope(name, v)
		l.c.settings = slices.DeleteFunc(l.c.settings, func(s Setting) bool { return s.Key == v.key })
		l.set(v.key, v)
	}
}

// knownScope warns of a level for a part that the agent does not have.
func (l *loader) knownScope(name string, at value) {
	if !slices.Contains(logScopes, name) {
		l.add(Problem{Severity: Warning, File: at.file, Line: at.line, Key: at.key, Found: "a level for " + quote(name),
			Expected: "one for " + strings.Join(logScopes, ", "), Hint: cmp.Or(didYouMean(name, logScopes), "no part of the agent logs by that name")})
	}
}

// nodeProxyConfig is PROXY_CONFIG with what other settings decided about it.
func (l *loader) nodeProxyConfig() map[string]any {
	c := l.c
	pc := l.proxy.json()
	pc["discoveryAddress"] = c.Discovery.Address
	pc["statusPort"] = float64(c.Status.Port)
	pc["proxyAdminPort"] = float64(c.Envoy.AdminPort)
	pc["drainDuration"] = jsonDuration(c.Envoy.DrainDuration)
	pc["terminationDrainDuration"] = jsonDuration(c.Envoy.TerminationDrain)
	if l.isSet("envoy.concurrency") {
		pc["concurrency"] = float64(c.Envoy.Concurrency)
	}
	if l.isSet("envoy.path") {
		pc["binaryPath"] = c.Envoy.Path
	}
	if l.isSet("metrics.localhostOnly") {
		// Envoy's listener for metrics goes by this (Istio's pkg/bootstrap/option/instances.go).
		metadata, _ := pc["proxyMetadata"].(map[string]any)
		if metadata == nil {
			metadata = map[string]any{}
			pc["proxyMetadata"] = metadata
		}
		metadata["METRICS_LOCALHOST_ACCESS_ONLY"] = strconv.FormatBool(c.Metrics.LocalhostOnly)
	}
	if c.Capture.Mode != "REDIRECT" {
		pc["interceptionMode"] = c.Capture.Mode
	}
	if _, ok := pc["readinessProbe"]; !ok {
		pc["readinessProbe"] = map[string]any{} // istiod looks only whether there is one; without it no health report counts
	}
	return pc
}

// otherSettings lists the variables that are no settings of ours: they go to the node's metadata and to Envoy's environment.
func (l *loader) otherSettings() {
	for _, name := range slices.Sorted(maps.Keys(l.vars)) {
		if _, ours := settingByIstio(name); ours || strings.HasPrefix(name, "-") || name == "PROXY_CONFIG" || name == "ISTIO_AGENT_FLAGS" {
			continue
		}
		v := l.vars[name]
		l.c.settings = append(l.c.settings, Setting{Key: name, Istio: name, Value: redact(name, v.value), File: v.file, Line: v.line})
	}
}

// redact hides the value of a variable whose name says that it is a secret.
func redact(name, text string) string {
	for _, word := range []string{"TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL", "PRIVATE", "KEY", "HEADER", "AUTH"} {
		if strings.Contains(name, word) && text != "" {
			return "redacted"
		}
	}
	return text
}

func mapKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// forwardZones reads split DNS: which servers know the names below a suffix.
func (l *loader) forwardZones() {
	l.c.DNS.Forward = map[string][]netip.AddrPort{}
	servers := listOf(dnsServer, "servers")
	spelled := map[string]string{} // as it is written first
	zones := l.ownMap("dns.forward", true)
	for _, suffix := range mapKeys(zones) {
		v := zones[suffix]
		name, bad := dnsName.read(strings.TrimSuffix(suffix, "."))
		name = strings.ToLower(name)
		var list []netip.AddrPort
		if bad == nil {
			list, bad = servers(v.text)
		}
		if bad == nil && len(list) == 0 {
			bad = &badValue{found: "no servers", expected: "at least " + dnsServer.expected}
		}
		if bad == nil && slices.Contains(list, l.c.DNS.Listen) {
			bad = &badValue{found: l.c.DNS.Listen.String() + ", where this agent answers", expected: "other servers: the agent would ask itself"}
		}
		if first, twice := spelled[name]; bad == nil && twice {
			bad = &badValue{found: strconv.Quote(suffix), expected: "each suffix once: it is " + strconv.Quote(first) + " in another spelling"}
		}
		if bad != nil {
			l.add(Problem{Severity: Error, File: v.file, Line: v.line, Key: v.key, Found: bad.found, Expected: bad.expected, Hint: bad.hint})
			continue
		}
		l.c.DNS.Forward[name], spelled[name] = list, suffix
		l.set(v.key, v)
	}
}
