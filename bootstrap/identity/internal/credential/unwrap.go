package credential

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Reasons why bytes are not a token that istiod could be shown.
var (
	errEmpty   = fmt.Errorf("%w: it is empty", ErrNone)
	errVault   = errors.New("a token for Vault itself, not one that Vault gave out: let a template write that of a role (docs/identity.md)")
	errWrapped = errors.New("a response-wrapped or encrypted token of Vault Agent's sink: leave wrap_ttl and dh_type out, and let a template write the token of a role")
)

// Unwrap finds the JWT in the content of a file that somebody else's program writes. Plain content is returned without the white space around it,
// whatever it is. A JSON object is looked through for the places that kubectl create token -o json (status.token), Vault's answers
// (data.token, data.service_account_token) and simple programs (token) have it at. The error never quotes the content.
func Unwrap(content []byte) ([]byte, error) {
	content = bytes.TrimSpace(content)
	switch {
	case len(content) == 0:
		return nil, errEmpty
	case bytes.HasPrefix(content, []byte("hvs.")), bytes.HasPrefix(content, []byte("hvb.")), bytes.HasPrefix(content, []byte("s.")) && bytes.Count(content, []byte(".")) == 1:
		return nil, errVault
	case content[0] != '{':
		return content, nil
	}
	var f struct {
		fields
		Data   fields `json:"data"`
		Status fields `json:"status"`
		// Vault Agent's sinks (https://developer.hashicorp.com/vault/docs/agent-and-proxy/autoauth): what they write when told to wrap or to encrypt.
		Accessor    string `json:"wrapped_accessor"`
		CreatedPath string `json:"creation_path"`
		WrapInfo    any    `json:"wrap_info"`
		Curve       string `json:"curve25519_public_key"`
	}
	if err := json.Unmarshal(content, &f); err != nil {
		return nil, errors.New("JSON that cannot be read") // the decoder's own error may quote it
	}
	if f.Accessor != "" || f.CreatedPath != "" || f.WrapInfo != nil || f.Curve != "" {
		return nil, errWrapped
	}
	for _, text := range []string{f.Status.Token, f.Data.ServiceAccountToken, f.Data.Token, f.Data.IDToken, f.ServiceAccountToken, f.Token, f.IDToken} {
		if text = strings.TrimSpace(text); text != "" {
			return []byte(text), nil
		}
	}
	return nil, errors.New("JSON without a token: expected it at token, status.token, data.token or data.service_account_token")
}

// fields are the names that a token has in JSON.
type fields struct {
	Token               string `json:"token"`
	IDToken             string `json:"id_token"`
	ServiceAccountToken string `json:"service_account_token"`
}

// execAnswer reads what a credential program printed: an ExecCredential (https://kubernetes.io/docs/reference/config-api/client-authentication.v1/), or
// what Unwrap takes as JSON. expires is zero when it does not say.
func execAnswer(out []byte) (jwt []byte, expires time.Time, err error) {
	out = bytes.TrimSpace(out)
	var kind struct {
		Kind       string `json:"kind"`
		APIVersion string `json:"apiVersion"`
		Status     *struct {
			Token       string    `json:"token"`
			Expires     time.Time `json:"expirationTimestamp"`
			Certificate string    `json:"clientCertificateData"`
		} `json:"status"`
	}
	switch {
	case len(out) == 0:
		return nil, expires, errors.New("it printed nothing, expected an ExecCredential as JSON")
	case out[0] != '{':
		return nil, expires, errors.New("it printed something that is no JSON object, expected an ExecCredential")
	case json.Unmarshal(out, &kind) != nil:
		return nil, expires, errors.New("it printed JSON that cannot be read, expected an ExecCredential")
	case kind.Kind == "":
		jwt, err = Unwrap(out)
		if err != nil {
			return nil, expires, fmt.Errorf("it printed %w", err)
		}
		if kind.Status != nil {
			expires = kind.Status.Expires
		}
		return jwt, expires, nil
	case kind.Kind != "ExecCredential":
		return nil, expires, fmt.Errorf("it printed a %.40q, expected an ExecCredential", kind.Kind)
	case kind.APIVersion != "client.authentication.k8s.io/v1" && kind.APIVersion != "client.authentication.k8s.io/v1beta1":
		return nil, expires, fmt.Errorf("it printed an ExecCredential of %.60q, expected client.authentication.k8s.io/v1", kind.APIVersion)
	case kind.Status == nil:
		return nil, expires, errors.New("its ExecCredential has no status")
	case strings.TrimSpace(kind.Status.Token) == "" && kind.Status.Certificate != "":
		return nil, expires, errors.New("its ExecCredential has a client certificate and no token: a token is what the CA is shown")
	case strings.TrimSpace(kind.Status.Token) == "":
		return nil, expires, errors.New("its ExecCredential has no status.token")
	}
	return []byte(strings.TrimSpace(kind.Status.Token)), kind.Status.Expires, nil
}
