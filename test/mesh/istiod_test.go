package mesh_test

import (
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"wingman/test/mesh"
	"wingman/test/mesh/kube"
)

func TestIstiodFollowsItsSettingsAndStopsPolitely(t *testing.T) {
	m := start(t, mesh.Options{})
	published := kube.Ref{APIVersion: "v1", Kind: "ConfigMap", Namespace: mesh.SystemNamespace, Name: "istio"}

	if err := m.SetMeshConfig(t.Context(), mesh.DefaultMeshConfig+"accessLogFile: /dev/stdout\n"); err != nil {
		t.Fatal(err)
	}
	awaitAccessLog(t, m)
	if o, err := m.Kube.Get(t.Context(), published); err != nil || !strings.Contains(o.String("data", "mesh"), "accessLogFile") {
		t.Errorf("istioctl would read %q (%v), want the new settings too", o.String("data", "mesh"), err)
	}

	if err := m.StopIstiod(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Debug(t.Context(), "/debug/mesh"); err == nil {
		t.Error("istiod answers after it was stopped")
	}
	if err := m.StartIstiod(t.Context()); err != nil {
		t.Fatal(err)
	}
	awaitAccessLog(t, m)
	if err := m.StartIstiod(t.Context()); err == nil {
		t.Error("a second istiod was started beside the first")
	}
}

// awaitAccessLog waits until istiod's settings name an access log; istiod watches its file.
func awaitAccessLog(t *testing.T, m *mesh.Mesh) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(30 * time.Second); ; <-tick.C {
		page, err := m.Debug(t.Context(), "/debug/mesh")
		if err != nil {
			t.Fatal(err)
		}
		var settings struct{ AccessLogFile string }
		if err := json.Unmarshal(page, &settings); err != nil {
			t.Fatalf("read /debug/mesh: %v:\n%s", err, page)
		}
		if settings.AccessLogFile == "/dev/stdout" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("istiod never took its settings up: %s", page)
		}
	}
}

func TestReplacedCAHasAnotherRoot(t *testing.T) {
	m := start(t, mesh.Options{Objects: "apiVersion: v1\nkind: Namespace\nmetadata: {name: forum-services}\n"})
	before, err := m.Root(t.Context(), "forum-services")
	if err != nil {
		t.Fatal(err)
	}
	if err := m.ReplaceCA(t.Context(), "forum-services"); err != nil {
		t.Fatal(err)
	}
	if after, err := m.Root(t.Context(), "forum-services"); err != nil || string(after) == string(before) {
		t.Errorf("root after ReplaceCA (%v) is the same as before", err)
	}
}

func TestStartThatFailsSaysWhyAndLeavesNothing(t *testing.T) {
	m := start(t, mesh.Options{})
	dir := t.TempDir()
	// The ports are taken by the first one.
	second, err := mesh.Start(t.Context(), mesh.Options{Binaries: binariesOf(t), Dir: dir})
	if err == nil {
		t.Fatal(errors.Join(errors.New("two meshes at the same ports"), second.Close()))
	}
	if !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("error does not say that the port is taken: %v", err)
	}
	if _, err := m.Debug(t.Context(), "/debug/mesh"); err != nil {
		t.Errorf("the first mesh suffered: %v", err)
	}
	if _, err := os.Stat(dir + "/istiod.log"); err == nil {
		t.Error("istiod was started without an API server")
	}
}
