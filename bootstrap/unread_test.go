package bootstrap

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What somebody wrote for another agent is named, and only that.
func TestVariablesThatNothingReadsAreNamed(t *testing.T) {
	root := t.TempDir()
	for path, content := range map[string]string{
		"var/lib/istio/envoy/sidecar.env": "HAND_MADE=1\nISTIO_AGENT_FLAGS=\"--log_output_level=dns:info\"\nDNS_AGENT=x\nCA_PROVIDER=y\nISTIO_META_OWN=z\n",
		"var/lib/istio/envoy/cluster.env": "ISTIO_NAMESPACE='a'\nISTIO_SERVCE='near to one'\n",
		"etc/istio/config/mesh":           "defaultConfig:\n  proxyMetadata:\n    OF_THE_MESH: x\n",
	} {
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	c, problems := Load(root)
	if c == nil {
		t.Fatal(problems)
	}
	got := c.Unread()
	if len(got) != 1 || !strings.HasSuffix(got[0], "sidecar.env:1: HAND_MADE: found a variable that nothing reads") {
		t.Errorf("named: %q", got)
	}
}
