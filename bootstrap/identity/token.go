package identity

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"
	"strings"
	"time"

	"wingman/bootstrap/identity/internal/credential"
	"wingman/internal/plainfile"
)

// Why a token cannot be used. Errors of InspectToken and CheckToken wrap one of these.
var (
	// ErrNoToken means that there is no token, or an empty one; the certificate in hand must do.
	ErrNoToken = credential.ErrNone
	// ErrNotJWT means that the bytes are no JSON Web Token (RFC 7519).
	ErrNotJWT = errors.New("not a JWT")
	// ErrTokenExpired means that the token's exp lies in the past.
	ErrTokenExpired = errors.New("token expired")
	// ErrTokenNotYet means that the token's nbf lies in the future: most often this machine's clock is behind.
	ErrTokenNotYet = errors.New("token not valid yet")
	// ErrTokenAudience means that the token was made for somebody else.
	ErrTokenAudience = errors.New("token for another audience")
	// ErrTokenIdentity means that the token is another service account's.
	ErrTokenIdentity = errors.New("token of another service account")
)

// DefaultAudience is what istiod wants to find in a token's aud. Istio: TOKEN_AUDIENCES.
const DefaultAudience = "istio-ca"

const (
	// MaxToken is the most that a token file may hold, in bytes.
	MaxToken = credential.MaxToken
	// tokenLeeway is how far nbf may lie ahead before it is called a problem; istiod's verifier allows about as much.
	tokenLeeway = time.Minute
)

// A TokenInfo is what a token claims about itself. Nothing of it is verified: only istiod can.
type TokenInfo struct {
	Subject        string    // sub
	Issuer         string    // iss
	Namespace      string    // Kubernetes namespace; "" when the token is not a service account's
	ServiceAccount string    // Kubernetes service account, likewise
	Audiences      []string  // aud
	NotBefore      time.Time // nbf; zero: none
	Expiry         time.Time // exp; zero: never
}

// A TokenWant is what a token must claim to be of use. Empty fields are not checked.
type TokenWant struct {
	Audience       string // one of aud
	Namespace      string // of the service account
	ServiceAccount string
}

// claims is the part of a Kubernetes service account token that matters here.
// Shape: https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/
type claims struct {
	Subject    string      `json:"sub"`
	Issuer     string      `json:"iss"`
	Audience   audience    `json:"aud"`
	Expiry     numericDate `json:"exp"`
	NotBefore  numericDate `json:"nbf"`
	Kubernetes struct {
		Namespace      string `json:"namespace"`
		ServiceAccount struct {
			Name string `json:"name"`
		} `json:"serviceaccount"`
	} `json:"kubernetes.io"`
}

// InspectToken reads the claims of a JWT without verifying its signature.
//
// raw is the content of a token file: the JWT, or JSON that holds it (credential.Unwrap); white space around it is ignored. The error wraps ErrNoToken or ErrNotJWT when there are
// no claims to read, ErrTokenExpired or ErrTokenNotYet when now lies outside its life (the claims are returned all the
// same). No error ever contains a byte of the token.
func InspectToken(raw []byte, now time.Time) (TokenInfo, error) {
	token, err := unwrap(raw)
	if err != nil {
		return TokenInfo{}, err
	}
	c, err := decodeClaims(token)
	if err != nil {
		return TokenInfo{}, err
	}
	info := TokenInfo{
		Subject: c.Subject, Issuer: c.Issuer, Audiences: c.Audience,
		Namespace: c.Kubernetes.Namespace, ServiceAccount: c.Kubernetes.ServiceAccount.Name,
		NotBefore: c.NotBefore.Time, Expiry: c.Expiry.Time,
	}
	if rest, ok := strings.CutPrefix(c.Subject, "system:serviceaccount:"); ok && info.ServiceAccount == "" {
		info.Namespace, info.ServiceAccount, _ = strings.Cut(rest, ":")
	}
	switch {
	case !info.Expiry.IsZero() && !now.Before(info.Expiry):
		return info, fmt.Errorf("%w %s ago", ErrTokenExpired, span(now.Sub(info.Expiry)))
	case now.Add(tokenLeeway).Before(info.NotBefore):
		return info, fmt.Errorf("%w: it begins in %s, so this machine's clock is probably behind",
			ErrTokenNotYet, span(info.NotBefore.Sub(now)))
	}
	return info, nil
}

// CheckToken says in one sentence why a token will not do, nil when nothing speaks against it. The errors are those of InspectToken,
// ErrTokenAudience and ErrTokenIdentity. A token that names no service account (one of an OIDC issuer, of a cloud) passes:
// how istiod maps it to an identity is istiod's setting.
func CheckToken(raw []byte, want TokenWant, now time.Time) error {
	info, err := InspectToken(raw, now)
	if err != nil {
		return err
	}
	if want.Audience != "" && !slices.Contains(info.Audiences, want.Audience) {
		return fmt.Errorf("%w: it is for %s, expected %s", ErrTokenAudience, quoteAll(info.Audiences), want.Audience)
	}
	if info.ServiceAccount == "" || want.ServiceAccount == "" {
		return nil
	}
	if info.Namespace != want.Namespace || info.ServiceAccount != want.ServiceAccount {
		return fmt.Errorf("%w: it is %q's in namespace %q, expected %q in %q",
			ErrTokenIdentity, info.ServiceAccount, info.Namespace, want.ServiceAccount, want.Namespace)
	}
	return nil
}

// unwrap is the JWT in the content of a token file.
func unwrap(raw []byte) ([]byte, error) {
	if len(raw) > MaxToken {
		return nil, fmt.Errorf("%w: more than %d kB", ErrNotJWT, MaxToken>>10)
	}
	token, err := credential.Unwrap(raw)
	if err != nil && !errors.Is(err, ErrNoToken) {
		err = fmt.Errorf("%w: %w", ErrNotJWT, err)
	}
	return token, err
}

func decodeClaims(raw []byte) (claims, error) {
	var c claims
	parts := bytes.Split(raw, []byte("."))
	if len(parts) != 3 {
		return c, fmt.Errorf("%w: %d part(s) between dots, expected 3", ErrNotJWT, len(parts))
	}
	var header struct {
		Algorithm string `json:"alg"`
	}
	for i, into := range []any{&header, &c} {
		part := []string{"header", "claims"}[i]
		text, err := base64.RawURLEncoding.DecodeString(string(bytes.TrimRight(parts[i], "=")))
		if err != nil {
			return c, fmt.Errorf("%w: its %s are not base64url", ErrNotJWT, part)
		}
		// The decoder's own error may quote the token: it is not passed on.
		if json.Unmarshal(text, into) != nil {
			return c, fmt.Errorf("%w: its %s are not the JSON expected there", ErrNotJWT, part)
		}
	}
	if header.Algorithm == "" {
		return c, fmt.Errorf("%w: its header names no algorithm", ErrNotJWT)
	}
	return c, nil
}

// audience is a string or a list of strings (RFC 7519 section 4.1.3).
type audience []string

func (a *audience) UnmarshalJSON(b []byte) error {
	var one string
	if json.Unmarshal(b, &one) == nil {
		*a = audience{one}
		return nil
	}
	return json.Unmarshal(b, (*[]string)(a))
}

// numericDate is seconds since 1970, possibly with a fraction (RFC 7519 section 2).
type numericDate struct{ time.Time }

func (d *numericDate) UnmarshalJSON(b []byte) error {
	var seconds float64
	if err := json.Unmarshal(b, &seconds); err != nil {
		return err
	}
	const year9999 = 253402300799 // beyond it time.Time cannot be written as JSON
	if seconds <= 0 || math.IsNaN(seconds) {
		return errors.New("date out of range")
	}
	d.Time = time.Unix(int64(min(seconds, year9999)), 0)
	return nil
}

func quoteAll(list []string) string {
	if len(list) == 0 {
		return "nobody"
	}
	quoted := make([]string, len(list))
	for i, s := range list {
		quoted[i] = fmt.Sprintf("%.80q", s)
	}
	return strings.Join(quoted, ", ")
}

// readToken returns the token in the file at path, and the file's mode. The error wraps ErrNoToken or ErrNotJWT.
func readToken(path string) (hidden[string], fs.FileMode, error) {
	raw, info, err := plainfile.Read(path, MaxToken)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, 0, fmt.Errorf("%w at %s", ErrNoToken, path)
	case err != nil:
		return nil, 0, fmt.Errorf("read token: %w", whose(err, path))
	}
	token, err := unwrap(raw)
	if err == nil {
		_, err = decodeClaims(token)
	}
	if err != nil {
		return nil, info.Mode(), fmt.Errorf("%s: %w", path, err)
	}
	return hide(string(token)), info.Mode(), nil
}
