package bootstrap

import (
	"encoding/json"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"
	meshconfig "istio.io/api/mesh/v1alpha1"
)

var forumVM = NodeFacts{Hostname: "forum-vm", Addrs: []netip.Addr{netip.MustParseAddr("10.99.0.2")}, Envoy: true}

// pilotAgentNode is the node that pilot-agent gave Envoy for istioctl's files on forum-vm.
func pilotAgentNode(t *testing.T) map[string]any {
	t.Helper()
	b, err := os.ReadFile("testdata/istioctl/node.json")
	if err != nil {
		t.Fatal(err)
	}
	var node map[string]any
	if err := json.Unmarshal(b, &node); err != nil {
		t.Fatal(err)
	}
	return node
}

// asJSON is a node as istiod gets it: through JSON and a protobuf Struct.
func asJSON(t testing.TB, n Node) map[string]any {
	t.Helper()
	metadata, err := structpb.NewStruct(n.Metadata)
	if err != nil {
		t.Fatalf("metadata is no Struct: %v", err)
	}
	locality := map[string]any{}
	for k, v := range map[string]string{"region": n.Locality.Region, "zone": n.Locality.Zone, "sub_zone": n.Locality.SubZone} {
		if v != "" {
			locality[k] = v
		}
	}
	return map[string]any{"id": n.ID, "cluster": n.Cluster, "locality": locality, "metadata": metadata.AsMap()}
}

// flatten lists the leaves of a JSON tree by path, with "/" between the names.
func flatten(v any, path string, into map[string]any) map[string]any {
	object, ok := v.(map[string]any)
	if !ok || len(object) == 0 {
		into[path] = v
		return into
	}
	for k, member := range object {
		flatten(member, path+"/"+strings.ReplaceAll(k, "/", "~1"), into)
	}
	return into
}

// wantedDifferences are all differences between pilot-agent's nodes and ours, by JSON pointer.
var wantedDifferences = []struct {
	path string
	ours any
	why  string
}{
	{"/metadata/ISTIO_VERSION", IstioVersion, "the pilot-agent here was built without a version; istiod generates configuration for the release that this names"},
	{"/metadata/PROXY_CONFIG/readinessProbe", map[string]any{}, "without one istiod ignores health reports, so that a drain could not work"},
	{"/metadata/LABELS/security.istio.io~1tlsMode", "disabled", "nothing captures inbound traffic there: others would send TLS to plain ports"},
	{"/metadata/STATIC_LABELS/security.istio.io~1tlsMode", "disabled", "as LABELS"},
	{"/metadata/security.istio.io~1tlsMode", "disabled", "as LABELS"},
	{"/cluster", "forum.forum-services", "ISTIO_SERVICE comes before tracingServiceName, as istio-start.sh has it; pilot-agent by itself does not read it"},
}

// TestNodeEqualsPilotAgents compares whole nodes with those that pilot-agent's own code made of the same files: istioctl's, and the
// variations of testdata/node, made by GetNodeMetaData and CreateFile of Istio's pkg/bootstrap at eed52ebb66ad in the environment of the files.
func TestNodeEqualsPilotAgents(t *testing.T) {
	used := map[string]bool{}
	compare := func(t *testing.T, theirNode map[string]any, files map[string]string) Problems {
		c, problems := newMachine(t, files).load()
		theirs := flatten(theirNode, "", map[string]any{})
		ours := flatten(asJSON(t, c.Node(forumVM)), "", map[string]any{})
		for _, d := range wantedDifferences {
			if cmp.Equal(ours[d.path], d.ours) && !cmp.Equal(theirs[d.path], d.ours) {
				used[d.path] = true
				delete(theirs, d.path)
				delete(ours, d.path)
			}
		}
		if diff := cmp.Diff(theirs, ours); diff != "" {
			t.Errorf("differences that nobody wants (-pilot-agent +ours):\n%s", diff)
		}
		return problems
	}
	t.Run("istioctl", func(t *testing.T) {
		if problems := compare(t, pilotAgentNode(t), nil); len(problems) > 0 {
			t.Errorf("istioctl's own files have problems: %v", problems)
		}
	})
	variations, err := filepath.Glob("testdata/node/*.json")
	if err != nil || len(variations) == 0 {
		t.Fatalf("no variations: %v", err)
	}
	for _, file := range variations {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".json"), func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var v struct {
				Sidecar []string       `json:"sidecar.env"`
				Cluster []string       `json:"cluster.env"`
				Mesh    []string       `json:"mesh.yaml"`
				Node    map[string]any `json:"node"`
			}
			if err := json.Unmarshal(b, &v); err != nil {
				t.Fatal(err)
			}
			files := map[string]string{clusterEnv: strings.Join(v.Cluster, "\n"), sidecarEnv: strings.Join(v.Sidecar, "\n"), meshConfig: strings.Join(v.Mesh, "\n")}
			if v.Mesh == nil {
				files[meshConfig] = "-"
			}
			compare(t, v.Node, files)
		})
	}
	for _, d := range wantedDifferences {
		if !used[d.path] {
			t.Errorf("%s differs nowhere: take it out of the table (%s)", d.path, d.why)
		}
	}
}

func TestNode(t *testing.T) {
	const noProbe = "defaultConfig:\n  meshId: usmesh\n"
	bare := NodeFacts{Hostname: "forum-vm", Addrs: forumVM.Addrs}
	for _, tt := range []struct {
		name  string
		files map[string]string
		facts NodeFacts
		want  map[string]any // leaves by JSON pointer; nil: not there
	}{
		{"without Envoy the machine says that it cannot take mTLS, wherever istiod reads labels", nil, bare, map[string]any{
			"/metadata/LABELS/security.istio.io~1tlsMode":        "disabled",
			"/metadata/STATIC_LABELS/security.istio.io~1tlsMode": "disabled",
			"/metadata/security.istio.io~1tlsMode":               "disabled",
			"/metadata/LABELS/app":                               "forum"}},
		{"with Envoy it says nothing of the kind", nil, forumVM, map[string]any{
			"/metadata/LABELS/security.istio.io~1tlsMode": nil, "/metadata/security.istio.io~1tlsMode": nil}},
		{"a label of the operator cannot promise mTLS without Envoy", map[string]string{wingmanYAML: "workload: {labels: {security.istio.io/tlsMode: istio}}\n"}, bare,
			map[string]any{"/metadata/LABELS/security.istio.io~1tlsMode": "disabled"}},
		{"Envoy without inbound capture cannot take mTLS either", map[string]string{wingmanYAML: "capture: dns\n"}, forumVM,
			map[string]any{"/metadata/LABELS/security.istio.io~1tlsMode": "disabled"}},
		{"nor without inbound ports", map[string]string{wingmanYAML: "rules: {inboundPorts: []}\n"}, forumVM,
			map[string]any{"/metadata/LABELS/security.istio.io~1tlsMode": "disabled"}},
		{"rules that the operator keeps are trusted", map[string]string{sidecarEnv: "ISTIO_CUSTOM_IP_TABLES=true\n", wingmanYAML: "rules: {inboundPorts: []}\n"}, forumVM,
			map[string]any{"/metadata/LABELS/security.istio.io~1tlsMode": nil}},
		{"without a configured probe there is an empty one, so that health reports count", map[string]string{meshConfig: noProbe}, forumVM,
			map[string]any{"/metadata/PROXY_CONFIG/readinessProbe": map[string]any{}}},
		{"wingman.yaml's probe goes to istiod in its own words", map[string]string{wingmanYAML: "probe: {tcpSocket: {port: 99}, periodSeconds: 3}\n"}, forumVM, map[string]any{
			"/metadata/PROXY_CONFIG/readinessProbe/tcpSocket/port": 99.0, "/metadata/PROXY_CONFIG/readinessProbe/periodSeconds": 3.0,
			"/metadata/PROXY_CONFIG/readinessProbe/httpGet/port": nil}},
		{"IPv6 stands in the id as it is", nil, NodeFacts{Hostname: "forum-vm", Envoy: true, Addrs: []netip.Addr{netip.MustParseAddr("fd00:99::2")}}, map[string]any{
			"/id": "sidecar~fd00:99::2~forum-vm.forum-services~forum-services.svc.cluster.local", "/metadata/INSTANCE_IPS": "fd00:99::2"}},
		{"dual stack: the first address names the entry", nil,
			NodeFacts{Hostname: "forum-vm", Envoy: true, Addrs: []netip.Addr{netip.MustParseAddr("10.99.0.2"), netip.MustParseAddr("fd00:99::2"), netip.MustParseAddr("10.99.0.2")}},
			map[string]any{"/id": "sidecar~10.99.0.2~forum-vm.forum-services~forum-services.svc.cluster.local", "/metadata/INSTANCE_IPS": "10.99.0.2,fd00:99::2"}},
		{"the short host name counts, in its own letter case, as hostname -s gives it", nil, NodeFacts{Hostname: "Forum-VM.example.com", Addrs: forumVM.Addrs},
			map[string]any{"/id": "sidecar~10.99.0.2~Forum-VM.forum-services~forum-services.svc.cluster.local", "/metadata/NAME": "Forum-VM"}},
		{"POD_NAME comes before the host name", map[string]string{sidecarEnv: "POD_NAME=forum-1\n"}, forumVM, map[string]any{
			"/id": "sidecar~10.99.0.2~forum-1.forum-services~forum-services.svc.cluster.local", "/metadata/NAME": "forum-1"}},
		{"a name cannot break the id apart", map[string]string{sidecarEnv: "POD_NAME='a~b'\n"}, forumVM, map[string]any{"/metadata/NAME": "a-b"}},
		{"a machine without a name", nil, NodeFacts{Addrs: forumVM.Addrs}, map[string]any{"/metadata/NAME": "vm"}},
		{"another domain", map[string]string{sidecarEnv: "ISTIO_AGENT_FLAGS='--domain forum-services.svc.mesh.example'\n"}, forumVM, map[string]any{
			"/id": "sidecar~10.99.0.2~forum-vm.forum-services~forum-services.svc.mesh.example"}},
		{"ISTIO_META_* that we do not know are passed on", map[string]string{sidecarEnv: "ISTIO_META_IDLE_TIMEOUT=30s\nISTIO_META_OWN=2\n", clusterEnv: "A=1\nISTIO_META_HTTP10=1\n"}, forumVM,
			map[string]any{"/metadata/IDLE_TIMEOUT": "30s", "/metadata/HTTP10": "1", "/metadata/OWN": "2"}},
		{"ISTIO_METAJSON_* objects lie flat in the metadata", map[string]string{sidecarEnv: `ISTIO_METAJSON_EXTRA='{"a":{"b":[1,true]},"NODE_NAME":"n1"}'` + "\n"}, forumVM,
			map[string]any{"/metadata/a/b": []any{1.0, true}, "/metadata/NODE_NAME": "n1"}},
		{"a label cannot take the place of what istiod decodes", map[string]string{clusterEnv: `ISTIO_METAJSON_LABELS='{"NETWORK":"x","LABELS":"y","TEAM":"z"}'` + "\n"}, forumVM,
			map[string]any{"/metadata/NETWORK": "vm-network", "/metadata/LABELS/NETWORK": "x", "/metadata/TEAM": "z"}},
		{"bools are written as istiod reads them", map[string]string{sidecarEnv: "ISTIO_META_DNS_AUTO_ALLOCATE=1\nISTIO_META_ENABLE_HBONE=TRUE\n"}, forumVM,
			map[string]any{"/metadata/DNS_AUTO_ALLOCATE": "true", "/metadata/ENABLE_HBONE": "true", "/metadata/METADATA_DISCOVERY": "true"}},
		{"a setting of wingman.yaml beats the variable in the metadata too", map[string]string{wingmanYAML: "dns: {capture: false}\nworkload: {network: other}\n"}, forumVM,
			map[string]any{"/metadata/DNS_CAPTURE": "false", "/metadata/NETWORK": "other"}},
		{"an empty network in cluster.env, as istioctl writes it for the cluster's own", map[string]string{clusterEnv: "ISTIO_META_NETWORK=''\n"}, forumVM, map[string]any{"/metadata/NETWORK": ""}},
		{"wingman.yaml takes the network and the group away", map[string]string{wingmanYAML: "workload: {network: \"\", group: \"\"}\n"}, forumVM,
			map[string]any{"/metadata/NETWORK": "", "/metadata/AUTO_REGISTER_GROUP": ""}},
		{"TPROXY is announced, or istiod would build listeners for REDIRECT", map[string]string{sidecarEnv: "ISTIO_INBOUND_INTERCEPTION_MODE=TPROXY\n"}, forumVM,
			map[string]any{"/metadata/INTERCEPTION_MODE": "TPROXY", "/metadata/PROXY_CONFIG/interceptionMode": "TPROXY"}},
		{"the locality comes from its label", map[string]string{wingmanYAML: "workload: {labels: {istio-locality: eu.west.a}}\n"}, forumVM, map[string]any{
			"/locality/region": "eu", "/locality/zone": "west", "/locality/sub_zone": "a", "/metadata/LABELS/istio-locality": "eu/west/a"}},
		{"the newer locality label comes first", map[string]string{wingmanYAML: "workload: {labels: {istio-locality: x, topology.istio.io/locality: eu/west}}\n"}, forumVM,
			map[string]any{"/locality/region": "eu", "/locality/zone": "west", "/metadata/LABELS/istio-locality": "eu/west"}},
		{"ISTIO_SERVICE names the cluster", map[string]string{sidecarEnv: "ISTIO_SERVICE=a.b\n", clusterEnv: "ISTIO_NAMESPACE=n\n"}, forumVM, map[string]any{"/cluster": "a.b"}},
		{"without it the app label does", map[string]string{clusterEnv: "ISTIO_NAMESPACE=n\nISTIO_METAJSON_LABELS='{\"app\":\"x\",\"service.istio.io/canonical-name\":\"y\"}'\n", meshConfig: noProbe}, forumVM,
			map[string]any{"/cluster": "x.n"}},
		{"then the workload's name", map[string]string{clusterEnv: "ISTIO_NAMESPACE=n\nISTIO_META_WORKLOAD_NAME=w\n", meshConfig: noProbe}, forumVM, map[string]any{"/cluster": "w.n"}},
		{"then nothing of its own", map[string]string{clusterEnv: "ISTIO_NAMESPACE=n\n", meshConfig: noProbe}, forumVM, map[string]any{"/cluster": "istio-proxy.n"}},
		{"tracingServiceName asks for the canonical name", map[string]string{clusterEnv: "ISTIO_NAMESPACE=n\nISTIO_METAJSON_LABELS='{\"app\":\"x\",\"service.istio.io/canonical-name\":\"y\"}'\n",
			meshConfig: "defaultConfig: {tracingServiceName: CANONICAL_NAME_AND_NAMESPACE}\n"}, forumVM, map[string]any{
			"/cluster": "y.n", "/metadata/PROXY_CONFIG/serviceCluster": nil, "/metadata/PROXY_CONFIG/tracingServiceName": "CANONICAL_NAME_AND_NAMESPACE"}},
		{"fields of mesh.yaml that are unknown here are kept", map[string]string{meshConfig: "defaultConfig: {fromTheFuture: {a: [1, x]}, runtimeValues: {x: y}, concurrency: 0}\n"}, forumVM, map[string]any{
			"/metadata/PROXY_CONFIG/fromTheFuture/a": []any{1.0, "x"}, "/metadata/PROXY_CONFIG/runtimeValues/x": "y", "/metadata/PROXY_CONFIG/concurrency": 0.0}},
		{"PROXY_CONFIG overrides fields of mesh.yaml and adds to its proxyMetadata", map[string]string{sidecarEnv: "PROXY_CONFIG='\nmeshId: other\nproxyMetadata:\n  ISTIO_META_NEW: x\n'\n"}, forumVM, map[string]any{
			"/metadata/PROXY_CONFIG/meshId": "other", "/metadata/PROXY_CONFIG/proxyMetadata/ISTIO_META_NEW": "x", "/metadata/PROXY_CONFIG/proxyMetadata/POD_NAMESPACE": "forum-services",
			"/metadata/NEW": "x", "/metadata/MESH_ID": "usmesh"}},
		{"PILOT_ADDRESS shows in PROXY_CONFIG, as in pilot-agent", map[string]string{sidecarEnv: "PILOT_ADDRESS=istiod.mesh:443\n"}, forumVM, map[string]any{
			"/metadata/PROXY_CONFIG/discoveryAddress": "istiod.mesh:443", "/metadata/PILOT_SAN": []any{"istiod.mesh"}}},
		{"a tunnel on localhost leads to istiod", map[string]string{sidecarEnv: "PILOT_ADDRESS=localhost:15012\n"}, forumVM, map[string]any{"/metadata/PILOT_SAN": []any{"istiod.istio-system.svc"}}},
		{"ports that were changed", map[string]string{wingmanYAML: "status: {port: 16020, readinessPort: 16021}\ndns: {listen: 127.0.0.1:5353}\n"}, forumVM, map[string]any{
			"/metadata/PROXY_CONFIG/statusPort": 16020.0, "/metadata/ENVOY_STATUS_PORT": 16021.0, "/metadata/DNS_PROXY_ADDR": "127.0.0.1:5353"}},
		{"an operator may claim another version", map[string]string{sidecarEnv: "ISTIO_META_ISTIO_VERSION=1.29.0\n"}, forumVM, map[string]any{"/metadata/ISTIO_VERSION": "1.29.0"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, _ := newMachine(t, tt.files).load()
			node := asJSON(t, c.Node(tt.facts))
			for path, want := range tt.want {
				if got := at(node, path); !cmp.Equal(got, want) {
					t.Errorf("%s is %v, want %v", path, got, want)
				}
			}
		})
	}
}

// TestNodeOfAnEmptyConfig must not panic: other packages' tests make such ones.
func TestNodeOfAnEmptyConfig(t *testing.T) {
	if n := (&Config{}).Node(NodeFacts{}); n.ID != "sidecar~~vm.~." || n.Metadata["LABELS"].(map[string]any)[tlsModeLabel] != "disabled" {
		t.Errorf("node %+v", n)
	}
}

// at returns the value at a JSON pointer, nil when there is none.
func at(v any, pointer string) any {
	for _, name := range strings.Split(pointer, "/")[1:] {
		object, _ := v.(map[string]any)
		v = object[strings.ReplaceAll(name, "~1", "/")]
	}
	return v
}

// TestNodeIsItsOwn changes a node and asks for another.
func TestNodeIsItsOwn(t *testing.T) {
	c, _ := newMachine(t, nil).load()
	n := c.Node(forumVM)
	n.Metadata["PROXY_CONFIG"].(map[string]any)["readinessProbe"].(map[string]any)["httpGet"] = nil
	n.Metadata["LABELS"].(map[string]any)["app"] = "changed"
	if diff := cmp.Diff(flatten(pilotAgentNode(t)["metadata"].(map[string]any)["PROXY_CONFIG"], "", map[string]any{}),
		flatten(c.Node(forumVM).Metadata["PROXY_CONFIG"], "", map[string]any{})); diff != "" {
		t.Errorf("a node changed the next one:\n%s", diff)
	}
	if c.Labels["app"] != "forum" {
		t.Error("a node changed the config")
	}
}

// TestProxyConfigAgreesWithIstioAPI compares our reading of ProxyConfig with the real message's: what istiod decodes from
// PROXY_CONFIG must be what it would have decoded from the file, over Istio's defaults.
func TestProxyConfigAgreesWithIstioAPI(t *testing.T) {
	for _, tt := range []struct{ name, yaml, json string }{
		{"texts and numbers", "discoveryAddress: a:1\nstatusPort: 15020\nproxyAdminPort: \"15000\"\nstatNameLength: 0\n", `{"discoveryAddress":"a:1","statNameLength":0}`},
		{"durations", "drainDuration: 90s\nterminationDrainDuration: 60s\nfileFlushInterval: 0.25s\n", `{"discoveryAddress":"istiod.istio-system.svc:15012","drainDuration":"90s","terminationDrainDuration":"60s","fileFlushInterval":"0.25s"}`},
		{"boxed values keep their zero", "concurrency: 0\nstatsCompression: false\nholdApplicationUntilProxyStarts: true\n", `{"discoveryAddress":"istiod.istio-system.svc:15012","concurrency":0,"statsCompression":false,"holdApplicationUntilProxyStarts":true}`},
		{"names of the proto file", "discovery_address: a:1\nreadiness_probe: {tcp_socket: {port: 8}}\n", `{"discoveryAddress":"a:1","readinessProbe":{"tcpSocket":{"port":8}}}`},
		{"messages, lists and maps", "tracing: {zipkin: {address: \"z:9411\"}, sampling: 10}\nextraStatTags: [a, b]\nproxyStatsMatcher: {inclusionRegexps: [\".*\"]}\nproxyMetadata: {ISTIO_META_X: \"1\"}\ngatewayTopology: {numTrustedProxies: 2}\n",
			`{"discoveryAddress":"istiod.istio-system.svc:15012","tracing":{"zipkin":{"address":"z:9411"},"sampling":10},"extraStatTags":["a","b"],"proxyStatsMatcher":{"inclusionRegexps":[".*"]},"proxyMetadata":{"ISTIO_META_X":"1"},"gatewayTopology":{"numTrustedProxies":2}}`},
		{"enums by name and number", "interceptionMode: 1\ncontrolPlaneAuthPolicy: NONE\ntracingServiceName: CANONICAL_NAME_ONLY\n", `{"discoveryAddress":"istiod.istio-system.svc:15012","interceptionMode":"TPROXY","controlPlaneAuthPolicy":"NONE","tracingServiceName":"CANONICAL_NAME_ONLY"}`},
		{"certificates", "caCertificatesPem: [\"-----BEGIN\"]\nimage: {imageType: distroless}\nproxyHeaders: {server: {disabled: true}}\n", `{"discoveryAddress":"istiod.istio-system.svc:15012","caCertificatesPem":["-----BEGIN"],"image":{"imageType":"distroless"},"proxyHeaders":{"server":{"disabled":true}}}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			indented := "defaultConfig:\n  " + strings.ReplaceAll(strings.TrimSpace(tt.yaml), "\n", "\n  ") + "\n"
			c, _ := newMachine(t, map[string]string{meshConfig: indented, clusterEnv: "ISTIO_NAMESPACE=n\n"}).load()
			b, err := json.Marshal(c.Node(forumVM).Metadata["PROXY_CONFIG"])
			if err != nil {
				t.Fatal(err)
			}
			got, want := &meshconfig.ProxyConfig{}, &meshconfig.ProxyConfig{}
			if err := protojson.Unmarshal(b, got); err != nil { // strictly: no unknown names
				t.Fatalf("istiod could not decode %s: %v", b, err)
			}
			if got.ReadinessProbe == nil {
				t.Errorf("no readiness probe in %s: istiod would ignore health reports", b)
			}
			if err := protojson.Unmarshal(overIstiosDefaults(t, tt.json), want); err != nil {
				t.Fatal(err)
			}
			if want.ReadinessProbe == nil {
				got.ReadinessProbe = nil
			}
			if diff := cmp.Diff(protojson.Format(want), protojson.Format(got)); diff != "" {
				t.Errorf("decoded (-file +PROXY_CONFIG):\n%s", diff)
			}
		})
	}
}

// overIstiosDefaults puts a ProxyConfig over Istio's DefaultProxyConfig (pkg/config/mesh/mesh.go), field by field.
func overIstiosDefaults(t *testing.T, fields string) []byte {
	t.Helper()
	all, over := map[string]any{}, map[string]any{}
	for text, into := range map[string]*map[string]any{fields: &over, `{"configPath":"./etc/istio/proxy","serviceCluster":"istio-proxy","drainDuration":"45s",
		"terminationDrainDuration":"5s","proxyAdminPort":15000,"controlPlaneAuthPolicy":"MUTUAL_TLS","discoveryAddress":"istiod.istio-system.svc:15012",
		"binaryPath":"/usr/local/bin/envoy","statNameLength":189,"statusPort":15020}`: &all} {
		if err := json.Unmarshal([]byte(text), into); err != nil {
			t.Fatal(err)
		}
	}
	if _, ok := over["tracingServiceName"]; ok { // one of the two
		delete(all, "serviceCluster")
	}
	maps.Copy(all, over)
	b, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestProxyFieldsAreAll compares the table of fields with the message's descriptor.
func TestProxyFieldsAreAll(t *testing.T) {
	fields := (&meshconfig.ProxyConfig{}).ProtoReflect().Descriptor().Fields()
	known := map[string]bool{}
	for i := range fields.Len() {
		name := fields.Get(i).JSONName()
		known[name] = true
		if _, ok := proxyFields[name]; !ok {
			t.Errorf("no kind for %s", name)
		}
	}
	for name := range proxyFields {
		if !known[name] {
			t.Errorf("%s is no field of ProxyConfig", name)
		}
	}
}
