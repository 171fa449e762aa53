package controlplane

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
)

// The ways a caller can prove who it is.
const (
	ByCertificate = "certificate"
	ByToken       = "token"
)

// caller is an authenticated client.
type caller struct {
	identity string // SPIFFE id
	by       string // ByCertificate or ByToken
}

// spiffeID is a parsed identity.
type spiffeID struct{ trustDomain, namespace, serviceAccount string }

func (id spiffeID) String() string {
	return "spiffe://" + id.trustDomain + "/ns/" + id.namespace + "/sa/" + id.serviceAccount
}

// parseSPIFFE reads spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT. Istio: pkg/spiffe/spiffe.go, ParseIdentity.
func parseSPIFFE(text string) (spiffeID, error) {
	rest, ok := strings.CutPrefix(text, "spiffe://")
	parts := strings.Split(rest, "/")
	if !ok || len(parts) != 5 || parts[1] != "ns" || parts[3] != "sa" {
		return spiffeID{}, fmt.Errorf("identity %q: want spiffe://DOMAIN/ns/NAMESPACE/sa/ACCOUNT", text)
	}
	return spiffeID{parts[0], parts[2], parts[4]}, nil
}

// authenticate tries the client certificate, then the bearer token; the first that passes is the caller. The error says
// why each one did not, for the event log; clients are told nothing of it.
// Istio: pilot/pkg/bootstrap/server.go orders the authenticators like this, pkg/security/authentication.go runs them.
func (s *Server) authenticate(ctx context.Context) (caller, error) {
	id, certErr := certificateIdentity(ctx)
	if certErr == nil {
		return caller{id, ByCertificate}, nil
	}
	id, tokenErr := s.tokenIdentity(ctx)
	if tokenErr == nil {
		return caller{id, ByToken}, nil
	}
	return caller{}, fmt.Errorf("certificate: %w; token: %w", certErr, tokenErr)
}

// certificateIdentity returns the SPIFFE id of the client certificate; the handshake has verified it.
func certificateIdentity(ctx context.Context) (string, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return "", errors.New("no peer")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.VerifiedChains) == 0 || len(info.State.VerifiedChains[0]) == 0 {
		return "", errors.New("none presented")
	}
	leaf := info.State.VerifiedChains[0][0]
	if len(leaf.URIs) != 1 {
		return "", fmt.Errorf("%d URI names, want 1", len(leaf.URIs))
	}
	return leaf.URIs[0].String(), nil
}

func (s *Server) tokenIdentity(ctx context.Context) (string, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	token := ""
	for _, v := range md.Get("authorization") {
		if after, ok := strings.CutPrefix(v, "Bearer "); ok {
			token = after
			break
		}
	}
	if token == "" {
		return "", errors.New("none sent")
	}
	if ids := md.Get("clusterid"); len(ids) == 1 && ids[0] != "" && len(s.cfg.Clusters) > 0 && !slices.Contains(s.cfg.Clusters, ids[0]) {
		return "", fmt.Errorf("cluster %q is not one of %q", ids[0], s.cfg.Clusters)
	}
	c, err := s.tokens.check(token, time.Now())
	if err != nil {
		return "", err
	}
	return spiffeID{s.cfg.TrustDomain, c.Kubernetes.Namespace, c.Kubernetes.ServiceAccount.Name}.String(), nil
}

// tlsConfig is what one handshake gets: the newest serving certificate and roots. Client certificates are optional, but
// one that is sent and does not verify ends the handshake, a good token notwithstanding, as with istiod.
func (s *Server) tlsConfig(*tls.ClientHelloInfo) (*tls.Config, error) {
	s.mu.Lock()
	a := s.authority
	s.mu.Unlock()
	return &tls.Config{
		MinVersion:   tls.VersionTLS12,
		NextProtos:   []string{"h2"},
		Certificates: []tls.Certificate{*a.serving},
		ClientAuth:   tls.VerifyClientCertIfGiven,
		ClientCAs:    a.pool(),
		VerifyPeerCertificate: func(_ [][]byte, chains [][]*x509.Certificate) error {
			if len(chains) == 0 {
				return nil
			}
			leaf := chains[0][0]
			if len(leaf.URIs) != 1 {
				return fmt.Errorf("peer certificate has %d URI names, want 1", len(leaf.URIs))
			}
			id, err := parseSPIFFE(leaf.URIs[0].String())
			if err != nil {
				return err
			}
			if id.trustDomain != s.cfg.TrustDomain {
				return fmt.Errorf("no roots for trust domain %q", id.trustDomain)
			}
			return nil
		},
	}, nil
}
