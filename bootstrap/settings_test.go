package bootstrap

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// sample is a value of a setting that is not its default, as wingman.yaml has it.
var samples = map[string]string{
	"istiod.namespace": "mesh-system", "istiod.address": "istiod.example:443", "istiod.caAddress": "ca.example:443", "istiod.san": "istiod.example", "istiod.rootCert": "/etc/pki/root.pem",
	"workload.namespace": "other", "workload.serviceAccount": "other-sa", "workload.trustDomain": "example.org", "workload.group": "other", "workload.name": "other",
	"workload.service": "a.b", "workload.entryGrace": "30s", "drain.propagation": "1s", "workload.instance": "vm-7", "workload.addresses": "10.1.2.3", "workload.cluster": "east", "workload.mesh": "m", "workload.network": "n", "workload.domain": "svc.example.org",
	"dualStack": "true", "user": "root",
	"identity.ttl": "12h", "identity.graceRatio": "0.25", "identity.graceJitter": "0.1", "identity.algorithm": "ECDSA", "identity.rsaBits": "4096", "identity.curve": "P384", "identity.pkcs8": "true",
	"identity.certSigner": "example.org/signer", "identity.tokenFile": "/run/token", "identity.credentials": "file,gce", "identity.audience": "mesh-ca", "identity.azureClient": "7f1c", "identity.seal": "true", "identity.provisionedDir": "/prov", "identity.workloadSocket": "/run/spire.sock", "identity.outputDir": "/out", "identity.groups": "www-data,4242",
	"xds.delta": "false", "probeLocalhost": "true",
	"dns.capture": "true", "dns.mode": "resolved", "dns.captureAll": "true", "dns.listen": "127.0.0.1:5353", "dns.forwardTimeout": "2s", "dns.cacheSize": "0", "dns.maxStale": "10m", "dns.ipv6": "false",
	"capture": "dns", "rules.inboundWhenDown": "open", "rules.outboundWhenDown": "open", "rules.captureMetadata": "true", "rules.custom": "true", "rules.mode": "TPROXY", "rules.tproxyMark": "1400", "rules.tproxyTable": "140", "rules.inboundPorts": "8080,9090", "rules.inboundExcludePorts": "22",
	"rules.outboundCIDRs": "10.96.0.0/16,240.240.0.0/16", "rules.outboundExcludeCIDRs": "192.168.0.0/16", "rules.outboundPorts": "443,8443", "rules.outboundExcludePorts": "3306,9000:9100",
	"rules.groups": "101,staff", "rules.excludeGroups": "101,202", "rules.excludeInterfaces": "docker0,tun0", "rules.virtualInterfaces": "virbr0", "rules.dropInvalid": "true", "rules.loopbackCIDR": "127.0.0.0/8",
	"rules.proxyUID": "1", "rules.proxyGID": "2", "rules.proxyPort": "25001", "rules.inboundPort": "25006", "rules.tunnelPort": "25008", "rules.backend": "native",
	"envoy.enabled": "false", "envoy.path": "/opt/envoy", "envoy.adminPort": "25000", "envoy.concurrency": "2", "envoy.logLevel": "info,upstream:debug", "envoy.componentLogLevel": "upstream:debug",
	"envoy.drainDuration": "30s", "envoy.terminationDrain": "10s", "envoy.hangTimeout": "10s", "envoy.hbone": "true",
	"status.port": "25020", "status.readinessPort": "25021", "status.prometheusPort": "25090",
	"metrics.envoy": "false", "metrics.applications": "8080,9090:/stats", "metrics.localhostOnly": "true", "log.level": "debug", "log.format": "json", "log.file": "/var/log/wingman.log",
}

// istioSamples are the samples as a variable has them, where that is another text; empty: the variable cannot say it.
var istioSamples = map[string]string{
	"ISTIO_PILOT_PORT": "", "NATIVE_NFTABLES": "true", "FORCE_IPTABLES_BINARY": "", "DISABLE_ENVOY": "true", "--log_as_json": "true", "ISTIO_LOG_DIR": "", "--domain": "forum-services.svc.example.org",
	"ISTIO_PROMETHEUS_ANNOTATIONS": `{"scrape":"true","targets":[{"port":"8080"},{"port":"9090","path":"/stats"}]}`,
}

// bare is a machine with nothing but a namespace, so that every setting is at its default.
func bare(t testing.TB) machine {
	return newMachine(t, map[string]string{clusterEnv: "ISTIO_NAMESPACE=forum-services\n", meshConfig: "defaultConfig: {controlPlaneAuthPolicy: MUTUAL_TLS}\n", hostsFile: "-"})
}

// settled is a Config without what its files were.
func settled(t testing.TB, m machine) Config {
	t.Helper()
	c, _ := m.load()
	out := *c
	out.Root, out.env, out.settings, out.proxyConfig, out.snapshot = "", nil, nil, nil, nil
	out.Paths = Paths{
		Token: strings.TrimPrefix(c.Paths.Token, m.root), RootCert: strings.TrimPrefix(c.Paths.RootCert, m.root),
		ProvCert: strings.TrimPrefix(c.Paths.ProvCert, m.root), OutputCerts: strings.TrimPrefix(c.Paths.OutputCerts, m.root),
		WorkloadSocket: strings.TrimPrefix(c.Paths.WorkloadSocket, m.root),
	}
	out.Log.File = strings.TrimPrefix(c.Log.File, m.root)
	return out
}

var compareConfigs = cmp.Options{cmp.AllowUnexported(Config{}), cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}, netip.Prefix{})}

// TestSettingsByEveryName sets each setting of the table by each of its names: all must do the same, and something.
func TestSettingsByEveryName(t *testing.T) {
	nothing := settled(t, bare(t))
	for _, s := range settings {
		if s.tree {
			continue
		}
		sample, ok := samples[s.key]
		if !ok {
			t.Errorf("%s has no sample", s.key)
			continue
		}
		t.Run(s.key, func(t *testing.T) {
			m := bare(t)
			for _, file := range []string{"/etc/pki/root.pem", "/prov/root-cert.pem"} {
				m.write(file, fixtures(t)[rootCert])
			}
			yaml := fmt.Sprintf("%s: %q\n", s.key, sample)
			if section, name, ok := strings.Cut(s.key, "."); ok {
				yaml = fmt.Sprintf("%s: {%s: %q}\n", section, name, sample)
			}
			m.write(wingmanYAML, yaml)
			want := settled(t, m)
			if cmp.Equal(nothing, want, compareConfigs) {
				t.Errorf("%s changes nothing", yaml)
			}
			c, _ := m.load()
			found := slices.IndexFunc(c.Settings(), func(set Setting) bool { return set.Key == s.key })
			if found < 0 {
				t.Fatalf("%s is not among the settings", s.key)
			}
			wantSetting := Setting{Key: s.key, Value: sample, File: c.Paths.WingmanYAML, Line: 1}
			if diff := cmp.Diff(wantSetting, c.Settings()[found]); diff != "" {
				t.Errorf("setting (-want +got):\n%s", diff)
			}
			m.write(wingmanYAML, "")

			for _, name := range s.istio {
				value, differs := istioSamples[name]
				if !differs {
					value = sample
				}
				if value == "" {
					continue
				}
				line := name + "=" + shellQuote(value) + "\n"
				if strings.HasPrefix(name, "-") {
					line = "ISTIO_AGENT_FLAGS=" + shellQuote(name+"="+value) + "\n"
				}
				if s.key == "workload.namespace" { // the bare machine has one already
					m.write(clusterEnv, "A=1\n")
				}
				m.write(sidecarEnv, line)
				if diff := cmp.Diff(want, settled(t, m), compareConfigs); diff != "" {
					t.Errorf("%s does something else than %s (-yaml +env):\n%s", line, yaml, diff)
				}
			}
			m.write(sidecarEnv, "")
			if s.mesh != "" {
				m.write(meshConfig, fmt.Sprintf("defaultConfig: {%s: %q}\n", s.mesh, sample))
				if diff := cmp.Diff(want, settled(t, m), compareConfigs); diff != "" {
					t.Errorf("mesh.yaml's %s does something else than %s (-yaml +mesh):\n%s", s.mesh, yaml, diff)
				}
			}
		})
	}
}

// TestSettingsTable checks what the rest relies on.
func TestSettingsTable(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range settings {
		if s.doc == "" || s.accepts == "" {
			t.Errorf("%s says too little: %q, accepts %q", s.key, s.doc, s.accepts)
		}
		if seen[s.key] {
			t.Errorf("%s stands there twice", s.key)
		}
		seen[s.key] = true
		if s.when != OnReload && s.when != OnRestart && s.when != OnProxyRestart {
			t.Errorf("%s: %q, expected when a change of it takes effect", s.key, s.when)
		}
		if s.when != OnReload && s.field.same == nil {
			t.Errorf("%s changes at a %s, and nobody can tell whether it did: give it a field", s.key, s.when)
		}
		if s.def != "" {
			if bad := s.read(&Config{}, s.def); bad != nil {
				t.Errorf("%s: its own default: %v", s.key, bad)
			}
		}
		if s.mesh != "" {
			if _, ok := proxyFields[s.mesh]; !ok {
				t.Errorf("%s: %s is no field of ProxyConfig", s.key, s.mesh)
			}
		}
		for _, name := range s.istio {
			if instead, ok := deadVariables[name]; ok {
				t.Errorf("%s is a dead variable (%s) and sets %s", name, instead, s.key)
			}
		}
	}
	for name, instead := range deadVariables {
		if _, ok := settingByIstio(instead); !ok && !strings.Contains(instead, " ") {
			t.Errorf("%s is said to be %s, which sets nothing", name, instead)
		}
	}
}

// TestPrecedence sets one thing in several places.
func TestPrecedence(t *testing.T) {
	mesh := func(v string) string {
		return "defaultConfig: {statusPort: 1001, proxyMetadata: {ISTIO_META_NETWORK: " + v + ", TRUST_DOMAIN: mesh.example, DNS_FORWARD_TIMEOUT: 1s}}\n"
	}
	network := func(c *Config) string { return c.Network }
	applications := func(c *Config) string { return fmt.Sprint(c.Metrics.Applications) }
	envoysMetrics := func(c *Config) string {
		return fmt.Sprint(c.proxyConfig["proxyMetadata"].(map[string]any)["METRICS_LOCALHOST_ACCESS_ONLY"])
	}
	for _, tt := range []struct {
		name  string
		files map[string]string
		get   func(*Config) string
		want  string
		from  string // file:line of the setting
	}{
		{"mesh.yaml beats what is built in", map[string]string{meshConfig: mesh("m"), clusterEnv: "A=1\n"}, network, "m", meshConfig + ":1"},
		{"sidecar.env beats mesh.yaml", map[string]string{meshConfig: mesh("m"), clusterEnv: "A=1\n", sidecarEnv: "\nISTIO_META_NETWORK=s\n"}, network, "s", sidecarEnv + ":2"},
		{"cluster.env beats sidecar.env", map[string]string{meshConfig: mesh("m"), clusterEnv: "ISTIO_META_NETWORK=c\n", sidecarEnv: "ISTIO_META_NETWORK=s\n"}, network, "c", clusterEnv + ":1"},
		{"wingman.yaml beats cluster.env", map[string]string{meshConfig: mesh("m"), clusterEnv: "ISTIO_META_NETWORK=c\n", wingmanYAML: "workload:\n  network: w\n"}, network, "w", wingmanYAML + ":2"},
		{"cluster.env may use what sidecar.env set", map[string]string{sidecarEnv: "NET=one\n", clusterEnv: "ISTIO_META_NETWORK=\"$NET-two\"\n"}, network, "one-two", clusterEnv + ":1"},
		{"a variable of sidecar.env beats mesh.yaml's, even by its weaker name", map[string]string{clusterEnv: "A=1\n", sidecarEnv: "REDIRECT_DNS=false\n",
			meshConfig: "defaultConfig: {proxyMetadata: {ISTIO_META_DNS_CAPTURE: \"true\"}}\n"}, func(c *Config) string { return fmt.Sprint(c.DNS.Capture) }, "false", ""},
		{"an empty variable is no value", map[string]string{clusterEnv: "ISTIO_SYSTEM_NAMESPACE=\n"}, func(c *Config) string { return c.Discovery.Address }, "istiod.istio-system.svc:15012", ""},
		{"an empty list is one", map[string]string{clusterEnv: "ISTIO_INBOUND_PORTS=\n", sidecarEnv: "ISTIO_INBOUND_PORTS='*'\n"}, func(c *Config) string { return fmt.Sprint(c.Capture.InboundAll) }, "false", ""},
		{"other keys of proxyMetadata count as the injector makes them count", map[string]string{meshConfig: mesh("m"), clusterEnv: "A=1\n"}, func(c *Config) string { return c.TrustDomain }, "mesh.example", ""},
		{"PROXY_CONFIG beats mesh.yaml", map[string]string{meshConfig: mesh("m"), sidecarEnv: "PROXY_CONFIG='{statusPort: 1002}'\n"}, func(c *Config) string { return fmt.Sprint(c.Status.Port) }, "1002", ""},
		{"wingman.yaml beats PROXY_CONFIG", map[string]string{sidecarEnv: "PROXY_CONFIG='{statusPort: 1002}'\n", wingmanYAML: "status: {port: 1003}\n"}, func(c *Config) string { return fmt.Sprint(c.Status.Port) }, "1003", ""},
		{"PROXY_CONFIG's proxyMetadata beats mesh.yaml's, not the variable", map[string]string{meshConfig: mesh("m"), clusterEnv: "A=1\n",
			sidecarEnv: "DNS_FORWARD_TIMEOUT=3s\nPROXY_CONFIG='\nproxyMetadata:\n  ISTIO_META_NETWORK: p\n  DNS_FORWARD_TIMEOUT: 2s\n'\n"},
			func(c *Config) string { return c.Network + c.DNS.ForwardTimeout.String() }, "p3s", sidecarEnv + ":4"},
		{"ISTIO_NAMESPACE beats POD_NAMESPACE, as in istio-start.sh", map[string]string{clusterEnv: "ISTIO_NAMESPACE=a\nPOD_NAMESPACE=b\n"}, func(c *Config) string { return c.Namespace }, "a", ""},
		{"labels are merged by name", map[string]string{clusterEnv: `ISTIO_METAJSON_LABELS='{"a":"1","b":"1"}'` + "\n", wingmanYAML: "workload: {labels: {b: \"2\", c: \"2\"}}\n"},
			func(c *Config) string { return fmt.Sprint(c.Labels) }, "map[a:1 b:2 c:2]", ""},
		{"log scopes come from the flag and from wingman.yaml", map[string]string{sidecarEnv: "ISTIO_AGENT_FLAGS='--log_output_level=default:warning,dns:debug,xdsproxy:debug,citadelclient:debug'\n", wingmanYAML: "log: {scopes: {dns: error}}\n"},
			func(c *Config) string { return c.Log.Level + fmt.Sprint(" ", c.Log.Scopes) }, "warn map[dns:error identity:debug xds:debug]", ""},
		{"an annotation names one application, with Istio's defaults", map[string]string{sidecarEnv: "ISTIO_PROMETHEUS_ANNOTATIONS='{\"scrape\":\"true\"}'\n"}, applications, "[{80 /metrics}]", ""},
		{"an annotation may hold a comma", map[string]string{sidecarEnv: "ISTIO_PROMETHEUS_ANNOTATIONS='{\"port\":\"8080\",\"path\":\"/m?a=b,c\"}'\n"}, applications, "[{8080 /m?a=b%2Cc}]", ""},
		{"targets of an annotation are all there is", map[string]string{sidecarEnv: "ISTIO_PROMETHEUS_ANNOTATIONS='{\"port\":\"1\",\"targets\":[{\"port\":\"2\",\"path\":\"/b\"},{\"port\":\"3\"}]}'\n"}, applications, "[{2 /b} {3 /metrics}]", ""},
		{"an annotation that wants no scrape", map[string]string{sidecarEnv: "ISTIO_PROMETHEUS_ANNOTATIONS='{\"scrape\":\"false\",\"port\":\"8080\"}'\n"}, applications, "[]", ""},
		{"no applications in wingman.yaml are a decision", map[string]string{sidecarEnv: "ISTIO_PROMETHEUS_ANNOTATIONS='{\"port\":\"8080\"}'\n", wingmanYAML: "metrics: {applications: []}\n"}, applications, "[]", ""},
		{"metrics for this machine alone bind Envoy too", map[string]string{wingmanYAML: "metrics: {localhostOnly: true}\n"}, envoysMetrics, "true", ""},
		{"wingman.yaml may open Envoy's metrics again", map[string]string{meshConfig: "defaultConfig: {proxyMetadata: {METRICS_LOCALHOST_ACCESS_ONLY: \"true\"}}\n", wingmanYAML: "metrics: {localhostOnly: false}\n"}, envoysMetrics, "false", ""},
		{"wingman.yaml's probe replaces mesh.yaml's", map[string]string{wingmanYAML: "probe: {exec: {command: [\"true\"]}}\n"}, func(c *Config) string { return c.Probe.String() }, "exec true", ""},
		{"ISTIO_LOG_DIR is a folder below root", map[string]string{sidecarEnv: "ISTIO_LOG_DIR=./var/log/istio/\n"}, func(c *Config) string { return strings.TrimPrefix(c.Log.File, c.Root) }, "/var/log/istio/istio.log", ""},
		{"--log_target=stdout is the journal", map[string]string{sidecarEnv: "ISTIO_AGENT_FLAGS='--log_target stdout'\n"}, func(c *Config) string { return c.Log.File }, "", ""},
		{"--meshConfig moves mesh.yaml", map[string]string{sidecarEnv: "ISTIO_AGENT_FLAGS='--meshConfig ./etc/other'\n", "/etc/other": mesh("other"), clusterEnv: "A=1\n"}, network, "other", "/etc/other:1"},
		{"the root stands beside a provisioned certificate", map[string]string{sidecarEnv: "PROV_CERT=./prov\n", "/prov/root-cert.pem": fixtures(t)[rootCert]},
			func(c *Config) string { return strings.TrimPrefix(c.Paths.RootCert, c.Root) }, "/prov/root-cert.pem", ""},
		{"WORKLOAD_IDENTITY_SOCKET_FILE is a name in Istio's folder", map[string]string{sidecarEnv: "WORKLOAD_IDENTITY_SOCKET_FILE=socket\n"},
			func(c *Config) string { return strings.TrimPrefix(c.Paths.WorkloadSocket, c.Root) }, "/var/run/secrets/workload-spiffe-uds/socket", ""},
		{"or a path", map[string]string{sidecarEnv: "WORKLOAD_IDENTITY_SOCKET_FILE=/run/spire/sockets/agent.sock\n"},
			func(c *Config) string { return strings.TrimPrefix(c.Paths.WorkloadSocket, c.Root) }, "/run/spire/sockets/agent.sock", ""},
		{"several groups", map[string]string{wingmanYAML: "identity: {groups: [myapp, 4242]}\n"}, func(c *Config) string { return strings.Join(c.Identity.Groups, " ") }, "myapp 4242", ""},
		{"empty OUTPUT_CERTS writes nowhere", map[string]string{sidecarEnv: "OUTPUT_CERTS=\n"}, func(c *Config) string { return c.Paths.OutputCerts }, "", ""},
		{"no path leaves the root", map[string]string{sidecarEnv: "OUTPUT_CERTS=../../../etc/passwd\n"}, func(c *Config) string { return strings.TrimPrefix(c.Paths.OutputCerts, c.Root) }, "/etc/passwd", ""},
		{"PROXY_GID alone does not make up for a user", map[string]string{sidecarEnv: "PROXY_GID=8\nEXEC_USER=nobody-has-this\n"},
			func(c *Config) string { return fmt.Sprint(c.Capture.ProxyUID, c.Capture.ProxyGID, c.Capture.UserKnown) }, "0 8 false", ""},
		{"PROXY_UID needs no user", map[string]string{sidecarEnv: "PROXY_UID=7\nPROXY_GID=8\nEXEC_USER=nobody-has-this\n"},
			func(c *Config) string { return fmt.Sprint(c.Capture.ProxyUID, c.Capture.ProxyGID, c.Capture.UserKnown) }, "7 8 true", ""},
		{"the user's ids come from passwd below root", nil, func(c *Config) string { return fmt.Sprint(c.Capture.ProxyUID, c.Capture.ProxyGID, c.Capture.UserKnown) }, "995 994 true", ""},
		{"an unknown user has no id", map[string]string{sidecarEnv: "EXEC_USER=nobody-has-this\n"},
			func(c *Config) string { return fmt.Sprint(c.Capture.ProxyUID, c.Capture.ProxyGID, c.Capture.UserKnown) }, "0 0 false", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := newMachine(t, tt.files)
			c, _ := m.load()
			if got := tt.get(c); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if tt.from == "" {
				return
			}
			for _, s := range c.Settings() {
				if s.Key == "workload.network" {
					if got := fmt.Sprintf("%s:%d", strings.TrimPrefix(s.File, m.root), s.Line); got != tt.from {
						t.Errorf("set by %s, want %s", got, tt.from)
					}
				}
			}
		})
	}
}

// TestEndpoints follows istio-start.sh: CA_ADDR > PILOT_ADDRESS > ISTIO_PILOT_PORT > istiod.<ISTIO_SYSTEM_NAMESPACE|istio-system>.svc:15012.
func TestEndpoints(t *testing.T) {
	const istiod = "istiod.istio-system.svc"
	for _, tt := range []struct {
		name          string
		env           string
		mesh          string // discoveryAddress
		yaml          string
		discovery, ca Endpoint
	}{
		{"nothing said", "", "", "", Endpoint{istiod + ":15012", istiod}, Endpoint{istiod + ":15012", istiod}},
		{"another system namespace", "ISTIO_SYSTEM_NAMESPACE=mesh", "", "", Endpoint{"istiod.mesh.svc:15012", "istiod.mesh.svc"}, Endpoint{"istiod.mesh.svc:15012", "istiod.mesh.svc"}},
		{"a port", "ISTIO_PILOT_PORT=32018", "", "", Endpoint{istiod + ":32018", istiod}, Endpoint{istiod + ":32018", istiod}},
		{"a port in another namespace", "ISTIO_PILOT_PORT=1\nISTIO_SYSTEM_NAMESPACE=mesh", "", "", Endpoint{"istiod.mesh.svc:1", "istiod.mesh.svc"}, Endpoint{"istiod.mesh.svc:1", "istiod.mesh.svc"}},
		{"an address beats a port, and mesh.yaml", "PILOT_ADDRESS=a.b:1\nISTIO_PILOT_PORT=2", "mesh:3", "", Endpoint{"a.b:1", "a.b"}, Endpoint{"a.b:1", "a.b"}},
		{"CA_ADDR is the CA's alone", "PILOT_ADDRESS=a.b:1\nCA_ADDR=c.d:2", "", "", Endpoint{"a.b:1", "a.b"}, Endpoint{"c.d:2", "c.d"}},
		{"CA_ADDR with istiod elsewhere", "CA_ADDR=c.d:2", "mesh:3", "", Endpoint{"mesh:3", "mesh"}, Endpoint{"c.d:2", "c.d"}},
		{"mesh.yaml's address is the CA's too", "", "mesh:3", "", Endpoint{"mesh:3", "mesh"}, Endpoint{"mesh:3", "mesh"}},
		{"unless the system namespace says where that is", "ISTIO_SYSTEM_NAMESPACE=mesh", "other:3", "", Endpoint{"other:3", "other"}, Endpoint{"istiod.mesh.svc:15012", "istiod.mesh.svc"}},
		{"PROXY_CONFIG beats PILOT_ADDRESS, but for the CA", "PROXY_CONFIG='discoveryAddress: p:4'\nPILOT_ADDRESS=a.b:1", "mesh:3", "", Endpoint{"p:4", "p"}, Endpoint{"a.b:1", "a.b"}},
		{"wingman.yaml beats all, but CA_ADDR stays", "PILOT_ADDRESS=a.b:1\nCA_ADDR=c.d:2", "mesh:3", "istiod: {address: \"w:5\"}", Endpoint{"w:5", "w"}, Endpoint{"c.d:2", "c.d"}},
		{"wingman.yaml's address is the CA's too", "PILOT_ADDRESS=a.b:1", "mesh:3", "istiod: {address: \"w:5\"}", Endpoint{"w:5", "w"}, Endpoint{"w:5", "w"}},
		{"wingman.yaml has a CA of its own", "CA_ADDR=c.d:2", "", "istiod: {caAddress: \"w:6\"}", Endpoint{istiod + ":15012", istiod}, Endpoint{"w:6", "w"}},
		{"ISTIOD_SAN for an address that is an IP", "PILOT_ADDRESS=[fd00::1]:15012\nISTIOD_SAN=istiod.mesh.svc", "", "", Endpoint{"[fd00::1]:15012", "istiod.mesh.svc"}, Endpoint{"[fd00::1]:15012", "istiod.mesh.svc"}},
		{"ISTIOD_SAN is not the name of another CA", "CA_ADDR=c.d:2\nISTIOD_SAN=istiod.mesh.svc", "", "", Endpoint{istiod + ":15012", "istiod.mesh.svc"}, Endpoint{"c.d:2", "c.d"}},
		{"ISTIOD_SAN with CA_ADDR that is istiod", "CA_ADDR=10.0.0.1:15012\nPILOT_ADDRESS=10.0.0.1:15012\nISTIOD_SAN=x.y", "", "", Endpoint{"10.0.0.1:15012", "x.y"}, Endpoint{"10.0.0.1:15012", "x.y"}},
		{"an IP is its own name", "PILOT_ADDRESS=10.0.0.1:15012", "", "", Endpoint{"10.0.0.1:15012", "10.0.0.1"}, Endpoint{"10.0.0.1:15012", "10.0.0.1"}},
		{"a tunnel on localhost", "PILOT_ADDRESS=localhost:15012", "", "", Endpoint{"localhost:15012", istiod}, Endpoint{"localhost:15012", istiod}},
		{"a final dot is not part of a certificate's name", "PILOT_ADDRESS=a.b.:1", "", "", Endpoint{"a.b.:1", "a.b"}, Endpoint{"a.b.:1", "a.b"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			mesh := "defaultConfig: {controlPlaneAuthPolicy: MUTUAL_TLS}\n"
			if tt.mesh != "" {
				mesh = "defaultConfig: {discoveryAddress: \"" + tt.mesh + "\"}\n"
			}
			m := newMachine(t, map[string]string{clusterEnv: "A=1\n" + tt.env + "\n", meshConfig: mesh, wingmanYAML: tt.yaml, hostsFile: "-"})
			c, _ := m.load()
			if c.Discovery != tt.discovery || c.CA != tt.ca {
				t.Errorf("discovery %v, CA %v; want %v, %v", c.Discovery, c.CA, tt.discovery, tt.ca)
			}
			for key, want := range map[string]string{"istiod.address": c.Discovery.Address, "istiod.caAddress": c.CA.Address} {
				found := 0
				for _, s := range c.Settings() {
					if s.Key == key {
						found++
						if s.Value != want {
							t.Errorf("setting %s is %s, effective is %s", key, s.Value, want)
						}
					}
				}
				if found != 1 {
					t.Errorf("%s stands %d times among the settings", key, found)
				}
			}
		})
	}
}

func TestSettingsHoldNoSecrets(t *testing.T) {
	m := newMachine(t, map[string]string{
		sidecarEnv:                            "XDS_HEADER_AUTHORIZATION='Bearer hunter2'\nMY_PASSWORD=hunter2\nISTIO_META_API_KEY=hunter2\nPLAIN=visible\n",
		"/var/run/secrets/tokens/istio-token": "hunter2",
		"/etc/certs/key.pem":                  "hunter2",
	})
	c, problems := m.load()
	visible := false
	for _, s := range c.Settings() {
		if strings.Contains(fmt.Sprint(s), "hunter2") {
			t.Errorf("setting %s tells a secret: %s", s.Key, s.Value)
		}
		visible = visible || s.Key == "PLAIN" && s.Value == "visible"
	}
	if !visible {
		t.Error("a variable without a meaning is not kept")
	}
	if strings.Contains(fmt.Sprint(problems), "hunter2") {
		t.Errorf("a problem tells a secret: %v", problems)
	}
}

func TestSettingsAreSortedAndOwn(t *testing.T) {
	c, _ := newMachine(t, nil).load()
	got := c.Settings()
	if !slices.IsSortedFunc(got, func(a, b Setting) int { return strings.Compare(a.Key, b.Key) }) {
		t.Error("not sorted by key")
	}
	got[0].Key = "changed"
	if c.Settings()[0].Key == "changed" {
		t.Error("the caller changed the config")
	}
}

func TestSnapshotStandsInForFiles(t *testing.T) {
	m := newMachine(t, map[string]string{wingmanYAML: "workload: {network: kept}\n"})
	before, _ := m.load()
	m.write(wingmanYAML, "nonsense: 1\n")
	m.write(clusterEnv, "A='")
	m.write(sidecarEnv, "ISTIO_META_NETWORK=new\n")
	if c, problems := Load(m.root); c != nil || problems.Err() == nil {
		t.Fatal("broken files were taken")
	}
	c, problems := LoadSnapshot(m.root, before.Snapshot())
	if err := problems.Err(); err != nil {
		t.Fatalf("load the snapshot: %v", err)
	}
	if c.Network != "kept" || c.Namespace != "forum-services" {
		t.Errorf("network %q, namespace %q", c.Network, c.Namespace)
	}
	if _, problems := LoadSnapshot(m.root, nil); problems.Err() == nil {
		t.Error("an empty snapshot read the files")
	}
}

func TestSPIFFEID(t *testing.T) {
	c, _ := newMachine(t, nil).load()
	if got, want := c.SPIFFEID(), "spiffe://cluster.local/ns/forum-services/sa/forum-sa"; got != want {
		t.Errorf("SPIFFE id %s, want %s", got, want)
	}
}

func TestProbeHasIstiosDefaults(t *testing.T) {
	m := newMachine(t, nil)
	c, _ := m.load()
	want := &Probe{HTTP: &HTTPGet{Scheme: "http", Path: "/api/healthz", Port: 8080}, InitialDelay: time.Second, Timeout: time.Second, Period: 5 * time.Second, SuccessThreshold: 1, FailureThreshold: 1}
	if diff := cmp.Diff(want, c.Probe); diff != "" {
		t.Errorf("probe (-want +got):\n%s", diff)
	}
	m.write(wingmanYAML, "probe:\n  httpGet: {port: \"8443\", scheme: HTTPS, host: localhost, httpHeaders: [{name: Host, value: a}, {name: X, value: b}]}\n  successThreshold: 2\n  failureThreshold: 3\n  timeoutSeconds: 0\n")
	c, _ = m.load()
	want = &Probe{HTTP: &HTTPGet{Scheme: "https", Host: "localhost", Path: "/", Port: 8443, Headers: [][2]string{{"Host", "a"}, {"X", "b"}}},
		Timeout: time.Second, Period: 10 * time.Second, SuccessThreshold: 2, FailureThreshold: 3}
	if diff := cmp.Diff(want, c.Probe); diff != "" {
		t.Errorf("probe (-want +got):\n%s", diff)
	}
}
