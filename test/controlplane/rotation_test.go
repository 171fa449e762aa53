package controlplane_test

import (
	"strings"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	meshapi "istio.io/api/mesh/v1alpha1"

	"wingman/test/controlplane"
)

func TestRootRotation(t *testing.T) {
	t.Parallel()
	for _, intermediate := range []bool{false, true} {
		cfg := controlplane.Config{MultiRoot: true, Intermediate: intermediate}

		t.Run("with overlap, old roots and certificates go on, and the bundle has both", func(t *testing.T) {
			s := withGroup(t, cfg)
			oldRoot := s.RootPEM()
			oldCert := newClient(t, s, oldRoot, nil).cert()
			st := newClient(t, s, oldRoot, nil).joined()
			request(t, st, &discoveryv3.DeltaDiscoveryRequest{TypeUrl: controlplane.ProxyConfig})
			if n := anchors(t, st); n != 1 {
				t.Errorf("%d trust anchors before, want 1", n)
			}
			if err := s.Faults().RotateRoot(true); err != nil {
				t.Fatal(err)
			}
			if n := anchors(t, st); n != 2 {
				t.Errorf("%d trust anchors pushed, want 2", n)
			}
			newCert := newClient(t, s, oldRoot, oldCert).cert() // dials with the old root, is known by the old certificate
			newClient(t, s, s.RootPEM(), newCert).cert()
		})

		t.Run("without overlap, neither goes on", func(t *testing.T) {
			s := withGroup(t, cfg)
			oldRoot := s.RootPEM()
			oldCert := newClient(t, s, oldRoot, nil).cert()
			if err := s.Faults().RotateRoot(false); err != nil {
				t.Fatal(err)
			}
			if _, _, err := newClient(t, s, oldRoot, nil).sign(); !strings.Contains(status.Convert(err).Message(), "unknown authority") {
				t.Errorf("with the old root: %v, want an unknown authority", err)
			}
			if _, _, err := newClient(t, s, s.RootPEM(), oldCert).sign(); status.Code(err) != codes.Unavailable {
				t.Errorf("with the old certificate: %v, want a broken handshake", err)
			}
			newClient(t, s, s.RootPEM(), nil).cert()
		})
	}

	t.Run("an expired serving certificate is refused by clients until it is renewed", func(t *testing.T) {
		s := withGroup(t, controlplane.Config{})
		if err := s.Faults().ExpireServing(); err != nil {
			t.Fatal(err)
		}
		if _, _, err := newClient(t, s, s.RootPEM(), nil).sign(); !strings.Contains(status.Convert(err).Message(), "expired") {
			t.Errorf("got %v, want an expired certificate", err)
		}
		if err := s.Faults().RenewServing(); err != nil {
			t.Fatal(err)
		}
		newClient(t, s, s.RootPEM(), nil).cert()
	})
}

// anchors is the number of trust anchors in the next answer, which must be PCDS.
func anchors(t *testing.T, st deltaStream) int {
	t.Helper()
	r, err := st.Recv()
	if err != nil {
		t.Fatal(err)
	}
	var pc meshapi.ProxyConfig
	if err := r.GetResources()[0].GetResource().UnmarshalTo(&pc); err != nil {
		t.Fatal(err)
	}
	return len(pc.GetCaCertificatesPem())
}
