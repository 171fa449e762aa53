package join

import (
	"os"
	"strings"
	"testing"

	"wingman/agent/status"
	"wingman/test/controlplane"
	"wingman/test/files"
)

// A mesh of several roots (ISTIO_MULTIROOT_MESH) announces the next root before anything is signed by it: the machine trusts both at once, without
// a new certificate or a restart, and knows so after a restart while nobody is there to tell.
func TestAnAnnouncedRootIsTrustedBeforeItIsUsed(t *testing.T) {
	istiod := newIstiod(t, controlplane.Config{MultiRoot: true})
	m := newMachine(t, istiod)
	m.start()
	first := m.until("joined, and told of the one root", func(r status.Report) bool { return joined(r) && from(r, "mesh") == 1 })
	if err := istiod.Faults().RotateRoot(true); err != nil {
		t.Fatal(err)
	}
	m.until("both roots are trusted", func(r status.Report) bool { return from(r, "mesh") == 2 })
	m.until("applications find both", func(status.Report) bool { // within settleTime of the operator's last change to the file
		bundle, err := os.ReadFile(m.path(files.RootCert))
		return err == nil && strings.Count(string(bundle), "BEGIN CERTIFICATE") == 2
	})
	istiod.Stop()
	if err := m.stop(); err != nil {
		t.Fatal(err)
	}
	m.start()
	m.until("both are known from disk", func(r status.Report) bool {
		return r.Identity != nil && r.Identity.Serial == first.Identity.Serial && from(r, "mesh") == 2
	})
}

// from counts the trusted roots of a source.
func from(r status.Report, source string) (n int) {
	if r.Identity == nil {
		return 0
	}
	for _, root := range r.Identity.Roots {
		if root.Source == source {
			n++
		}
	}
	return n
}
