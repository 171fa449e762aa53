package bootstrap

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"
)

// machine is a root folder with files in it.
type machine struct {
	t    testing.TB
	root string
}

// Places of the files below a root.
const (
	clusterEnv  = "/var/lib/istio/envoy/cluster.env"
	sidecarEnv  = "/var/lib/istio/envoy/sidecar.env"
	meshConfig  = "/etc/istio/config/mesh"
	hostsFile   = "/var/lib/istio/envoy/hosts"
	rootCert    = "/etc/certs/root-cert.pem"
	wingmanYAML = "/etc/wingman/wingman.yaml"
)

// fixtures are istioctl's files, without the token, and an istio-proxy user.
func fixtures(t testing.TB) map[string]string {
	t.Helper()
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join("testdata/istioctl", name))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	return map[string]string{
		clusterEnv:    read("cluster.env"),
		meshConfig:    read("mesh.yaml"),
		hostsFile:     read("hosts"),
		rootCert:      read("root-cert.pem"),
		"/etc/passwd": "root:x:0:0:root:/root:/bin/sh\nistio-proxy:x:995:994::/var/lib/istio:/sbin/nologin\n",
		"/etc/group":  "root:x:0:\nistio-proxy:x:994:\nstaff:x:50:\n",
	}
}

// newMachine lays out istioctl's files, changed by files: path to content, where "-" takes a file away.
func newMachine(t testing.TB, files map[string]string) machine {
	t.Helper()
	m := machine{t: t, root: t.TempDir()}
	all := fixtures(t)
	maps.Copy(all, files)
	for path, content := range all {
		if content != "-" {
			m.write(path, content)
		}
	}
	return m
}

func (m machine) write(path, content string) {
	m.t.Helper()
	path = filepath.Join(m.root, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		m.t.Fatal(err)
	}
}

// load fails the test when there is a problem of severity Error.
func (m machine) load() (*Config, Problems) {
	m.t.Helper()
	c, problems := Load(m.root)
	if err := problems.Err(); err != nil {
		m.t.Fatalf("load: %v", err)
	}
	if c == nil {
		m.t.Fatal("no error and no config")
	}
	return c, problems
}

// told returns the problems with the root taken out of file names, and severity first.
func (m machine) told(problems Problems) []string {
	var lines []string
	for _, p := range problems {
		p.File = strings.TrimPrefix(p.File, m.root)
		p.Hint = strings.ReplaceAll(p.Hint, m.root, "")
		lines = append(lines, p.Severity.String()+": "+p.String())
	}
	return lines
}

func TestLoadTellsEveryProblem(t *testing.T) {
	const noRoot = "(copy root-cert.pem of istioctl x workload entry configure here)"
	const how = "(make it with istioctl x workload entry configure and copy it here)"
	certificate := fixtures(t)[rootCert]
	for _, tt := range []struct {
		name  string
		files map[string]string
		want  []string
	}{
		{"istioctl's own files have none", nil, nil},
		{"no cluster.env", map[string]string{clusterEnv: "-"}, []string{"error: /var/lib/istio/envoy/cluster.env: found no file, expected one " + how}},
		{"an empty cluster.env", map[string]string{clusterEnv: ""}, []string{"error: /var/lib/istio/envoy/cluster.env: found no variables, expected istioctl's cluster.env " + how}},
		{"a cluster.env of comments", map[string]string{clusterEnv: "# nothing\n"}, []string{"error: /var/lib/istio/envoy/cluster.env: found no variables, expected istioctl's cluster.env " + how}},
		{"no mesh.yaml", map[string]string{meshConfig: "-"}, []string{
			"warning: /etc/istio/config/mesh: found no file, expected one (Istio's defaults are used, and there is no readiness probe unless wingman.yaml has one)"}},
		{"an empty mesh.yaml", map[string]string{meshConfig: ""}, []string{
			"warning: /etc/istio/config/mesh: found an empty file, expected istioctl's mesh.yaml (Istio's defaults are used, and there is no readiness probe unless wingman.yaml has one)"}},
		{"a mesh.yaml of comments", map[string]string{meshConfig: "# nothing\n"}, []string{
			"warning: /etc/istio/config/mesh: found an empty file, expected istioctl's mesh.yaml (Istio's defaults are used, and there is no readiness probe unless wingman.yaml has one)"}},
		{"a mesh.yaml that is a list", map[string]string{meshConfig: "- a\n"}, []string{"error: /etc/istio/config/mesh:1: found a list, expected a mapping of keys to values"}},
		{"a mesh.yaml that is not YAML", map[string]string{meshConfig: "defaultConfig:\n  a: b: c\n"}, []string{
			"error: /etc/istio/config/mesh:2: found mapping values are not allowed in this context, expected valid YAML"}},
		{"a mesh.yaml with tabs", map[string]string{meshConfig: "defaultConfig:\n\tmeshId: a\n"}, []string{
			"error: /etc/istio/config/mesh:2: found character that cannot start any token, expected valid YAML"}},
		{"fields at the wrong height", map[string]string{meshConfig: "discoveryAddress: a:15012\n"}, []string{
			"warning: /etc/istio/config/mesh:1: defaultConfig: found no such key, expected a MeshConfig with defaultConfig (Istio's defaults are used)",
			"warning: /etc/istio/config/mesh:1: discoveryAddress: found a field of ProxyConfig at the top, expected it below defaultConfig (it has no effect here)"}},
		{"fields of another type", map[string]string{meshConfig: "defaultConfig:\n  statusPort: x\n  proxyMetadata: [a]\n  tracing: 5\n  drainDuration: 5\n  extraStatTags: a\n  statsCompression: maybe\n  discoveryAddress: {a: b}\n"}, []string{
			`error: /etc/istio/config/mesh:2: defaultConfig.statusPort: found "x", expected a whole number`,
			"error: /etc/istio/config/mesh:3: defaultConfig.proxyMetadata: found a list, expected a mapping of names to texts",
			`error: /etc/istio/config/mesh:4: defaultConfig.tracing: found "5", expected a mapping`,
			`error: /etc/istio/config/mesh:5: defaultConfig.drainDuration: found "5", expected a duration such as 45s`,
			`error: /etc/istio/config/mesh:6: defaultConfig.extraStatTags: found "a", expected a list of texts`,
			`error: /etc/istio/config/mesh:7: defaultConfig.statsCompression: found "maybe", expected true or false`,
			"error: /etc/istio/config/mesh:8: defaultConfig.discoveryAddress: found a mapping, expected text"}},
		{"two probes at once", map[string]string{meshConfig: "defaultConfig:\n  readinessProbe:\n    tcpSocket: {port: 80}\n    httpGet: {port: 80}\n"}, []string{
			"error: /etc/istio/config/mesh:3: defaultConfig.readinessProbe: found tcpSocket and httpGet, expected one probe (keep one of them)"}},
		{"a probe of nothing", map[string]string{wingmanYAML: "probe:\n  periodSeconds: 5\n"}, []string{
			"error: /etc/wingman/wingman.yaml:2: probe: found no probe, expected one of httpGet, tcpSocket, exec, grpc, systemdUnit, all"}},
		{"two probes in our own file", map[string]string{wingmanYAML: "probe:\n  tcpSocket: {port: 80}\n  systemdUnit: a.service\n"}, []string{
			"error: /etc/wingman/wingman.yaml:2: probe: found tcpSocket and systemdUnit, expected one probe (keep one of them, or put them into all)"}},
		{"bad parts of our own probes", map[string]string{wingmanYAML: "probe:\n  all:\n  - systemdUnit: myapp\n  - exec: {command: [a], memoryBytes: 5}\n  - all: []\n  damping: {changes: 1, windowSeconds: 60}\n"}, []string{
			`error: /etc/wingman/wingman.yaml:3: probe.all[0].systemdUnit: found "myapp", expected the name of a unit, as myapp.service`,
			`error: /etc/wingman/wingman.yaml:4: probe.all[1].exec.memoryBytes: found "5", expected a number of bytes from 1048576 on`,
			"error: /etc/wingman/wingman.yaml:5: probe.all[2].all: found an unknown key, expected one of httpGet, tcpSocket, exec, grpc, systemdUnit, initialDelaySeconds, timeoutSeconds, periodSeconds, successThreshold, failureThreshold",
			"error: /etc/wingman/wingman.yaml:5: probe.all[2]: found no probe, expected one of httpGet, tcpSocket, exec, grpc, systemdUnit",
			"error: /etc/wingman/wingman.yaml:6: probe.damping: found changes 1, windowSeconds 60, holdSeconds 0, expected at least 2 changes, and both times at least 1"}},
		{"our own probes in Istio's file", map[string]string{meshConfig: "defaultConfig:\n  readinessProbe:\n    systemdUnit: a.service\n    tcpSocket: {port: 80}\n"}, []string{
			"warning: /etc/istio/config/mesh:3: defaultConfig.readinessProbe.systemdUnit: found an unknown key, expected one of httpGet, tcpSocket, exec, grpc, initialDelaySeconds, timeoutSeconds, periodSeconds, successThreshold, failureThreshold"}},
		{"what Istio's tool would take and misapply", map[string]string{clusterEnv: "ISTIO_NAMESPACE=n\nISTIO_INBOUND_TPROXY_MARK=1338\nPROXY_UID=0\nPROXY_GID=994,0\n"}, []string{
			`error: /var/lib/istio/envoy/cluster.env:2: ISTIO_INBOUND_TPROXY_MARK: found 1338, expected another mark (Istio marks Envoy's own connections with it)`,
			"error: /var/lib/istio/envoy/cluster.env:3: PROXY_UID: found 0, expected the id of a user that is not root (the traffic of root could not be told from Envoy's)",
			"error: /var/lib/istio/envoy/cluster.env:4: PROXY_GID: found 0, expected the id of a user that is not root (the traffic of root could not be told from Envoy's)"}},
		{"what has no effect beside other settings", map[string]string{wingmanYAML: "capture: ports:[8080]\nrules: {mode: NONE, inboundPorts: [80], inboundExcludePorts: [22], groups: [root], excludeGroups: [root], outboundCIDRs: [\"2001:db8::/32\"]}\n"}, []string{
			"warning: /etc/wingman/wingman.yaml:1: capture: found ports with rules.mode NONE, expected REDIRECT or TPROXY (NONE captures no TCP at all)",
			`warning: /etc/wingman/wingman.yaml:2: rules.excludeGroups: found excluded groups beside a list of captured ones, expected groups "*" (they count only with it; take them out of the list instead)`,
			`warning: /etc/wingman/wingman.yaml:2: rules.inboundExcludePorts: found excluded ports beside a list of captured ones, expected inboundPorts "*" (they count only with it; take them out of the list instead)`,
			"warning: /etc/wingman/wingman.yaml:2: rules.outboundCIDRs: found CIDRs of IPv6 alone without dualStack, expected dualStack: true (on a machine that has IPv4 too no outbound connection is captured)"}},
		{"DNS alone without DNS", map[string]string{wingmanYAML: "capture: dns\ndns: {capture: false}\n"}, []string{
			"warning: /etc/wingman/wingman.yaml:1: capture: found dns while dns.capture is false, expected dns.capture: true (nothing is captured)"}},
		{"systemd-resolved and nothing to tell it", map[string]string{wingmanYAML: "dns: {mode: resolved, capture: false}\n"}, []string{
			"warning: /etc/wingman/wingman.yaml:1: dns.mode: found resolved while dns.capture is false, expected dns.capture: true (mesh names are not registered)"}},
		{"systemd-resolved beside no capture at all", map[string]string{wingmanYAML: "dns: {mode: resolved, capture: true, captureAll: true}\ncapture: none\n"}, []string{
			"warning: /etc/wingman/wingman.yaml:1: dns.captureAll: found true with dns.mode resolved, expected false (no query is redirected then)",
			"warning: /etc/wingman/wingman.yaml:1: dns.mode: found resolved while capture is none, expected another level of capture (mesh names are not registered)"}},
		{"capture of DNS by systemd-resolved is capture of DNS", map[string]string{wingmanYAML: "dns: {mode: resolved, capture: true}\ncapture: dns\n"}, nil},
		{"ports 0 and 70000, and no port, in probes", map[string]string{meshConfig: "defaultConfig:\n  readinessProbe:\n    httpGet:\n      port: 70000\n",
			wingmanYAML: "probe:\n  tcpSocket: {port: 0}\n"}, []string{ // wingman.yaml's counts: the other is not read
			`error: /etc/wingman/wingman.yaml:2: probe.tcpSocket.port: found "0", expected a port from 1 to 65535`}},
		{"a probe without a port", map[string]string{wingmanYAML: "probe:\n  grpc: {}\n"}, []string{
			"error: /etc/wingman/wingman.yaml:2: probe.grpc.port: found no port, expected a port from 1 to 65535"}},
		{"a probe with a misspelt key", map[string]string{wingmanYAML: "probe:\n  exec: {comand: [a]}\n"}, []string{
			"error: /etc/wingman/wingman.yaml:2: probe.exec.comand: found an unknown key, expected one of command (did you mean command?)",
			"error: /etc/wingman/wingman.yaml:2: probe.exec.command: found no command, expected a program and its arguments"}},
		{"probes with bad parts", map[string]string{meshConfig: "defaultConfig:\n  readinessProbe:\n    timeoutSeconds: -1\n    successThreshold: x\n    httpGet:\n      port: 80\n      scheme: ftp\n      httpHeaders: [{name: \"a b\", value: c}]\n"}, []string{
			`error: /etc/istio/config/mesh:3: defaultConfig.readinessProbe.timeoutSeconds: found "-1", expected a number of seconds from 0 to 86400`,
			`error: /etc/istio/config/mesh:4: defaultConfig.readinessProbe.successThreshold: found "x", expected a number of probes from 1 to 1000`,
			`error: /etc/istio/config/mesh:7: defaultConfig.readinessProbe.httpGet.scheme: found "ftp", expected HTTP or HTTPS`,
			`error: /etc/istio/config/mesh:8: defaultConfig.readinessProbe.httpGet.httpHeaders[0]: found "a b", expected a header's name and a value of one line`}},
		{"no root", map[string]string{rootCert: "-"}, []string{"error: /etc/certs/root-cert.pem: root-cert: found no file, expected one " + noRoot}},
		{"certificates into the agent's own store", map[string]string{wingmanYAML: "identity: {outputDir: /var/lib/wingman/identity/current}\n"}, []string{
			`error: /etc/wingman/wingman.yaml:1: identity.outputDir: found "/var/lib/wingman/identity/current", expected a folder that is not the agent's own, as /var/lib/wingman and /run/wingman are`}},
		{"certificates into the agent's run folder", map[string]string{wingmanYAML: "identity: {outputDir: /run/wingman}\n"}, []string{
			`error: /etc/wingman/wingman.yaml:1: identity.outputDir: found "/run/wingman", expected a folder that is not the agent's own, as /var/lib/wingman and /run/wingman are`}},
		{"an empty root", map[string]string{rootCert: ""}, []string{"error: /etc/certs/root-cert.pem: root-cert: found an empty file, expected certificates in PEM " + noRoot}},
		{"a root that is not PEM", map[string]string{rootCert: "garbage"}, []string{"error: /etc/certs/root-cert.pem: root-cert: found no certificate, expected certificates in PEM " + noRoot}},
		{"a root with garbage in PEM", map[string]string{rootCert: "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"}, []string{
			"error: /etc/certs/root-cert.pem: root-cert: found block 1 that is no certificate, expected certificates in PEM " + noRoot}},
		{"a truncated root", map[string]string{rootCert: certificate + certificate[:300]}, []string{
			"error: /etc/certs/root-cert.pem: root-cert: found a truncated block after 1 certificates, expected certificates in PEM " + noRoot}},
		{"a key where the root should be", map[string]string{rootCert: "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"}, []string{
			"error: /etc/certs/root-cert.pem: root-cert: found a private key as block 1, expected certificates in PEM " + noRoot}},
		{"an unclosed quote in sidecar.env", map[string]string{sidecarEnv: "A='1\n"}, []string{
			"error: /var/lib/istio/envoy/sidecar.env:1: found a quote that is never closed, expected a closing '"}},
		{"garbage in the labels", map[string]string{sidecarEnv: "ISTIO_METAJSON_X='[1]'\n", clusterEnv: "A=1\nISTIO_METAJSON_LABELS='{\"app\": forum}'\n"}, []string{
			`error: /var/lib/istio/envoy/cluster.env:2: ISTIO_METAJSON_LABELS: found "{\"app\": forum}", expected a JSON object of texts (invalid character 'o' in literal false (expecting 'a'))`,
			`error: /var/lib/istio/envoy/sidecar.env:1: ISTIO_METAJSON_X: found "[1]", expected a JSON object`}},
		{"labels that are no texts", map[string]string{clusterEnv: "ISTIO_METAJSON_LABELS='{\"app\": 5}'\n"}, []string{
			`error: /var/lib/istio/envoy/cluster.env:1: ISTIO_METAJSON_LABELS: found "{\"app\": 5}", expected a JSON object of texts (each value is a text in quotes)`}},
		{"labels that Kubernetes refuses", map[string]string{wingmanYAML: "workload:\n  labels:\n    owner: a b\n"}, []string{
			`warning: /etc/wingman/wingman.yaml:3: workload.labels.owner: found "owner=a b", expected a label as Kubernetes takes it: at most 63 letters, digits, -, _ and . in name and value (istiod could not make the WorkloadEntry)`}},
		{"addresses that are none", map[string]string{sidecarEnv: "PILOT_ADDRESS=http://istiod:15012\nCA_ADDR=istiod.istio-system.svc\n"}, []string{
			`error: /var/lib/istio/envoy/sidecar.env:1: PILOT_ADDRESS: found "http://istiod:15012", expected host:port (without a scheme such as http://, an IPv6 address in brackets)`,
			`error: /var/lib/istio/envoy/sidecar.env:2: CA_ADDR: found "istiod.istio-system.svc", expected host:port (without a scheme such as http://, an IPv6 address in brackets)`}},
		{"a port of istiod that is none", map[string]string{sidecarEnv: "ISTIO_PILOT_PORT=70000\n"}, []string{
			`error: /var/lib/istio/envoy/sidecar.env:1: ISTIO_PILOT_PORT: found "70000", expected a port from 1 to 65535`}},
		{"capture that Istio's tool would take and misapply", map[string]string{sidecarEnv: strings.Join([]string{
			"ISTIO_SERVICE_EXCLUDE_CIDR=192.168.0.0/16,10.0.0.0/33", "ISTIO_LOCAL_OUTBOUND_PORTS_EXCLUDE=3306,9100-9000", "ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR=::1/128",
			"ISTIO_OUTBOUND_PORTS=0", "ISTIO_EXCLUDE_INTERFACES=a-very-long-interface", "ISTIO_OUTBOUND_OWNER_GROUPS=staff,nobody-has-this,50",
			"ISTIO_INBOUND_INTERCEPTION_MODE=MAGIC", "ISTIO_INBOUND_TPROXY_ROUTE_TABLE=255"}, "\n"),
			clusterEnv: "ISTIO_INBOUND_PORTS='*,80'\nISTIO_LOCAL_EXCLUDE_PORTS='22,70000'\n"}, []string{
			`error: /var/lib/istio/envoy/cluster.env:1: ISTIO_INBOUND_PORTS: found "*" among others, expected "*" alone or ports, each a port from 1 to 65535`,
			`error: /var/lib/istio/envoy/cluster.env:2: ISTIO_LOCAL_EXCLUDE_PORTS: found "70000", expected ports, each a port from 1 to 65535`,
			`error: /var/lib/istio/envoy/sidecar.env:1: ISTIO_SERVICE_EXCLUDE_CIDR: found "10.0.0.0/33", expected CIDRs, each a CIDR such as 10.96.0.0/16`,
			`error: /var/lib/istio/envoy/sidecar.env:2: ISTIO_LOCAL_OUTBOUND_PORTS_EXCLUDE: found "9100-9000", expected ports, each a port from 1 to 65535 or a range such as 9000:9100`,
			`error: /var/lib/istio/envoy/sidecar.env:3: ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR: found "::1/128", expected an IPv4 loopback CIDR from 127.0.0.0/8 to 127.0.0.1/32`,
			`error: /var/lib/istio/envoy/sidecar.env:4: ISTIO_OUTBOUND_PORTS: found "0", expected ports, each a port from 1 to 65535`,
			`error: /var/lib/istio/envoy/sidecar.env:5: ISTIO_EXCLUDE_INTERFACES: found "a-very-long-interface", expected interfaces, each an interface name of 1 to 15 characters`,
			`error: /var/lib/istio/envoy/sidecar.env:6: ISTIO_OUTBOUND_OWNER_GROUPS: found "nobody-has-this", expected a group of this machine, or a gid`,
			`error: /var/lib/istio/envoy/sidecar.env:7: ISTIO_INBOUND_INTERCEPTION_MODE: found "MAGIC", expected one of REDIRECT, TPROXY, NONE`,
			`error: /var/lib/istio/envoy/sidecar.env:8: ISTIO_INBOUND_TPROXY_ROUTE_TABLE: found "255", expected a routing table from 1 to 252`}},
		{"a loopback CIDR that is more than loopback", map[string]string{wingmanYAML: "rules: {loopbackCIDR: 127.0.0.1/7}\n"}, []string{
			`error: /etc/wingman/wingman.yaml:1: rules.loopbackCIDR: found "127.0.0.1/7", expected an IPv4 loopback CIDR from 127.0.0.0/8 to 127.0.0.1/32`}},
		{"both families without dual stack", map[string]string{sidecarEnv: "ISTIO_SERVICE_EXCLUDE_CIDR=10.0.0.0/8,fd00::/8\n"}, []string{
			"warning: /var/lib/istio/envoy/sidecar.env:1: ISTIO_SERVICE_EXCLUDE_CIDR: found CIDRs of both families without dualStack, expected those of one (only this machine's own family gets rules; set dualStack for both)"}},
		{"durations that make no sense", map[string]string{sidecarEnv: "SECRET_TTL='12 hours'\nDNS_FORWARD_TIMEOUT=-5s\n", wingmanYAML: "identity:\n  ttl: 24\nenvoy:\n  drainDuration: 1.5s\n"}, []string{
			`error: /etc/wingman/wingman.yaml:2: identity.ttl: found "24", expected a duration from 5s to 87600h (a number with its unit, as 500ms, 20s or 12h)`,
			`error: /etc/wingman/wingman.yaml:4: envoy.drainDuration: found "1.5s", expected a duration of whole seconds from 1s to 1h (a number with its unit, as 500ms, 20s or 12h)`,
			`error: /var/lib/istio/envoy/sidecar.env:2: DNS_FORWARD_TIMEOUT: found "-5s", expected a duration from 10ms to 1m (a number with its unit, as 500ms, 20s or 12h)`}},
		{"ratios that never renew", map[string]string{sidecarEnv: "SECRET_GRACE_PERIOD_RATIO=0.99\nSECRET_GRACE_PERIOD_RATIO_JITTER=0.2\n"}, []string{
			`error: /var/lib/istio/envoy/sidecar.env:2: SECRET_GRACE_PERIOD_RATIO_JITTER: found "0.2", expected less than graceRatio, and less than what is left of it to 1`}},
		{"addresses of this machine that cannot be its own", map[string]string{sidecarEnv: "ISTIO_SVC_IP=127.0.0.1\n"}, []string{
			`error: /var/lib/istio/envoy/sidecar.env:1: ISTIO_SVC_IP: found "127.0.0.1", expected at most one IPv4 and one IPv6 address, each an address other hosts can reach`}},
		{"two addresses of a family", map[string]string{sidecarEnv: "ISTIO_SVC_IP=10.0.0.1,10.0.0.2\n"}, []string{
			`error: /var/lib/istio/envoy/sidecar.env:1: ISTIO_SVC_IP: found "10.0.0.1,10.0.0.2", expected at most one IPv4 and one IPv6 address`}},
		{"two listeners on a port", map[string]string{wingmanYAML: "status:\n  port: 15021\n"}, []string{
			"error: /etc/wingman/wingman.yaml:2: status.port: found 15021, expected a port of its own (status.readinessPort has it too)"}},
		{"applications that are none, or the agent itself", map[string]string{sidecarEnv: "A=1\nISTIO_PROMETHEUS_ANNOTATIONS='{\"port\":8080}'\n",
			wingmanYAML: "metrics:\n  applications: [8080, \"015020:/x\", 8080, 15090]\n"}, []string{
			`error: /etc/wingman/wingman.yaml:2: metrics.applications: found port 15020, expected a port of the application (status.port has it: the agent would ask itself or Envoy)`,
			`error: /etc/wingman/wingman.yaml:2: metrics.applications: found "8080:/metrics" twice, expected each target once`,
			`error: /etc/wingman/wingman.yaml:2: metrics.applications: found port 15090, expected a port of the application (status.prometheusPort has it: the agent would ask itself or Envoy)`}},
		{"an annotation of another port of ours", map[string]string{wingmanYAML: "status: {port: 8080}\n", sidecarEnv: "ISTIO_PROMETHEUS_ANNOTATIONS='{\"port\":\"8080\"}'\n"}, []string{
			`error: /var/lib/istio/envoy/sidecar.env:1: ISTIO_PROMETHEUS_ANNOTATIONS: found port 8080, expected a port of the application (status.port has it: the agent would ask itself or Envoy)`}},
		{"an annotation with a number", map[string]string{sidecarEnv: "\nISTIO_PROMETHEUS_ANNOTATIONS='{\"port\":8080}'\n"}, []string{
			`error: /var/lib/istio/envoy/sidecar.env:2: ISTIO_PROMETHEUS_ANNOTATIONS: found "{\"port\":8080}", expected a JSON object of texts such as {"scrape":"true","port":"8080","path":"/metrics"}`}},
		{"an annotation that is not JSON", map[string]string{sidecarEnv: "ISTIO_PROMETHEUS_ANNOTATIONS=true:8080\n"}, []string{
			`error: /var/lib/istio/envoy/sidecar.env:1: ISTIO_PROMETHEUS_ANNOTATIONS: found "true:8080", expected a JSON object of texts such as {"scrape":"true","port":"8080","path":"/metrics"} (invalid character ':' after top-level value)`}},
		{"an annotation of a port that is none", map[string]string{sidecarEnv: "ISTIO_PROMETHEUS_ANNOTATIONS='{\"targets\":[{\"port\":\"80,81\"}]}'\n"}, []string{
			`error: /var/lib/istio/envoy/sidecar.env:1: ISTIO_PROMETHEUS_ANNOTATIONS: found "80,81", expected a port from 1 to 65535`}},
		{"an annotation of a path that is none", map[string]string{sidecarEnv: "ISTIO_PROMETHEUS_ANNOTATIONS='{\"path\":\"metrics\"}'\n"}, []string{
			`error: /var/lib/istio/envoy/sidecar.env:1: ISTIO_PROMETHEUS_ANNOTATIONS: found "80:metrics", expected targets, each a port, with a path if that is not /metrics, as 8080 or 8080:/stats`}},
		{"unknown keys of wingman.yaml", map[string]string{wingmanYAML: "dns:\n  listn: 127.0.0.1:53\n  frobnicate: 1\ninboundPorts: [80]\nISTIO_SVC_IP: 10.0.0.1\n"}, []string{
			"error: /etc/wingman/wingman.yaml:2: dns.listn: found an unknown key, expected one of capture, mode, captureAll, listen, forwardTimeout, forward, cacheSize, maxStale, ipv6 (did you mean listen?)",
			"error: /etc/wingman/wingman.yaml:3: dns.frobnicate: found an unknown key, expected one of capture, mode, captureAll, listen, forwardTimeout, forward, cacheSize, maxStale, ipv6",
			"error: /etc/wingman/wingman.yaml:4: inboundPorts: found an unknown key, expected one of istiod, workload, dualStack, user, identity, drain, xds, probe, probeLocalhost, dns, capture, rules, envoy, status, metrics, log (did you mean rules.inboundPorts?)",
			"error: /etc/wingman/wingman.yaml:5: ISTIO_SVC_IP: found an unknown key, expected one of istiod, workload, dualStack, user, identity, drain, xds, probe, probeLocalhost, dns, capture, rules, envoy, status, metrics, log (Istio's ISTIO_SVC_IP is workload.addresses here)"}},
		{"values of wingman.yaml of another type", map[string]string{wingmanYAML: "dns: true\ncapture: [all]\nstatus: {port: {a: 1}}\nrules: {inboundPorts: [80, [81]]}\nxds: {delta: perhaps}\nworkload: {labels: [a]}\n"}, []string{
			`error: /etc/wingman/wingman.yaml:1: dns: found "true", expected a mapping with capture, mode, captureAll, listen, forwardTimeout, forward, cacheSize, maxStale, ipv6`,
			"error: /etc/wingman/wingman.yaml:2: capture: found a list, expected one of auto, none, dns, all, ports:[…] with ports from 1 to 65535",
			"error: /etc/wingman/wingman.yaml:3: status.port: found a mapping, expected a port from 1 to 65535",
			`error: /etc/wingman/wingman.yaml:4: rules.inboundPorts: found a list, expected "*" or ports, each a port from 1 to 65535`,
			`error: /etc/wingman/wingman.yaml:5: xds.delta: found "perhaps", expected true or false`,
			"error: /etc/wingman/wingman.yaml:6: workload.labels: found a list, expected a mapping of labels to values"}},
		{"empty values in wingman.yaml, where empty says nothing", map[string]string{wingmanYAML: "rules: {mode: \"\"}\nstatus: {port: \"\"}\nuser:\nworkload: {network: \"\", group: \"\"}\n"}, []string{
			`error: /etc/wingman/wingman.yaml:1: rules.mode: found an empty value, expected one of REDIRECT, TPROXY, NONE (leave the key out for what the other files say)`,
			"error: /etc/wingman/wingman.yaml:2: status.port: found an empty value, expected a port from 1 to 65535 (leave the key out for what the other files say)"}},
		{"the roots of the system", map[string]string{sidecarEnv: "XDS_ROOT_CA=SYSTEM\n"}, []string{
			`error: /var/lib/istio/envoy/sidecar.env:1: XDS_ROOT_CA: found "SYSTEM", expected a file of certificates (such as /etc/ssl/certs/ca-certificates.crt)`}},
		{"a key twice", map[string]string{wingmanYAML: "capture: all\ncapture: none\n"}, []string{
			"error: /etc/wingman/wingman.yaml:2: capture: found the key a second time, expected it once (line 1 has it already)"}},
		{"a second document", map[string]string{wingmanYAML: "capture: all\n---\ncapture: none\n"}, []string{
			"error: /etc/wingman/wingman.yaml:1: found several documents, expected one (remove what follows ---)"}},
		{"variables that nobody reads", map[string]string{sidecarEnv: "ISTIO_INBOUND_EXCLUDE_PORTS=8080\nISTIO_REROUTE_VIRTUAL_INTERFACES=virbr0\nENVOY_PORT=15001\nISTIO_INBOND_PORTS=80\nFILE_MOUNTED_CERTS=true\nMY_OWN=1\n"}, []string{
			"warning: /var/lib/istio/envoy/sidecar.env:1: ISTIO_INBOUND_EXCLUDE_PORTS: found a variable that nothing reads, expected ISTIO_LOCAL_EXCLUDE_PORTS (it has no effect)",
			"warning: /var/lib/istio/envoy/sidecar.env:2: ISTIO_REROUTE_VIRTUAL_INTERFACES: found a variable that nothing reads, expected KUBE_VIRT_INTERFACES (it has no effect)",
			"warning: /var/lib/istio/envoy/sidecar.env:3: ENVOY_PORT: found a variable that nothing reads, expected rules.proxyPort of wingman.yaml (it has no effect)",
			"warning: /var/lib/istio/envoy/sidecar.env:4: ISTIO_INBOND_PORTS: found a variable that nothing reads (did you mean ISTIO_INBOUND_PORTS?)",
			`warning: /var/lib/istio/envoy/sidecar.env:5: FILE_MOUNTED_CERTS: found "true", which has no effect here (certificates come from the CA)`}},
		{"metadata that istiod could not decode", map[string]string{sidecarEnv: "ISTIO_META_DNS_AUTO_ALLOCATE=yes\nISTIO_META_POD_PORTS=8080\nISTIO_METAJSON_X='{\"NETWORK\":5,\"LABELS\":\"x\"}'\nISTIO_META_ANNOTATIONS=x\n"}, []string{
			`error: /var/lib/istio/envoy/sidecar.env:1: ISTIO_META_DNS_AUTO_ALLOCATE: found "yes", expected true or false`,
			`error: /var/lib/istio/envoy/sidecar.env:2: ISTIO_META_POD_PORTS: found "8080", expected a JSON list of ports, each with name, containerPort and protocol`,
			`error: /var/lib/istio/envoy/sidecar.env:3: ISTIO_METAJSON_X: found a member "LABELS" of a type that istiod does not take there, expected a text`,
			`error: /var/lib/istio/envoy/sidecar.env:3: ISTIO_METAJSON_X: found a member "NETWORK" of a type that istiod does not take there, expected a text`,
			"warning: /var/lib/istio/envoy/sidecar.env:4: ISTIO_META_ANNOTATIONS: found metadata that the agent fills in itself (the variable has no effect)"}},
		{"two names that disagree", map[string]string{sidecarEnv: "ENVOY_USER=root\nEXEC_USER=istio-proxy\nISTIO_META_INTERCEPTION_MODE=TPROXY\n"}, []string{
			`warning: /var/lib/istio/envoy/sidecar.env:1: ENVOY_USER: found "root", expected the same as EXEC_USER (/var/lib/istio/envoy/sidecar.env:2 wins with "istio-proxy")`,
			`warning: /var/lib/istio/envoy/sidecar.env:3: ISTIO_META_INTERCEPTION_MODE: found "TPROXY", expected "REDIRECT", the mode of the rules (the node says what is true; set ISTIO_INBOUND_INTERCEPTION_MODE)`}},
		{"a user that does not exist", map[string]string{sidecarEnv: "EXEC_USER=nobody-has-this\n"}, []string{
			`warning: /var/lib/istio/envoy/sidecar.env:1: EXEC_USER: found no user "nobody-has-this" on this machine, expected one (without it no capture rules are put in: useradd --system nobody-has-this)`}},
		{"flags of pilot-agent", map[string]string{sidecarEnv: `ISTIO_AGENT_FLAGS="--log_output_level=dns:loud --proxyLogLevel debug --stsPort 15463 --proxyLoglevel=x word --concurrency"` + "\n"}, []string{
			`error: /var/lib/istio/envoy/sidecar.env:1: ISTIO_AGENT_FLAGS --log_output_level: found "loud", expected one of debug, info, warn, error, none`,
			"warning: /var/lib/istio/envoy/sidecar.env:1: ISTIO_AGENT_FLAGS: found --concurrency without a value, expected --concurrency=VALUE (it has no effect)",
			"warning: /var/lib/istio/envoy/sidecar.env:1: ISTIO_AGENT_FLAGS: found --proxyLoglevel, expected a flag of pilot-agent (did you mean --proxyLogLevel?)",
			"warning: /var/lib/istio/envoy/sidecar.env:1: ISTIO_AGENT_FLAGS: found --stsPort, expected a flag that acts on this agent (it has no effect here)",
			`warning: /var/lib/istio/envoy/sidecar.env:1: ISTIO_AGENT_FLAGS: found "word", expected a flag such as --log_output_level=dns:debug (the word has no effect)`}},
		{"log levels of parts that the agent does not have", map[string]string{sidecarEnv: "ISTIO_AGENT_FLAGS='--log_output_level=dns:debug,xdsproxy:debug,wasm:debug'\n", wingmanYAML: "log:\n  scopes: {dnss: debug, xds: loud}\n"}, []string{
			`warning: /etc/wingman/wingman.yaml:2: log.scopes.dnss: found a level for "dnss", expected one for agent, capture, dns, envoy, health, identity, member, proxy, status, xds (did you mean dns?)`,
			`error: /etc/wingman/wingman.yaml:2: log.scopes.xds: found "loud", expected one of debug, info, warn, error, none`,
			`warning: /var/lib/istio/envoy/sidecar.env:1: ISTIO_AGENT_FLAGS --log_output_level: found a level for "wasm", expected one for agent, capture, dns, envoy, health, identity, member, proxy, status, xds (no part of the agent logs by that name)`}},
		{"several files at once", map[string]string{clusterEnv: "A=$(id)\nISTIO_INBOUND_PORTS=x\n", meshConfig: "a: [", wingmanYAML: "x: 1\nstatus: {port: 0}\n", rootCert: "-"}, []string{
			"error: /etc/certs/root-cert.pem: root-cert: found no file, expected one " + noRoot,
			"error: /etc/istio/config/mesh:1: found no expected node content, expected valid YAML",
			"error: /etc/wingman/wingman.yaml:1: x: found an unknown key, expected one of istiod, workload, dualStack, user, identity, drain, xds, probe, probeLocalhost, dns, capture, rules, envoy, status, metrics, log",
			`error: /etc/wingman/wingman.yaml:2: status.port: found "0", expected a port from 1 to 65535`,
			"error: /var/lib/istio/envoy/cluster.env:1: found a command substitution $(...), expected its result (" + envSupported + ")",
			`error: /var/lib/istio/envoy/cluster.env:2: ISTIO_INBOUND_PORTS: found "x", expected "*" or ports, each a port from 1 to 65535`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := newMachine(t, tt.files)
			c, problems := Load(m.root)
			got := m.told(problems)
			slices.Sort(got)
			slices.Sort(tt.want)
			if diff := cmp.Diff(tt.want, got, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
			if usable := problems.Without(KeyRootCert).Err() == nil; usable != (c != nil) {
				t.Errorf("config is %v after %v", c, problems)
			}
		})
	}
}

func TestProblemsErr(t *testing.T) {
	problems := Problems{{Severity: Warning, Found: "one thing"}, {Severity: Error, File: "f", Line: 3, Key: "k", Found: "two", Expected: "three", Hint: "four"},
		{Severity: Error, Key: KeyRootCert, Found: "no file"}}
	if err := problems[:1].Err(); err != nil {
		t.Errorf("an error from a warning: %v", err)
	}
	if got, want := problems.Err().Error(), "f:3: k: found two, expected three (four)\nroot-cert: found no file"; got != want {
		t.Errorf("error is %q, want %q", got, want)
	}
	if got := problems.Without("k", KeyRootCert); got.Err() != nil || len(got) != 1 || len(problems) != 3 {
		t.Errorf("without the errors: %v", got)
	}
	if got := problems.Warnings(); len(got) != 1 || got[0].Found != "one thing" {
		t.Errorf("warnings are %v", got)
	}
}

// TestLoadSurvivesOddFiles puts things where files should be that must not be opened, or cannot be.
func TestARootBehindALinkThatLeadsNowhereCanBeMended(t *testing.T) {
	m := newMachine(t, nil)
	path := filepath.Join(m.root, rootCert)
	if err := errors.Join(os.Remove(path), os.Symlink("../../var/lib/wingman/identity/current/root-cert.pem", path)); err != nil {
		t.Fatal(err)
	}
	c, problems := Load(m.root)
	if c.Paths.RootCert != path {
		t.Errorf("root file %s, want our own link as it stands: %s", c.Paths.RootCert, path)
	}
	if want := "(remove the link that is there, to ../../var/lib/wingman/identity/current/root-cert.pem, and copy root-cert.pem"; !strings.Contains(problems.Err().Error(), want) {
		t.Errorf("got %v, want %q", problems, want)
	}
}

func TestLoadSurvivesOddFiles(t *testing.T) {
	m := newMachine(t, map[string]string{clusterEnv: "-", meshConfig: "-", wingmanYAML: "-"})
	for _, path := range []string{clusterEnv, meshConfig} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(m.root, path)), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(m.root, clusterEnv), 0o600); err != nil { // reading it would wait for a writer for ever
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(m.root, meshConfig), 0o755); err != nil {
		t.Fatal(err)
	}
	m.write(wingmanYAML, "#"+strings.Repeat("x", maxFile))
	_, problems := Load(m.root)
	want := []string{
		"error: /etc/istio/config/mesh: found a folder, expected a readable file (Istio's defaults are used, and there is no readiness probe unless wingman.yaml has one)",
		"error: /etc/wingman/wingman.yaml: found 4194305 bytes, expected a readable file",
		"error: /var/lib/istio/envoy/cluster.env: found a pipe, socket or device, expected a readable file (make it with istioctl x workload entry configure and copy it here)",
	}
	if diff := cmp.Diff(want, m.told(problems)); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
}

// TestLoadUnreadable reads as a user without rights to a file of mode 0600 and to a folder of mode 0700.
func TestLoadUnreadable(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can make a file that somebody else may not read")
	}
	defer unix.Umask(unix.Umask(0o022))
	m := newMachine(t, nil)
	if err := os.Chmod(filepath.Join(m.root, clusterEnv), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(m.root, "/etc/certs"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(m.root), 0o755); err != nil { // the test's own folder
		t.Fatal(err)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Setfsuid(65534); err != nil { // this thread alone; the kernel takes its file capabilities away with it
		t.Fatal(err)
	}
	c, problems := Load(m.root)
	if err := unix.Setfsuid(0); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"error: /etc/certs/root-cert.pem: root-cert: found permission denied, expected a readable file (uid 0 may not enter its folder)",
		"error: /var/lib/istio/envoy/cluster.env: found permission denied, expected a readable file (mode 0600 of uid 0, read by uid 0)",
	}
	if diff := cmp.Diff(want, m.told(problems)); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
	if c != nil {
		t.Error("a config without cluster.env")
	}
}
