package bootstrap

import (
	"cmp"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"net"
	"net/netip"
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
	l.probe()
	l.addresses()
	l.capture()
	l.users()
	l.distinctPorts()
	l.checkVariables()
	l.c.Hosts = l.hosts()
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
			p.RootCert = under(l.c.Root, l.c.Paths.ProvCert+"/root-cert.pem")
		}
	}
	place(&p.Token)
	place(&p.ProvCert)
	place(&p.OutputCerts)
	place(&l.c.Log.File)
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

// endpoints fills in what the address settings leave open. istio-start.sh has CA_ADDR > PILOT_ADDRESS > ISTIO_PILOT_PORT >
// istiod.<namespace>.svc:15012 for the CA; a discovery address from elsewhere (mesh.yaml, wingman.yaml) comes before the last,
// as in pilot-agent, unless ISTIO_SYSTEM_NAMESPACE says where the CA is.
func (l *loader) endpoints() {
	c := l.c
	fallback := "istiod." + c.systemNamespace + ".svc:15012"
	if c.Discovery.Address == "" {
		c.Discovery.Address = fallback
		l.set("istiod.address", value{text: fallback, file: l.source("istiod.namespace").File, line: l.source("istiod.namespace").Line, rank: rankWingman})
	}
	own, discovery, ca := l.own["istiod.address"], l.source("istiod.address"), l.source("istiod.caAddress")
	explicit := ca.Istio == "CA_ADDR" || ca.File != "" && ca.Istio == ""
	switch {
	case explicit:
	case own.text != "":
		c.CA.Address = c.Discovery.Address
	case ca.File != "": // PILOT_ADDRESS or ISTIO_PILOT_PORT
	case l.isSet("istiod.namespace"):
		c.CA.Address = fallback
		discovery = l.source("istiod.namespace")
	default:
		c.CA.Address = c.Discovery.Address
	}
	if !explicit && (own.text != "" || ca.File == "") {
		c.settings = slices.DeleteFunc(c.settings, func(s Setting) bool { return s.Key == "istiod.caAddress" })
		c.settings = append(c.settings, Setting{Key: "istiod.caAddress", Value: c.CA.Address, File: discovery.File, Line: discovery.Line, Istio: discovery.Istio})
	}
	c.Discovery.ServerName = serverName(c.Discovery.Address, c.san)
	c.CA.ServerName = serverName(c.CA.Address, "")
	if !explicit || c.CA.Address == c.Discovery.Address {
		c.CA.ServerName = c.Discovery.ServerName
		if c.san == "" {
			c.CA.ServerName = serverName(c.CA.Address, "")
		}
	}
}

// serverName is the name to expect in the certificate of a server: san, else its host. A server on localhost is a tunnel to istiod.
func serverName(address, san string) string {
	if san != "" {
		return san
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return ""
	}
	if host == "localhost" {
		return "istiod.istio-system.svc"
	}
	return strings.TrimSuffix(host, ".")
}

// labels merges ISTIO_METAJSON_LABELS and workload.labels, and checks them as Kubernetes will when istiod makes the WorkloadEntry.
func (l *loader) labels() {
	l.c.Labels = map[string]string{}
	at := map[string]value{}
	if v, ok := l.vars["ISTIO_METAJSON_LABELS"]; ok && v.value != "" {
		var parsed map[string]string
		if err := json.Unmarshal([]byte(v.value), &parsed); err != nil {
			l.add(Problem{Severity: Error, File: v.file, Line: v.line, Key: "ISTIO_METAJSON_LABELS", Found: quote(v.value), Expected: "a JSON object of texts", Hint: jsonReason(err)})
		}
		for name, text := range parsed {
			l.c.Labels[name] = text
			at[name] = value{text: text, file: v.file, line: v.line, key: "ISTIO_METAJSON_LABELS", rank: v.rank}
		}
	}
	for name, v := range l.ownMap("workload.labels") {
		l.c.Labels[name] = v.text
		at[name] = v
	}
	for name, v := range at {
		l.set("workload.labels."+name, v)
		if localityLabels[name] {
			continue
		}
		if !validLabelName(name) || !validLabelValue(v.text) {
			l.add(Problem{Severity: Warning, File: v.file, Line: v.line, Key: v.key, Found: quote(name + "=" + v.text),
				Expected: "a label as Kubernetes takes it: at most 63 letters, digits, -, _ and . in name and value", Hint: "istiod could not make the WorkloadEntry"})
		}
	}
}

// localityLabels may hold slashes; istiod takes them out again.
var localityLabels = map[string]bool{"istio-locality": true, "topology.istio.io/locality": true}

func validLabelName(s string) bool {
	if prefix, name, ok := strings.Cut(s, "/"); ok {
		if _, ok := parseDNSLabel(prefix); !ok {
			return false
		}
		s = name
	}
	return s != "" && validLabelValue(s)
}

func validLabelValue(s string) bool {
	alnum := func(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' }
	if s == "" {
		return true
	}
	if len(s) > 63 || !alnum(s[0]) || !alnum(s[len(s)-1]) {
		return false
	}
	for i := range len(s) {
		if !alnum(s[i]) && !strings.ContainsRune("-_.", rune(s[i])) {
			return false
		}
	}
	return true
}

// jsonReason is what encoding/json says, without Go's types.
func jsonReason(err error) string {
	if _, ok := err.(*json.UnmarshalTypeError); ok {
		return "each value is a text in quotes"
	}
	return err.Error()
}

// ownMap reads a mapping of names to texts in wingman.yaml.
func (l *loader) ownMap(key string) map[string]value {
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
			if e.value.Kind != yaml.ScalarNode || isNull(e.value) {
				t.y.refuse(e.value, join(key, e.name), describe(e.value), "text", "")
				continue
			}
			m[e.name] = value{text: e.value.Value, file: t.y.file, line: t.y.line(e.key), key: join(key, e.name), rank: rankWingman}
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
			l.set("log.scopes."+name, value{text: level, file: v.file, line: v.line, key: shownName("--log_output_level"), rank: v.rank})
		}
	}
	for name, v := range l.ownMap("log.scopes") {
		level, bad := logLevel.read(v.text)
		if bad != nil {
			l.add(Problem{Severity: Error, File: v.file, Line: v.line, Key: v.key, Found: bad.found, Expected: bad.expected})
			continue
		}
		l.c.Log.Scopes[name] = level
		l.c.settings = slices.DeleteFunc(l.c.settings, func(s Setting) bool { return s.Key == v.key })
		l.set(v.key, v)
	}
}

// probe reads the readinessProbe: wingman.yaml's, else mesh.yaml's.
func (l *loader) probe() {
	read := func(y *yamlFile, n *yaml.Node, path string, strict bool, v value) {
		before := len(y.problems)
		l.c.Probe = readProbe(y, n, path, strict)
		raw, ok := plain(y, n, path)
		l.add(y.problems[before:]...)
		if ok && l.c.Probe != nil {
			l.proxy.fields["readinessProbe"] = raw
			v.text = l.c.Probe.String()
			l.set("probe", v)
		}
	}
	if t, ok := l.ownTrees["probe"]; ok {
		read(t.y, t.node, "probe", true, value{file: t.y.file, line: t.y.line(t.key), key: "probe", rank: rankWingman})
		return
	}
	if l.proxy.probe != nil {
		v := l.proxy.at["readinessProbe"]
		read(l.proxy.probeIn, l.proxy.probe, v.key, false, v)
	}
}

// String tells the probe in a few words.
func (p *Probe) String() string {
	switch {
	case p.HTTP != nil:
		return "httpGet " + p.HTTP.Scheme + "://" + net.JoinHostPort(p.HTTP.Host, strconv.Itoa(int(p.HTTP.Port))) + p.HTTP.Path
	case p.TCP != nil:
		return "tcpSocket " + net.JoinHostPort(p.TCP.Host, strconv.Itoa(int(p.TCP.Port)))
	case p.Exec != nil:
		return "exec " + strings.Join(p.Exec.Command, " ")
	case p.GRPC != nil:
		return "grpc " + strconv.Itoa(int(p.GRPC.Port)) + " " + p.GRPC.Service
	}
	return "none"
}

// addresses allows one instance address per family.
func (l *loader) addresses() {
	ips := l.c.InstanceIPs
	if len(ips) > 2 || len(ips) == 2 && ips[0].Is4() == ips[1].Is4() {
		l.refuse(Error, "workload.addresses", quote(l.source("workload.addresses").Value), "at most one IPv4 and one IPv6 address", "")
	}
}

// capture completes the rules' part from other settings and refuses what Istio's tool would take and misapply.
func (l *loader) capture() {
	c := &l.c.Capture
	c.DNS, c.DNSAll, c.DualStack, c.DNSPort = l.c.DNS.Capture, l.c.DNS.CaptureAll, l.c.DualStack, l.c.DNS.Listen.Port()
	if len(c.OwnerGroups) > 64 {
		l.refuse(Error, "rules.groups", fmt.Sprintf("%d groups", len(c.OwnerGroups)), "at most 64", "a rule cannot hold more")
	}
	for key, groups := range map[string][]string{"rules.groups": c.OwnerGroups, "rules.excludeGroups": c.OwnerGroupsExclude} {
		for _, name := range groups {
			if _, err := LookupGroup(l.c.Root, name); err != nil {
				l.refuse(Error, key, quote(name), "a group of this machine, or a gid", "")
			}
		}
	}
	for key, cidrs := range map[string][]netip.Prefix{"rules.outboundCIDRs": c.OutboundCIDRs, "rules.outboundExcludeCIDRs": c.OutboundExcludeCIDRs} {
		four := slices.ContainsFunc(cidrs, func(p netip.Prefix) bool { return p.Addr().Is4() })
		six := slices.ContainsFunc(cidrs, func(p netip.Prefix) bool { return p.Addr().Is6() })
		if four && six && !l.c.DualStack {
			l.refuse(Warning, key, "CIDRs of both families without dualStack", "those of one", "only this machine's own family gets rules; set dualStack for both")
		}
	}
	if l.c.Identity.GraceRatio-l.c.Identity.GraceJitter <= 0 || l.c.Identity.GraceRatio+l.c.Identity.GraceJitter >= 1 {
		l.refuse(Error, "identity.graceJitter", quote(l.source("identity.graceJitter").Value), "less than graceRatio, and less than what is left of it to 1", "")
	}
}

// users finds the ids of the user whose traffic is never captured.
func (l *loader) users() {
	c := &l.c.Capture
	uid, gid, err := LookupUser(l.c.Root, c.User)
	c.UserKnown = err == nil
	if err != nil {
		if !l.isSet("rules.proxyUID") {
			l.refuse(Warning, "user", "no user "+quote(c.User)+" on this machine", "one", "without it no capture rules are put in: useradd --system "+c.User)
		}
		uid, gid = istioProxyID, istioProxyID
	}
	if l.isSet("rules.proxyUID") {
		c.UserKnown = true
	} else {
		c.ProxyUID = uid
	}
	if !l.isSet("rules.proxyGID") {
		c.ProxyGID = gid
	}
}

// istioProxyID is what Istio takes when the user does not exist (constants.DefaultProxyUID in tools/istio-iptables).
const istioProxyID = 1337

// distinctPorts refuses two listeners on one port.
func (l *loader) distinctPorts() {
	c := l.c
	taken := map[uint16]string{}
	for _, p := range []struct {
		key  string
		port uint16
	}{
		{"dns.listen", c.DNS.Listen.Port()}, {"status.port", c.Status.Port}, {"status.readinessPort", c.Status.ReadinessPort},
		{"status.prometheusPort", c.Status.PrometheusPort}, {"envoy.adminPort", c.Envoy.AdminPort}, {"rules.proxyPort", c.Capture.ProxyPort},
		{"rules.inboundPort", c.Capture.InboundPort}, {"rules.tunnelPort", c.Capture.TunnelPort},
	} {
		if other, ok := taken[p.port]; ok && p.port != 0 {
			key := p.key
			if !l.isSet(key) {
				key, other = other, key
			}
			l.refuse(Error, key, fmt.Sprint(p.port), "a port of its own", other+" has it too")
		}
		taken[p.port] = p.key
	}
}

// rootCert checks that the root file holds certificates; dates are checked when it is used.
func (l *loader) rootCert() {
	file := l.c.Paths.RootCert
	problem := Problem{Severity: Error, Key: KeyRootCert, Hint: "copy root-cert.pem of istioctl x workload entry configure here"}
	src, ok := l.read(file, problem)
	if !ok {
		return
	}
	problem.File, problem.Expected = file, "certificates in PEM"
	count := 0
	rest := src
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		count++
		if block.Type != "CERTIFICATE" {
			problem.Found = "a " + strings.ToLower(block.Type) + " as block " + strconv.Itoa(count)
			l.add(problem)
			return
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			problem.Found = "block " + strconv.Itoa(count) + " that is no certificate"
			l.add(problem)
			return
		}
	}
	switch {
	case strings.Contains(string(rest), "-----BEGIN"):
		problem.Found = "a truncated block after " + strconv.Itoa(count) + " certificates"
	case len(src) == 0:
		problem.Found = "an empty file"
	case count == 0:
		problem.Found = "no certificate"
	default:
		return
	}
	l.add(problem)
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
