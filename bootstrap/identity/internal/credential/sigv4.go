package credential

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"time"
)

// awsKeys sign requests to AWS.
type awsKeys struct {
	id, region      string
	secret, session Secret
}

// sign adds AWS's signature, version 4, to a request for the root path with a form as body
// (https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html).
func (k awsKeys) sign(req *http.Request, service, body string, now time.Time) {
	stamp := now.UTC().Format("20060102T150405Z")
	day := stamp[:8]
	req.Header.Set("X-Amz-Date", stamp)
	names := "content-type;host;x-amz-date"
	canonical := "POST\n/\n\n" +
		"content-type:" + req.Header.Get("Content-Type") + "\n" +
		"host:" + req.URL.Host + "\n" +
		"x-amz-date:" + stamp + "\n"
	if session := k.session(); session != "" {
		req.Header.Set("X-Amz-Security-Token", session)
		names += ";x-amz-security-token"
		canonical += "x-amz-security-token:" + session + "\n"
	}
	canonical += "\n" + names + "\n" + hexHash(body)
	scope := day + "/" + k.region + "/" + service + "/aws4_request"
	toSign := "AWS4-HMAC-SHA256\n" + stamp + "\n" + scope + "\n" + hexHash(canonical)
	key := []byte("AWS4" + k.secret())
	for _, part := range []string{day, k.region, service, "aws4_request"} {
		key = mac(key, part)
	}
	req.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential="+k.id+"/"+scope+", SignedHeaders="+names+", Signature="+hex.EncodeToString(mac(key, toSign)))
}

func mac(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

func hexHash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}
