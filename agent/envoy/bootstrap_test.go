package envoy

import (
	"bytes"
	"encoding/json"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/metrics/v3" // registers the messages that bootstrap files hold
	_ "github.com/envoyproxy/go-control-plane/envoy/config/trace/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/bootstrap/internal_listener/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/compression/brotli/compressor/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/compression/gzip/compressor/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/compression/zstd/compressor/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/compressor/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/network/dns_resolver/cares/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/resource_monitors/downstream_connections/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"

	"wingman/bootstrap"
)

var update = flag.Bool("update", false, "rewrite golden files")

// forum is the machine of the files that istioctl makes, with sidecar.env and mesh.yaml as given; "" keeps istioctl's mesh.yaml.
func forum(t testing.TB, sidecar, mesh string) *bootstrap.Config {
	t.Helper()
	root := t.TempDir()
	from := "../../bootstrap/testdata/istioctl"
	for name, path := range map[string]string{
		"cluster.env": "var/lib/istio/envoy/cluster.env", "mesh.yaml": "etc/istio/config/mesh",
		"hosts": "var/lib/istio/envoy/hosts", "root-cert.pem": "etc/certs/root-cert.pem",
	} {
		b, err := os.ReadFile(filepath.Join(from, name))
		if err != nil {
			t.Fatal(err)
		}
		if name == "mesh.yaml" && mesh != "" {
			b = []byte(mesh)
		}
		write(t, filepath.Join(root, path), b)
	}
	write(t, filepath.Join(root, "var/lib/istio/envoy/sidecar.env"), []byte(sidecar))
	cfg, problems := bootstrap.Load(root)
	if cfg == nil {
		t.Fatal(problems.Err())
	}
	return cfg
}

func write(t testing.TB, path string, b []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// inputOf is the input of a machine whose sockets lie at the paths of a real one.
func inputOf(cfg *bootstrap.Config, addrs ...string) Input {
	var parsed []netip.Addr
	for _, a := range addrs {
		parsed = append(parsed, netip.MustParseAddr(a))
	}
	in := InputOf(cfg, cfg.Node(bootstrap.NodeFacts{Hostname: "forum-vm", Addrs: parsed, Envoy: true}), parsed)
	in.XDSSocket, in.SDSSocket = "/run/wingman/xds.sock", "/run/wingman/sds.sock"
	return in
}

const everything = `
defaultConfig:
  discoveryAddress: istiod.istio-system.svc:15012
  extraStatTags: [request_host, "", request_host]
  proxyStatsMatcher:
    inclusionPrefixes: ["http.{pod_ip}_", cluster.outbound]
    inclusionSuffixes: [upstream_rq_timeout]
    inclusionRegexps: ['listener\..*ssl\.handshake']
  runtimeValues:
    envoy.reloadable_features.fixed_heap_use_allocated: ""
    envoy.reloadable_features.http_reject_path_with_fragment: "true"
    overload.global_downstream_max_connections: "5000"
  statsCompression: false
  proxyMetadata:
    METRICS_LOCALHOST_ACCESS_ONLY: "true"
  tracing:
    zipkin:
      address: zipkin.istio-system:9411
  envoyMetricsService:
    address: metrics.istio-system:15000
    tlsSettings:
      mode: ISTIO_MUTUAL
    tcpKeepalive: {probes: 3, time: 10s, interval: 10s}
  envoyAccessLogService:
    address: logs.istio-system:15000
    tlsSettings:
      mode: MUTUAL
      clientCertificate: /etc/als/cert.pem
      privateKey: /etc/als/key.pem
      caCertificates: /etc/als/ca.pem
      subjectAltNames: [logs.example.com]
      sni: logs.example.com
  statsdUdpAddress: 127.0.0.1:9125
`

func TestGoldenFiles(t *testing.T) {
	sotw := "ISTIO_DELTA_XDS=false\n"
	tests := []struct {
		name  string
		in    Input
		notes int
	}{
		{"vm", inputOf(forum(t, "", ""), "10.99.0.2"), 0},
		{"vm-ipv6-sotw", inputOf(forum(t, sotw, ""), "fd00::2"), 0},
		{"vm-dual-stack", inputOf(forum(t, "ISTIO_DUAL_STACK=true\n", ""), "10.99.0.2", "fd00::2"), 0},
		{"vm-everything", inputOf(forum(t, "", everything), "10.99.0.2", "fd00::2"), 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f, err := Bootstrap(tt.in)
			if err != nil {
				t.Fatal(err)
			}
			if len(f.Notes) != tt.notes {
				t.Errorf("notes: %q, want %d", f.Notes, tt.notes)
			}
			golden := filepath.Join("testdata", tt.name+".json")
			if *update {
				write(t, golden, f.JSON)
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(f.JSON)); diff != "" {
				t.Errorf("%s differs (-want +got); -update rewrites it:\n%s", golden, diff)
			}
			b := parse(t, f.JSON)
			if got := b.Node.Id; got != tt.in.Node.ID {
				t.Errorf("node id %q, want %q", got, tt.in.Node.ID)
			}
		})
	}
}

// parse reads a file as Envoy does: no unknown field, every typed_config one of a known type, every value in its bounds.
func parse(t testing.TB, b []byte) *bootstrapv3.Bootstrap {
	t.Helper()
	var m bootstrapv3.Bootstrap
	if err := protojson.Unmarshal(b, &m); err != nil {
		t.Fatalf("the file is no bootstrap: %v", err)
	}
	if err := m.ValidateAll(); err != nil {
		t.Errorf("values out of bounds: %v", err)
	}
	for _, l := range m.StaticResources.Listeners {
		for _, c := range l.FilterChains {
			for _, f := range c.Filters {
				validAny(t, f.GetTypedConfig())
			}
		}
	}
	for _, c := range m.StaticResources.Clusters {
		for _, o := range c.TypedExtensionProtocolOptions {
			validAny(t, o)
		}
		if s := c.TransportSocket; s != nil {
			validAny(t, s.GetTypedConfig())
		}
	}
	return &m
}

func validAny(t testing.TB, a *anypb.Any) {
	t.Helper()
	m, err := a.UnmarshalNew()
	if err != nil {
		t.Fatal(err)
	}
	if v, ok := m.(interface{ ValidateAll() error }); ok {
		if err := v.ValidateAll(); err != nil {
			t.Errorf("%s: %v", a.TypeUrl, err)
		}
	}
}

// istiod's configuration names these; they are a contract.
func TestWhatIstiodLeansOn(t *testing.T) {
	f, err := Bootstrap(inputOf(forum(t, "", ""), "10.99.0.2"))
	if err != nil {
		t.Fatal(err)
	}
	b := parse(t, f.JSON)
	at := map[string]string{}
	for _, c := range b.StaticResources.Clusters {
		a := c.LoadAssignment.Endpoints[0].LbEndpoints[0].GetEndpoint().Address
		at[c.Name] = a.GetPipe().GetPath()
		if s := a.GetSocketAddress(); s != nil {
			at[c.Name] = netip.AddrPortFrom(netip.MustParseAddr(s.Address), uint16(s.GetPortValue())).String()
		}
	}
	want := map[string]string{
		"xds-grpc": "/run/wingman/xds.sock", "sds-grpc": "/run/wingman/sds.sock",
		"prometheus_stats": "127.0.0.1:15000", "agent": "127.0.0.1:15020",
	}
	if diff := cmp.Diff(want, at); diff != "" {
		t.Errorf("clusters (-want +got):\n%s", diff)
	}
	if a := b.Admin.Address.GetSocketAddress(); a.Address != "127.0.0.1" || a.GetPortValue() != 15000 {
		t.Errorf("admin at %v", a)
	}
	ads := b.DynamicResources.AdsConfig
	if !ads.SetNodeOnFirstMessageOnly || ads.ApiType.String() != "DELTA_GRPC" {
		t.Errorf("ADS: %v", ads)
	}
	if b := ads.GrpcServices[0].GetEnvoyGrpc().GetRetryPolicy().GetRetryBackOff(); b.GetBaseInterval().AsDuration() != 100*time.Millisecond || b.GetMaxInterval().AsDuration() != time.Second {
		t.Errorf("Envoy asks again after %v to %v, want 100 ms to 1 s: the agent may be back at any moment", b.GetBaseInterval(), b.GetMaxInterval())
	}
	for _, c := range []string{b.DynamicResources.CdsConfig.InitialFetchTimeout.String(), b.DynamicResources.LdsConfig.InitialFetchTimeout.String()} {
		if c != "" {
			t.Errorf("initial fetch time-out %s, want 0s", c)
		}
	}
}

// One byte of difference between equal inputs would look like a change to the supervisor.
func TestEqualInputsGiveEqualFiles(t *testing.T) {
	in := inputOf(forum(t, "", everything), "10.99.0.2")
	first, err := Bootstrap(in)
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		again, err := Bootstrap(in)
		if err != nil || !bytes.Equal(first.JSON, again.JSON) {
			t.Fatalf("files differ, or %v", err)
		}
	}
}

func TestUnusableInputsAreRefusedAtOnce(t *testing.T) {
	_, err := Bootstrap(Input{XDSSocket: strings.Repeat("x", 108), AdminPort: 15000, StatusPort: 15000, ReadinessPort: 15021, PrometheusPort: 15090})
	if err == nil {
		t.Fatal("no error")
	}
	for _, part := range []string{"node has no id", "instance addresses", "xDS socket", "SDS socket", "status port 15000"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("the error does not name %q:\n%v", part, err)
		}
	}
}

// An Envoy without traces serves, one with a bad file does not start.
func TestWhatCannotBeUsedIsNotedAndLeftOut(t *testing.T) {
	tests := []struct{ name, mesh, note string }{
		{"an address without port", "tracing: {zipkin: {address: zipkin}}", "tracing.zipkin is left out"},
		{"a tracer that Envoy lost", "tracing: {lightstep: {address: 'a:1', accessToken: t}}", "tracing.lightstep is left out"},
		{"mutual TLS without files", "envoyAccessLogService: {address: 'a:1', tlsSettings: {mode: MUTUAL}}", "envoyAccessLogService is left out"},
		{"an unknown TLS mode", "envoyMetricsService: {address: 'a:1', tlsSettings: {mode: SOMETIMES}}", "envoyMetricsService is left out"},
		{"statsd by name", "statsdUdpAddress: 'statsd:9125'", "statsdUdpAddress is left out"},
		{"a bootstrap file of the operator's", "customConfigFile: /etc/envoy.yaml", "customConfigFile"},
		{"a regular expression that is none", "proxyStatsMatcher: {inclusionRegexps: ['[', a]}", "proxyStatsMatcher.inclusionRegexps"},
		{"a tag that is no name", "extraStatTags: ['a(b', c]", "extraStatTags"},
		{"keys held by hardware", "privateKeyProvider: {cryptomb: {pollDelay: 10ms}}", "privateKeyProvider"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f, err := Bootstrap(inputOf(forum(t, "", "defaultConfig:\n  "+tt.mesh+"\n"), "10.99.0.2"))
			if err != nil {
				t.Fatal(err)
			}
			if len(f.Notes) != 1 || !strings.HasPrefix(f.Notes[0], tt.note) {
				t.Errorf("notes: %q, want one that begins with %q", f.Notes, tt.note)
			}
			if b := parse(t, f.JSON); len(b.StaticResources.Clusters) != 4 || len(b.StatsSinks) != 0 {
				t.Errorf("something was not left out: %s", f.JSON)
			}
		})
	}
}

func TestWriteChangesOnlyWhatDiffers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "envoy", "bootstrap.json")
	for _, step := range []struct {
		content string
		changed bool
	}{{"{}", true}, {"{}", false}, {`{"node":{}}`, true}} {
		changed, err := Write(path, File{JSON: []byte(step.content)}, 0)
		if err != nil || changed != step.changed {
			t.Errorf("write %s: changed %v, %v; want %v", step.content, changed, err, step.changed)
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != step.content {
			t.Errorf("the file holds %q (%v), want %q", b, err, step.content)
		}
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600: the node's labels are nobody's business", info.Mode(), err)
	}
	left, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(left) != 1 {
		t.Errorf("beside the file lie %v (%v)", left, err)
	}
}

// FuzzProxyConfig feeds ProxyConfigs of any shape: the file must always be one that Envoy can read.
func FuzzProxyConfig(f *testing.F) {
	f.Add([]byte(`{"tracing":{"zipkin":{"address":"z:9411"}},"proxyStatsMatcher":{"inclusionPrefixes":["a","{pod_ip}"]},"extraStatTags":["x"]}`))
	f.Add([]byte(`{"envoyMetricsService":{"address":"m:1","tls_settings":{"mode":"SIMPLE","ca_certificates":"/a"},"tcp_keepalive":{"probes":3,"time":"7s"}}}`))
	f.Add([]byte(`{"runtimeValues":{"a":"true","b":""},"statsdUdpAddress":"[::1]:9125","proxyMetadata":{"METRICS_LOCALHOST_ACCESS_ONLY":"true"}}`))
	f.Add([]byte(`{"tracing":7,"proxyStatsMatcher":[],"statsCompression":"no"}`))
	f.Fuzz(func(t *testing.T, config []byte) {
		var pc map[string]any
		if json.Unmarshal(config, &pc) != nil {
			t.Skip()
		}
		in := Input{
			Node:      bootstrap.Node{ID: "sidecar~10.0.0.1~vm.a~a.svc.cluster.local", Metadata: map[string]any{"PROXY_CONFIG": pc}},
			Addrs:     []netip.Addr{netip.MustParseAddr("10.0.0.1")},
			XDSSocket: "/x", SDSSocket: "/s", AdminPort: 1, StatusPort: 2, ReadinessPort: 3, PrometheusPort: 4,
		}
		file, err := Bootstrap(in)
		if err != nil {
			t.Fatal(err)
		}
		parse(t, file.JSON)
	})
}
