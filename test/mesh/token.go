package mesh

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"wingman/test/mesh/kube"
)

// minTokenTTL is the shortest life that the API server gives a token.
const minTokenTTL = 10 * time.Minute

// Token returns a token for a service account, which must exist. audience is Audience for istiod.
//
// The API server makes it (kubectl create token). A life of less than ten minutes, which it refuses to give, is written
// into such a token afterwards and signed with the API server's own key; a negative one makes a token that has expired
// as long ago. The API server allows a minute of clock skew and remembers a token that it accepted for ten seconds.
func (m *Mesh) Token(ctx context.Context, namespace, account, audience string, ttl time.Duration) (string, error) {
	ref := kube.Ref{APIVersion: "v1", Kind: "ServiceAccount", Namespace: namespace, Name: account}
	seconds := int(max(ttl, minTokenTTL).Seconds())
	request := fmt.Sprintf(`{"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
		"spec": {"audiences": [%q], "expirationSeconds": %d}}`, audience, seconds)
	made, err := m.Kube.Create(ctx, ref, "/token", request)
	if err != nil {
		return "", fmt.Errorf("make a token: %w", err)
	}
	token := made.String("status", "token")
	if ttl >= minTokenTTL {
		return token, nil
	}
	return resign(token, time.Now().Add(ttl), m.keys.accounts)
}

// TokenAccepted reports whether the API server takes a token for istiod, as istiod asks it for each token that a machine shows.
func (m *Mesh) TokenAccepted(ctx context.Context, token string) (bool, error) {
	reviews := kube.Ref{APIVersion: "authentication.k8s.io/v1", Kind: "TokenReview"}
	review := fmt.Sprintf(`{"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": %q, "audiences": [%q]}}`, token, Audience)
	said, err := m.Kube.Create(ctx, reviews, "", review)
	if err != nil {
		return false, fmt.Errorf("review a token: %w", err)
	}
	status, ok := said["status"].(map[string]any)
	if !ok {
		return false, errors.New("review a token: the answer has no status")
	}
	accepted, _ := status["authenticated"].(bool) // left out when it is false
	return accepted, nil
}

// resign gives a JWT (ES256) another end of life.
func resign(token string, expiry time.Time, key *ecdsa.PrivateKey) (string, error) {
	header, rest, _ := strings.Cut(token, ".")
	payload, _, ok := strings.Cut(rest, ".")
	raw, err := base64.RawURLEncoding.DecodeString(payload)
	if err != nil || !ok {
		return "", fmt.Errorf("read the API server's token: not a JWT")
	}
	var claims map[string]any
	if err := json.Unmarshal(raw, &claims); err != nil {
		return "", fmt.Errorf("read the API server's token: %w", err)
	}
	begin := expiry.Add(-time.Hour)
	claims["exp"], claims["iat"], claims["nbf"] = expiry.Unix(), begin.Unix(), begin.Unix()
	if raw, err = json.Marshal(claims); err != nil {
		return "", err
	}
	signed := header + "." + base64.RawURLEncoding.EncodeToString(raw)
	digest := sha256.Sum256([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
	if err != nil {
		return "", fmt.Errorf("sign token: %w", err)
	}
	signature := append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...) // RFC 7518 section 3.4
	return signed + "." + base64.RawURLEncoding.EncodeToString(signature), nil
}
