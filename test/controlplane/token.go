package controlplane

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"sync"
	"time"
)

// caAudience is the audience istiod wants in a token. Istio: TOKEN_AUDIENCES.
const caAudience = "istio-ca"

// TokenOptions describe a service account token.
type TokenOptions struct {
	// Namespace and ServiceAccount make the subject.
	Namespace, ServiceAccount string
	// Audience is empty for istio-ca, the one that istiod accepts.
	Audience string
	// TTL is the life from now; zero means an hour, and a negative one makes a token that expired that long ago.
	TTL time.Duration
	// Foreign signs with a key that the control plane does not know.
	Foreign bool
}

// issuer mints and checks service account tokens, as the Kubernetes API server does for istiod.
type issuer struct {
	foreign *ecdsa.PrivateKey

	mu  sync.Mutex // guards key
	key *ecdsa.PrivateKey
}

// claims are those of a bound service account token.
type claims struct {
	Audience   []string         `json:"aud"`
	Expires    int64            `json:"exp"`
	IssuedAt   int64            `json:"iat"`
	Issuer     string           `json:"iss"`
	ID         string           `json:"jti"`
	Kubernetes kubernetesClaims `json:"kubernetes.io"`
	NotBefore  int64            `json:"nbf"`
	Subject    string           `json:"sub"`
}

type kubernetesClaims struct {
	Namespace      string    `json:"namespace"`
	ServiceAccount objectRef `json:"serviceaccount"`
}

type objectRef struct {
	Name string `json:"name"`
	UID  string `json:"uid"`
}

func newIssuer() (*issuer, error) {
	foreign, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	i := &issuer{foreign: foreign}
	return i, i.rekey()
}

// rekey signs with a new key from now on; tokens of the one before no longer pass.
func (i *issuer) rekey() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.key = key
	return nil
}

func (i *issuer) current() *ecdsa.PrivateKey {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.key
}

// MintToken makes a token as `kubectl create token SA --audience istio-ca` would.
func (s *Server) MintToken(o TokenOptions) (string, error) { return s.tokens.mint(o, time.Now()) }

func (i *issuer) mint(o TokenOptions, now time.Time) (string, error) {
	if o.Namespace == "" || o.ServiceAccount == "" {
		return "", errors.New("token needs a namespace and a service account")
	}
	ttl := cmp.Or(o.TTL, time.Hour)
	issued := now
	if ttl < 0 {
		issued = now.Add(ttl - time.Hour)
	}
	body, err := json.Marshal(claims{
		Audience: []string{cmp.Or(o.Audience, caAudience)},
		Expires:  now.Add(ttl).Unix(), IssuedAt: issued.Unix(), NotBefore: issued.Unix(),
		Issuer: "https://kubernetes.default.svc", ID: newID(),
		Kubernetes: kubernetesClaims{Namespace: o.Namespace, ServiceAccount: objectRef{Name: o.ServiceAccount, UID: newID()}},
		Subject:    "system:serviceaccount:" + o.Namespace + ":" + o.ServiceAccount,
	})
	if err != nil {
		return "", err
	}
	key := i.current()
	if o.Foreign {
		key = i.foreign
	}
	signed := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"ES256","kid":"stand-in"}`)) + "." + base64.RawURLEncoding.EncodeToString(body)
	digest := sha256.Sum256([]byte(signed))
	r, sig, err := ecdsa.Sign(rand.Reader, key, digest[:])
	if err != nil {
		return "", err
	}
	raw := make([]byte, 64) // RFC 7518 section 3.4: two 32-byte integers
	r.FillBytes(raw[:32])
	sig.FillBytes(raw[32:])
	return signed + "." + base64.RawURLEncoding.EncodeToString(raw), nil
}

// check returns the claims of a token that is signed by this issuer, meant for istiod and valid now. Its errors go to
// the event log only: the caller of the CA learns nothing but Unauthenticated.
func (i *issuer) check(token string, now time.Time) (claims, error) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return claims{}, errors.New("token is not a JWT")
	}
	raw, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil || len(raw) != 64 {
		return claims{}, errors.New("token signature is not 64 bytes of base64url")
	}
	digest := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	if !ecdsa.Verify(&i.current().PublicKey, digest[:], new(big.Int).SetBytes(raw[:32]), new(big.Int).SetBytes(raw[32:])) {
		return claims{}, errors.New("token is not signed by this issuer")
	}
	body, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return claims{}, fmt.Errorf("token claims: %w", err)
	}
	var c claims
	if err := json.Unmarshal(body, &c); err != nil {
		return claims{}, fmt.Errorf("token claims: %w", err)
	}
	switch {
	case !slices.Contains(c.Audience, caAudience):
		return claims{}, fmt.Errorf("token audience is %q, want %q", c.Audience, caAudience)
	case now.Unix() >= c.Expires:
		return claims{}, fmt.Errorf("token expired at %s", time.Unix(c.Expires, 0).UTC().Format(time.RFC3339))
	case now.Unix() < c.NotBefore:
		return claims{}, fmt.Errorf("token is not valid before %s", time.Unix(c.NotBefore, 0).UTC().Format(time.RFC3339))
	}
	if want := "system:serviceaccount:" + c.Kubernetes.Namespace + ":" + c.Kubernetes.ServiceAccount.Name; c.Subject != want {
		return claims{}, fmt.Errorf("token subject is %q, want %q", c.Subject, want)
	}
	return c, nil
}

// newID returns a random UUID (RFC 9562 section 5.4).
func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // crypto/rand never fails since Go 1.24
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
