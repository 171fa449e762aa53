package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"wingman/agent/envoy"
)

func TestEnvoyBootstrapPrintsWhatEnvoyWouldBeStartedWith(t *testing.T) {
	root := t.TempDir()
	for name, content := range map[string]string{
		"var/lib/istio/envoy/cluster.env": "POD_NAMESPACE='forum-services'\nSERVICE_ACCOUNT='forum-sa'\nISTIO_SVC_IP='10.99.0.2'\n",
		"etc/istio/config/mesh":           "defaultConfig:\n  proxyAdminPort: 15700\n  proxyStatsMatcher:\n    inclusionRegexps: ['(broken']\n",
	} {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	code, out, stderr := exec(t, "envoy", "bootstrap", "--root", root)
	if code != exitFine {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	facts, err := envoy.FactsOf([]byte(out))
	if err != nil || facts.Admin.Port() != 15700 {
		t.Errorf("facts %+v, %v; want the admin port of mesh.yaml", facts, err)
	}
	var file struct {
		Node struct{ ID string }
	}
	if err := json.Unmarshal([]byte(out), &file); err != nil || !strings.HasPrefix(file.Node.ID, "sidecar~10.99.0.2~") {
		t.Errorf("node %q, %v; want this machine's", file.Node.ID, err)
	}
	// What the mesh asks for and cannot have is said, and Envoy is not asked to do it.
	if !strings.Contains(stderr, "(broken") || strings.Contains(out, `"regex": "(broken"`) {
		t.Errorf("stderr %q, want the unusable pattern named there alone", stderr)
	}
}
