package credential

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
)

// GCE's identity tokens: https://cloud.google.com/compute/docs/instances/verifying-instance-identity
const gceIdentity = "/computeMetadata/v1/instance/service-accounts/default/identity"

// gceSource asks for the identity token of the VM's service account.
type gceSource struct {
	metadata
	audience string
}

// NewGCE is the source "gce". host "" means the usual address; GCE's own libraries take it from GCE_METADATA_HOST.
func NewGCE(host, audience string) Source {
	if host == "" {
		host = linkLocal
	}
	return &gceSource{metadata: newMetadata("GCE", host), audience: audience}
}

func (*gceSource) Name() string    { return "gce" }
func (s *gceSource) Where() string { return hostOf(s.base) }
func (*gceSource) Local() bool     { return false }

func (s *gceSource) Token(ctx context.Context) (Token, error) {
	query := url.Values{"audience": {s.audience}, "format": {"full"}} // full: the claims name the instance
	a, err := s.ask(ctx, http.MethodGet, gceIdentity+"?"+query.Encode(), map[string]string{"Metadata-Flavor": "Google"})
	if err != nil {
		return Token{}, err
	}
	token, ok := tokenOf(string(a.body))
	switch {
	case a.header.Get("Metadata-Flavor") != "Google":
		return Token{}, fmt.Errorf("what answers at %s is not GCE's metadata server (no Metadata-Flavor: Google): %s", s.Where(), a.unexpected())
	case a.status == http.StatusNotFound:
		return Token{}, fmt.Errorf("GCE's metadata server says 404: give this VM a service account")
	case a.status != http.StatusOK || !ok:
		return Token{}, fmt.Errorf("GCE's metadata server answers %s", a.unexpected())
	}
	return token, nil
}
