package credential

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
)

// Azure's managed identities: https://learn.microsoft.com/entra/identity/managed-identities-azure-resources/how-to-use-vm-token
const (
	azureToken   = "/metadata/identity/oauth2/token"
	azureVersion = "2018-02-01"
)

// azureSource asks for an access token of the VM's managed identity.
type azureSource struct {
	metadata
	resource, client string
}

// NewAzure is the source "azure". host "" means the usual address; Azure's own libraries take it from AZURE_POD_IDENTITY_AUTHORITY_HOST. resource
// is the application that the token is for, its aud; client names one of several identities, "" means the VM's own.
func NewAzure(host, resource, client string) Source {
	if host == "" {
		host = linkLocal
	}
	return &azureSource{metadata: newMetadata("Azure", host), resource: resource, client: client}
}

func (*azureSource) Name() string    { return "azure" }
func (s *azureSource) Where() string { return hostOf(s.base) }
func (*azureSource) Local() bool     { return false }

func (s *azureSource) Token(ctx context.Context) (Token, error) {
	query := url.Values{"api-version": {azureVersion}, "resource": {s.resource}}
	if s.client != "" {
		query.Set("client_id", s.client)
	}
	a, err := s.ask(ctx, http.MethodGet, azureToken+"?"+query.Encode(), map[string]string{"Metadata": "true"})
	if err != nil {
		return Token{}, err
	}
	var said struct {
		Token  string `json:"access_token"`
		Error  string `json:"error"`
		Detail string `json:"error_description"`
	}
	readable := decode(a.body, &said)
	token, ok := tokenOf(said.Token)
	switch {
	case a.status != http.StatusOK && readable && said.Error != "":
		return Token{}, fmt.Errorf("IMDS of Azure refuses (%d %s): %s; has this VM a managed identity, and is %q an application of its tenant?",
			a.status, quoted(said.Error), quoted(said.Detail), s.resource)
	case a.status != http.StatusOK || !ok:
		return Token{}, fmt.Errorf("IMDS of Azure answers %s", a.unexpected())
	}
	return token, nil
}
