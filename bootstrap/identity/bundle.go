package identity

import (
	"crypto/x509"
	"fmt"
	"time"
)

// maxBundle bounds the trust anchors of a mesh's bundle.
const maxBundle = 1000

// TakeBundle makes pems, PEM certificates each, the mesh's part of the trust bundle, in the place of what was its part before. It is taken in
// completely or not at all: the error says which of them is no CA certificate, and nothing changes. An empty bundle changes nothing
// either: istiod's own root is always in it. The next turn of Run puts it into use; it outlives a restart with the certificate beside it.
func (m *Manager) TakeBundle(pems []string) error {
	certs, err := parseBundle(pems)
	if err != nil {
		return fmt.Errorf("trust bundle: %w", err)
	}
	if len(certs) == 0 {
		return nil
	}
	for { // the newest is the one that counts
		select {
		case m.bundles <- certs:
			return nil
		case <-m.bundles:
		}
	}
}

// parseBundle reads trust anchors, of which each may be several certificates (Istio: pilot/pkg/trustbundle).
func parseBundle(pems []string) ([]*x509.Certificate, error) {
	var all []*x509.Certificate
	for i, text := range pems {
		certs, err := parseRoots([]byte(text))
		if err != nil {
			return nil, fmt.Errorf("anchor %d: %w", i+1, err)
		}
		if all = append(all, certs...); len(all) > maxBundle {
			return nil, fmt.Errorf("more than %d certificates", maxBundle)
		}
	}
	return all, nil
}

// takeBundle puts the mesh's roots into use. What a failed request lacked may be among them.
func (r *runner) takeBundle(certs []*x509.Certificate, now time.Time) event {
	ev := event{kind: evTick}
	roots := r.roots.withMesh(certs)
	if roots.equal(r.roots) {
		return ev
	}
	r.cfg.Log.Info("trust bundle of the mesh taken in", "roots", names(roots.of(fromMesh)))
	r.use(r.Current(), roots, now)
	ev.kind = evWake
	if c := r.Current(); c != nil {
		ev.life = c.lifeAt(now)
	}
	return ev
}
