package credential

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"
)

// IMDSv2: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html
const (
	imdsSession = "/latest/api/token"
	imdsTTL     = "60" // seconds; a session is used for one token and forgotten
	imdsRoles   = "/latest/meta-data/iam/security-credentials/"
	imdsRegion  = "/latest/meta-data/placement/region"
	imdsDomain  = "/latest/meta-data/services/domain"
)

// stsLife is how long AWS's tokens are asked to live; it gives 60 to 3600 s. Long enough for an istiod that is busy.
const stsLife = "900"

// awsSource has STS sign a token for the VM's role. What IMDS itself has (a document with a PKCS #7 signature) is no JWT, and no CA of Istio takes it.
type awsSource struct {
	metadata
	sts      string // URL; "" means the region's own
	audience string
	outside  *http.Client
}

// NewAWS is the source "aws". endpoint "" means the usual address of IMDS, sts "" the region's endpoint of STS; AWS's own libraries take them from
// AWS_EC2_METADATA_SERVICE_ENDPOINT and AWS_ENDPOINT_URL_STS.
func NewAWS(endpoint, sts, audience string) Source {
	if endpoint == "" {
		endpoint = linkLocal
	}
	return &awsSource{metadata: newMetadata("AWS", endpoint), sts: sts, audience: audience, outside: directClient(3*time.Second, 8*time.Second)}
}

func (*awsSource) Name() string    { return "aws" }
func (s *awsSource) Where() string { return hostOf(s.base) }
func (*awsSource) Local() bool     { return false }

func (s *awsSource) Token(ctx context.Context) (Token, error) {
	a, err := s.ask(ctx, http.MethodPut, imdsSession, map[string]string{"X-aws-ec2-metadata-token-ttl-seconds": imdsTTL})
	switch {
	case err != nil:
		return Token{}, fmt.Errorf("%w (from a container, IMDSv2 needs a hop limit of 2)", err)
	case a.status == http.StatusForbidden:
		return Token{}, fmt.Errorf("IMDS of AWS refuses a session (403): instance metadata is turned off for this VM")
	case a.status != http.StatusOK || len(a.body) == 0 || strings.Contains(a.header.Get("Content-Type"), "html"):
		return Token{}, fmt.Errorf("IMDS of AWS gives no session (IMDSv2): %s", a.unexpected())
	}
	session := map[string]string{"X-aws-ec2-metadata-token": strings.TrimSpace(string(a.body))}
	role, err := s.text(ctx, imdsRoles, session, "give this VM an instance profile with a role")
	if err != nil {
		return Token{}, err
	}
	role, _, _ = strings.Cut(role, "\n")
	keys, err := s.keys(ctx, role, session)
	if err != nil {
		return Token{}, err
	}
	if keys.region, err = s.text(ctx, imdsRegion, session, ""); err != nil {
		return Token{}, err
	}
	sts := s.sts
	if sts == "" {
		domain, err := s.text(ctx, imdsDomain, session, "")
		if err != nil {
			return Token{}, err
		}
		sts = "https://sts." + keys.region + "." + domain
	}
	return s.signed(ctx, sts, keys)
}

// text asks IMDS for one line. missing says what a 404 means.
func (s *awsSource) text(ctx context.Context, path string, session map[string]string, missing string) (string, error) {
	a, err := s.ask(ctx, http.MethodGet, path, session)
	text := strings.TrimSpace(string(a.body))
	switch {
	case err != nil:
		return "", err
	case a.status == http.StatusNotFound && missing != "":
		return "", fmt.Errorf("IMDS of AWS says 404: %s", missing)
	case a.status != http.StatusOK || text == "" || strings.ContainsAny(text, " <>{}?#"):
		return "", fmt.Errorf("IMDS of AWS answers %s: %s", path, a.unexpected())
	}
	return text, nil
}

// keys asks IMDS for the temporary keys of role.
func (s *awsSource) keys(ctx context.Context, role string, session map[string]string) (awsKeys, error) {
	a, err := s.ask(ctx, http.MethodGet, imdsRoles+url.PathEscape(role), session)
	if err != nil {
		return awsKeys{}, err
	}
	var said struct{ Code, AccessKeyId, SecretAccessKey, Token string }
	switch {
	case a.status != http.StatusOK || !decode(a.body, &said):
		return awsKeys{}, fmt.Errorf("IMDS of AWS answers for role %.100q: %s", role, a.unexpected())
	case said.Code != "Success" && said.Code != "":
		return awsKeys{}, fmt.Errorf("IMDS of AWS has no keys for role %.100q: %s", role, quoted(said.Code))
	case said.AccessKeyId == "" || said.SecretAccessKey == "":
		return awsKeys{}, fmt.Errorf("IMDS of AWS has no keys for role %.100q", role)
	}
	return awsKeys{id: said.AccessKeyId, secret: Hide(said.SecretAccessKey), session: Hide(said.Token)}, nil
}

// signed has STS sign a token: GetWebIdentityToken (https://docs.aws.amazon.com/STS/latest/APIReference/API_GetWebIdentityToken.html).
func (s *awsSource) signed(ctx context.Context, sts string, keys awsKeys) (Token, error) {
	form := url.Values{
		"Action": {"GetWebIdentityToken"}, "Version": {"2011-06-15"},
		"Audience.member.1": {s.audience}, "SigningAlgorithm": {"RS256"}, "DurationSeconds": {stsLife},
	}.Encode()
	if !safe(sts) {
		return Token{}, fmt.Errorf("the address of STS, AWS_ENDPOINT_URL_STS, is %s: its answer is a token, expected https, or http on this machine", hostOf(sts))
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimRight(sts, "/")+"/", strings.NewReader(form))
	if err != nil {
		return Token{}, fmt.Errorf("the address of STS: %w", err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")
	keys.sign(req, "sts", form, time.Now())
	a, err := exchange(s.outside, req)
	if err != nil {
		return Token{}, fmt.Errorf("cannot reach AWS STS at %s: %s", hostOf(sts), plain(err))
	}
	if code := element(a.body, "Code"); a.status != http.StatusOK && code != "" {
		hint := ""
		switch {
		case code == "AccessDenied":
			hint = ": allow the VM's role sts:GetWebIdentityToken"
		case strings.HasPrefix(code, "OutboundWebIdentityFederationDisabled"):
			hint = ": aws iam enable-outbound-web-identity-federation"
		}
		return Token{}, fmt.Errorf("AWS STS refuses (%s)%s: %s", quoted(code), hint, quoted(element(a.body, "Message")))
	}
	token, ok := tokenOf(element(a.body, "WebIdentityToken"))
	if a.status != http.StatusOK || !ok {
		return Token{}, fmt.Errorf("AWS STS answers %s", a.unexpected())
	}
	return token, nil
}

// safe reports whether nobody on the way to base can read what it answers.
func safe(base string) bool {
	u, err := url.Parse(base)
	if err != nil || u.Scheme == "https" {
		return err == nil
	}
	ip, err := netip.ParseAddr(u.Hostname())
	return u.Scheme == "http" && (u.Hostname() == "localhost" || err == nil && ip.IsLoopback())
}

// element is the text of the first XML element of that name, "" when there is none. It is all that an answer of STS is read for; encoding/xml is
// large.
func element(body []byte, name string) string {
	_, rest, _ := strings.Cut(string(body), "<"+name+">")
	text, _, closed := strings.Cut(rest, "</"+name+">")
	if !closed || strings.ContainsAny(text, "<>") {
		return ""
	}
	return text
}
