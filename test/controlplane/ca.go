package controlplane

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	securityapi "istio.io/api/security/v1alpha1"
)

// certificateService is istio.v1.auth.IstioCertificateService. Istio: security/pkg/server/ca/server.go.
type certificateService struct {
	securityapi.UnimplementedIstioCertificateServiceServer
	s *Server
}

// CreateCertificate signs the key of a CSR for whoever calls; what names the CSR asks for does not matter.
func (c certificateService) CreateCertificate(ctx context.Context, req *securityapi.IstioCertificateRequest) (*securityapi.IstioCertificateResponse, error) {
	fault, delay := c.s.faults.takeCA()
	if err := wait(ctx, delay); err != nil {
		return nil, err
	}
	switch fault.Reply {
	case CAHang:
		<-ctx.Done()
		return nil, status.FromContextError(ctx.Err()).Err()
	case CAError:
		c.s.note(Event{Kind: CertificateRefused, Code: fault.Code, Detail: "by a lever"})
		return nil, status.Error(fault.Code, "refused by a lever of the stand-in")
	}
	who, err := c.s.authenticate(ctx)
	if err != nil {
		c.s.note(Event{Kind: CertificateRefused, Code: codes.Unauthenticated, Detail: err.Error()})
		return nil, status.Error(codes.Unauthenticated, "request authenticate failure")
	}
	if req.GetMetadata().GetFields()["ImpersonatedIdentity"].GetStringValue() != "" {
		c.s.note(Event{Kind: CertificateRefused, Code: codes.Unauthenticated, Identity: who.identity, Detail: "impersonation"})
		return nil, status.Error(codes.Unauthenticated, "request impersonation authentication failure")
	}
	res, leaf, err := c.s.sign(req, who, fault)
	if err != nil {
		c.s.note(Event{Kind: CertificateRefused, Code: status.Code(err), Identity: who.identity, Detail: err.Error()})
		return nil, err
	}
	c.s.note(Event{
		Kind: CertificateIssued, Identity: who.identity, By: who.by,
		Serial: leaf.SerialNumber.Text(16), NotAfter: leaf.NotAfter, Detail: string(fault.Reply),
	})
	return res, nil
}

// sign makes the reply: leaf first, then the intermediates one by one, all roots in one last element.
func (s *Server) sign(req *securityapi.IstioCertificateRequest, who caller, fault CAFault) (*securityapi.IstioCertificateResponse, *x509.Certificate, error) {
	csr, err := parseCSR(req.GetCsr())
	if err != nil {
		return nil, nil, status.Errorf(codes.InvalidArgument, "CSR signing error (%v)", err)
	}
	life := time.Duration(req.GetValidityDuration()) * time.Second
	if life > s.cfg.MaxCertTTL {
		return nil, nil, status.Errorf(codes.InvalidArgument,
			"CSR signing error (requested TTL %s is greater than the max allowed TTL %s)", life, s.cfg.MaxCertTTL)
	}
	if life <= 0 {
		life = s.cfg.CertTTL
	}
	if fault.Validity != 0 {
		life = fault.Validity
	}
	s.mu.Lock()
	a := s.authority
	s.mu.Unlock()
	signer, identity, key := a, who.identity, csr.PublicKey
	switch fault.Reply {
	case CAOtherKey:
		other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, nil, status.Errorf(codes.Internal, "CSR signing error (%v)", err)
		}
		key = other.Public()
	case CAOtherIdentity:
		identity = spiffeID{s.cfg.TrustDomain, "kube-system", "intruder"}.String()
	case CAForeignRoot:
		if signer, err = newAuthority(s.cfg); err != nil {
			return nil, nil, status.Errorf(codes.Internal, "CSR signing error (%v)", err)
		}
	}
	leaf, err := signer.issue(identity, key, time.Now().Add(life))
	if err != nil {
		return nil, nil, status.Errorf(codes.Internal, "CSR signing error (%v)", err)
	}
	chain := []string{string(encodeCerts(leaf))}
	for _, c := range signer.chain {
		chain = append(chain, string(encodeCerts(c)))
	}
	chain = append(chain, string(a.bundlePEM()))
	return &securityapi.IstioCertificateResponse{CertChain: fault.Reply.spoil(chain)}, leaf, nil
}

// spoil applies those faults that change a finished chain.
func (r CAReply) spoil(chain []string) []string {
	switch r {
	case CAOneCertificate:
		return chain[:1]
	case CAEmpty:
		return nil
	case CAWrongOrder:
		slices.Reverse(chain)
	case CAGarbage:
		return []string{"-----BEGIN CERTIFICATE-----\nbm90IGEgY2VydGlmaWNhdGU=\n-----END CERTIFICATE-----\n", "not even PEM"}
	}
	return chain
}

// wait blocks for d, or until ctx ends: then its status error.
func wait(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	}
}
