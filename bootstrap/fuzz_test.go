package bootstrap

import (
	"encoding/json"
	"maps"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"
	meshconfig "istio.io/api/mesh/v1alpha1"
)

// fuzzLoad loads a machine whose settings' files are in memory, and checks what must hold whatever they say.
func fuzzLoad(t *testing.T, root string, files map[string]string) *Config {
	t.Helper()
	snapshot := Snapshot{}
	for path, content := range files {
		snapshot[filepath.Join(root, path)] = []byte(content)
	}
	c, problems := LoadSnapshot(root, snapshot)
	if (problems.Without(KeyRootCert).Err() == nil) != (c != nil) {
		t.Fatalf("config %v with problems %v", c != nil, problems)
	}
	for _, p := range problems {
		path := strings.TrimPrefix(p.File, root)
		if lines := strings.Count(files[path], "\n") + 1; p.Found == "" || p.Line < 0 || p.File != "" && p.Line > lines {
			t.Fatalf("problem without a place in %d lines: %+v", lines, p)
		}
	}
	if c == nil {
		return nil
	}
	for _, s := range c.Settings() {
		if s.Key == "" {
			t.Fatalf("setting without a key: %+v", s)
		}
	}
	for _, envoy := range []bool{true, false} {
		facts := forumVM
		facts.Envoy = envoy
		n := c.Node(facts)
		if strings.Count(n.ID, "~") != 3 {
			t.Fatalf("node id %q", n.ID)
		}
		if _, err := structpb.NewStruct(n.Metadata); err != nil {
			t.Fatalf("metadata is no Struct: %v", err)
		}
		for name, want := range typedMetadata {
			if _, text := n.Metadata[name].(string); n.Metadata[name] != nil && text != (want != metaOther) {
				t.Fatalf("metadata %s is %T", name, n.Metadata[name])
			}
		}
		if mode := n.Metadata["LABELS"].(map[string]any)[tlsModeLabel]; !envoy && mode != "disabled" {
			t.Fatalf("tlsMode is %v without Envoy", mode)
		}
		b, err := json.Marshal(n.Metadata["PROXY_CONFIG"])
		if err != nil {
			t.Fatal(err)
		}
		decodeProxyConfig(t, b)
	}
	return c
}

// decodeProxyConfig decodes as istiod does, but for fields that are messages, which go to istiod as they stand in the file.
func decodeProxyConfig(t *testing.T, b []byte) {
	t.Helper()
	var fields map[string]any
	if err := json.Unmarshal(b, &fields); err != nil {
		t.Fatal(err)
	}
	maps.DeleteFunc(fields, func(name string, _ any) bool {
		kind, known := proxyFields[name]
		return !known && proxyFields[lowerCamel(name)] == messageField || kind == messageField || kind == enumField
	})
	b, err := json.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(b, &meshconfig.ProxyConfig{}); err != nil {
		t.Fatalf("istiod could not decode %s: %v", b, err)
	}
}

func FuzzMeshYAML(f *testing.F) {
	m := newMachine(f, nil)
	f.Add(fixtures(f)[meshConfig])
	f.Add("defaultConfig: &a {tracing: *a, readinessProbe: {httpGet: {port: 80}}}\n")
	f.Add("defaultConfig:\n  drainDuration: 1.5s\n  concurrency: 0x10\n  proxyMetadata: {ISTIO_METAJSON_X: '{}', '': x}\n  caCertificatesPem: [a]\n---\n")
	f.Add("defaultConfig: {readinessProbe: {exec: {command: [a, b]}, periodSeconds: 1e3}, statNameLength: .nan}\n")
	f.Fuzz(func(t *testing.T, src string) {
		fuzzLoad(t, m.root, map[string]string{clusterEnv: "ISTIO_NAMESPACE=n\n", meshConfig: src})
	})
}

func FuzzWingmanYAML(f *testing.F) {
	m := newMachine(f, nil)
	for key, sample := range samples {
		section, name, nested := strings.Cut(key, ".")
		if nested {
			f.Add(section + ":\n  " + name + ": " + sample + "\n")
		}
	}
	f.Add("probe: {grpc: {port: 5}}\nworkload: {labels: {a: b, ? [x] : y}}\nlog: {scopes: {dns: debug}}\ncapture: !!str all\nrules: {inboundPorts: [8080, '*']}\n")
	f.Add("dns: &x {listen: \"[::1]:53\"}\nrules: *x\n<<: *x\n")
	f.Fuzz(func(t *testing.T, src string) {
		fuzzLoad(t, m.root, map[string]string{clusterEnv: "ISTIO_NAMESPACE=n\n", wingmanYAML: src})
	})
}

// FuzzVariables gives any text to any variable.
func FuzzVariables(f *testing.F) {
	m := newMachine(f, nil)
	for _, s := range settings {
		for _, name := range s.istio {
			f.Add(name, samples[s.key])
		}
	}
	f.Add("ISTIO_METAJSON_X", `{"LABELS":{"a":1},"NETWORK":"x","DNS_CAPTURE":"yes","b":[null,{}]}`)
	f.Add("ISTIO_METAJSON_LABELS", `{"PROXY_CONFIG":"x","istio-locality":"a.b.c.d"}`)
	f.Add("ISTIO_META_PROXY_CONFIG", "x")
	f.Add("ISTIO_AGENT_FLAGS", "--domain= --concurrency -1 --log_output_level=:,a:b:c")
	f.Add("PROXY_CONFIG", "proxyMetadata: {POD_NAME: a~b~c}\nserviceCluster: ''\n")
	mesh := fixtures(f)[meshConfig]
	f.Fuzz(func(t *testing.T, name, text string) {
		if envName.FindString(name) != name || name == "" {
			name = "ISTIO_AGENT_FLAGS"
		}
		fuzzLoad(t, m.root, map[string]string{clusterEnv: "A=1\n" + name + "=" + shellQuote(text) + "\n", meshConfig: mesh})
	})
}
