package credential

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"wingman/test/freeport"
)

// imitation is a metadata service, and STS, that refuses what the real ones refuse.
type imitation struct {
	t       *testing.T
	url     string
	session string                                 // of IMDSv2; made by the PUT
	spoil   func(http.ResponseWriter, string) bool // answers a path otherwise; true: it did
}

func newImitation(t *testing.T, spoil func(http.ResponseWriter, string) bool) *imitation {
	m := &imitation{t: t, spoil: spoil}
	server := httptest.NewServer(m)
	t.Cleanup(server.Close)
	m.url = server.URL
	return m
}

func (m *imitation) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if m.spoil != nil && m.spoil(w, r.URL.Path) {
		return
	}
	if r.Header.Get("X-Forwarded-For") != "" { // all three refuse what came through a proxy
		http.Error(w, "forwarded", http.StatusForbidden)
		return
	}
	q := r.URL.Query()
	switch path := r.URL.Path; {
	case path == gceIdentity:
		w.Header().Set("Metadata-Flavor", "Google")
		if r.Method != "GET" || r.Header.Get("Metadata-Flavor") != "Google" || q.Get("audience") != "istio-ca" || q.Get("format") != "full" {
			http.Error(w, "forbidden", http.StatusForbidden)
			return
		}
		io.WriteString(w, jwt)
	case path == azureToken:
		if r.Method != "GET" || r.Header.Get("Metadata") != "true" || q.Get("api-version") != "2018-02-01" {
			http.Error(w, `{"error":"bad_request_102","error_description":"Required metadata header not specified"}`, http.StatusBadRequest)
			return
		}
		if q.Get("resource") != "api://istio-ca" || q.Has("client_id") && q.Get("client_id") != "client-7" {
			w.WriteHeader(http.StatusBadRequest)
			io.WriteString(w, `{"error":"invalid_request","error_description":"Identity not found"}`)
			return
		}
		fmt.Fprintf(w, `{"access_token":%q,"expires_in":"3599","token_type":"Bearer","resource":"api://istio-ca"}`, jwt)
	case path == imdsSession:
		if r.Method != "PUT" || r.Header.Get("X-aws-ec2-metadata-token-ttl-seconds") == "" {
			http.Error(w, "bad request", http.StatusBadRequest)
			return
		}
		m.session = fmt.Sprintf("session-%p", r)
		io.WriteString(w, m.session)
	case strings.HasPrefix(path, "/latest/"):
		if m.session == "" || r.Header.Get("X-aws-ec2-metadata-token") != m.session { // HttpTokens=required
			http.Error(w, "unauthorized", http.StatusUnauthorized)
			return
		}
		switch path {
		case imdsRoles:
			io.WriteString(w, "forum-vm\n")
		case imdsRoles + "forum-vm":
			io.WriteString(w, `{"Code":"Success","Type":"AWS-HMAC","AccessKeyId":"AKIDEXAMPLE","SecretAccessKey":"wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY","Token":"session-of-the-role","Expiration":"2030-01-01T00:00:00Z"}`)
		case imdsRegion:
			io.WriteString(w, "eu-west-1")
		case imdsDomain:
			io.WriteString(w, "amazonaws.com.cn")
		default:
			http.NotFound(w, r)
		}
	case path == "/" && r.Method == "POST":
		m.sts(w, r)
	default:
		http.NotFound(w, r)
	}
}

// sts checks a signature as AWS does: by making it again.
func (m *imitation) sts(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	now, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
	again := r.Clone(r.Context())
	again.URL = &url.URL{Scheme: "http", Host: r.Host, Path: "/"}
	again.Header.Del("Authorization")
	awsKeys{id: "AKIDEXAMPLE", region: "eu-west-1", secret: Hide("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"), session: Hide("session-of-the-role")}.sign(again, "sts", string(body), now)
	form, _ := url.ParseQuery(string(body))
	if err != nil || again.Header.Get("Authorization") != r.Header.Get("Authorization") || r.Header.Get("X-Amz-Security-Token") != "session-of-the-role" {
		w.WriteHeader(http.StatusForbidden)
		io.WriteString(w, `<ErrorResponse><Error><Type>Sender</Type><Code>SignatureDoesNotMatch</Code><Message>The request signature does not match</Message></Error></ErrorResponse>`)
		return
	}
	if form.Get("Action") != "GetWebIdentityToken" || form.Get("Version") != "2011-06-15" || form.Get("Audience.member.1") != "istio-ca" || form.Get("SigningAlgorithm") != "RS256" {
		w.WriteHeader(http.StatusBadRequest)
		io.WriteString(w, `<ErrorResponse><Error><Code>ValidationError</Code><Message>no</Message></Error></ErrorResponse>`)
		return
	}
	fmt.Fprintf(w, "<GetWebIdentityTokenResponse><GetWebIdentityTokenResult>\n<WebIdentityToken>%s</WebIdentityToken>\n<Expiration>2026-11-23T12:15:00Z</Expiration></GetWebIdentityTokenResult></GetWebIdentityTokenResponse>", jwt)
}

func (m *imitation) source(name string) Source {
	switch name {
	case "gce":
		return NewGCE(hostOf(m.url), "istio-ca") // as GCE_METADATA_HOST has it
	case "azure":
		return NewAzure(m.url+"/", "api://istio-ca", "")
	}
	return NewAWS(m.url, m.url, "istio-ca")
}

// answers has the imitation say something else.
func answers(path string, status int, kind, body string) func(http.ResponseWriter, string) bool {
	return func(w http.ResponseWriter, asked string) bool {
		if asked != path {
			return false
		}
		w.Header().Set("Content-Type", kind)
		if path == gceIdentity && kind != "text/html" {
			w.Header().Set("Metadata-Flavor", "Google")
		}
		w.WriteHeader(status)
		io.WriteString(w, body)
		return true
	}
}

// A cloudCase is an answer of a metadata service and what becomes of it; want is "" for a token. HOST stands for the service's address.
type cloudCase struct {
	cloud, name string
	spoil       func(http.ResponseWriter, string) bool
	want        string
}

func cloudCases() []cloudCase {
	const page = "<html><body>Sign in to the guest network</body></html>"
	xmlFault := func(code, message string) string {
		return "<ErrorResponse><Error><Type>Sender</Type><Code>" + code + "</Code><Message>" + message + "</Message></Error></ErrorResponse>"
	}
	redirect := func(path string) func(http.ResponseWriter, string) bool {
		return func(w http.ResponseWriter, asked string) bool {
			if asked == path {
				w.Header().Set("Location", "/elsewhere")
				w.WriteHeader(http.StatusFound)
			}
			return asked == path
		}
	}
	const elsewhere = "it sends us elsewhere, which a metadata service never does: is this a captive portal?"
	return []cloudCase{
		{"gce", "a token", nil, ""},
		{"gce", "no service account", answers(gceIdentity, 404, "text/plain", "x"), "GCE's metadata server says 404: give this VM a service account"},
		{"gce", "a web page", answers(gceIdentity, 200, "text/html", page), "what answers at HOST is not GCE's metadata server (no Metadata-Flavor: Google): 200 with a web page: is this a captive portal, or another cloud?"},
		{"gce", "a redirect", redirect(gceIdentity), "no answer from a metadata service of GCE at HOST: " + elsewhere},
		{"gce", "it is ill", answers(gceIdentity, 503, "text/plain", jwt), "GCE's metadata server answers 503 Service Unavailable"},
		{"gce", "no JWT", answers(gceIdentity, 200, "text/plain", "almost.a.token!"), "GCE's metadata server answers 15 bytes that are no token"},
		{"gce", "far too much", answers(gceIdentity, 200, "text/plain", strings.Repeat("x", MaxToken+1)), "no answer from a metadata service of GCE at HOST: it has more than 64 kB"},
		{"azure", "a token", nil, ""},
		{"azure", "no identity", answers(azureToken, 400, "application/json", `{"error":"invalid_request","error_description":"Identity not found"}`),
			`IMDS of Azure refuses (400 "invalid_request"): "Identity not found"; has this VM a managed identity, and is "api://istio-ca" an application of its tenant?`},
		{"azure", "a web page", answers(azureToken, 200, "text/html", page), "IMDS of Azure answers 200 with a web page: is this a captive portal, or another cloud?"},
		{"azure", "404", answers(azureToken, 404, "text/plain", ""), "IMDS of Azure answers 404 Not Found"},
		{"azure", "JSON without a token", answers(azureToken, 200, "application/json", `{}`), "IMDS of Azure answers 2 bytes that are no token"},
		{"azure", "a redirect", redirect(azureToken), "no answer from a metadata service of Azure at HOST: " + elsewhere},
		{"aws", "a token", nil, ""},
		{"aws", "IMDS is turned off", answers(imdsSession, 403, "text/plain", ""), "IMDS of AWS refuses a session (403): instance metadata is turned off for this VM"},
		{"aws", "no IMDSv2", answers(imdsSession, 404, "text/plain", ""), "IMDS of AWS gives no session (IMDSv2): 404 Not Found"},
		{"aws", "a web page", answers(imdsSession, 200, "text/html", page), "IMDS of AWS gives no session (IMDSv2): 200 with a web page: is this a captive portal, or another cloud?"},
		{"aws", "another session", answers(imdsSession, 200, "text/plain", "forged"), "IMDS of AWS answers /latest/meta-data/iam/security-credentials/: 401 Unauthorized"},
		{"aws", "no role", answers(imdsRoles, 404, "text/plain", ""), "IMDS of AWS says 404: give this VM an instance profile with a role"},
		{"aws", "a role that failed", answers(imdsRoles+"forum-vm", 200, "text/plain", `{"Code":"AssumeRoleUnauthorizedAccess"}`), `IMDS of AWS has no keys for role "forum-vm": "AssumeRoleUnauthorizedAccess"`},
		{"aws", "keys that are none", answers(imdsRoles+"forum-vm", 200, "text/plain", `{"Code":"Success"}`), `IMDS of AWS has no keys for role "forum-vm"`},
		{"aws", "STS: the role may not", answers("/", 403, "text/xml", xmlFault("AccessDenied", "User is not authorized")), `AWS STS refuses ("AccessDenied"): allow the VM's role sts:GetWebIdentityToken: "User is not authorized"`},
		{"aws", "STS: not enabled", answers("/", 400, "text/xml", xmlFault("OutboundWebIdentityFederationDisabled", "not enabled")),
			`AWS STS refuses ("OutboundWebIdentityFederationDisabled"): aws iam enable-outbound-web-identity-federation: "not enabled"`},
		{"aws", "STS: garbage", answers("/", 200, "text/xml", "<a>"), "AWS STS answers 3 bytes that are no token"},
		{"aws", "STS: a web page", answers("/", 200, "text/html", page), "AWS STS answers 200 with a web page: is this a captive portal, or another cloud?"},
		{"aws", "the keys are another's", answers(imdsRoles+"forum-vm", 200, "text/plain", `{"Code":"Success","AccessKeyId":"AKIDEXAMPLE","SecretAccessKey":"other","Token":"session-of-the-role"}`),
			`AWS STS refuses ("SignatureDoesNotMatch"): "The request signature does not match"`},
	}
}

func TestClouds(t *testing.T) {
	// A proxy in the environment is never asked: what it would be sent is a secret.
	for _, name := range []string{"http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "ALL_PROXY"} {
		t.Setenv(name, "http://127.0.0.1:1")
	}
	for _, tt := range cloudCases() {
		t.Run(tt.cloud+": "+tt.name, func(t *testing.T) {
			m := newImitation(t, tt.spoil)
			s := m.source(tt.cloud)
			if s.Name() != tt.cloud || s.Where() != hostOf(m.url) || s.Local() {
				t.Errorf("source %s at %s", s.Name(), s.Where())
			}
			token, err := s.Token(t.Context())
			if tt.want == "" {
				if err != nil || token.JWT() != jwt {
					t.Fatalf("token, %v", err)
				}
				return
			}
			if want := strings.ReplaceAll(tt.want, "HOST", hostOf(m.url)); err == nil || err.Error() != want {
				t.Errorf("%v\nwant %s", err, want)
			}
			mustNotLeak(t, fmt.Sprint(err))
		})
	}
}

func TestAzureNamesOneOfSeveralIdentities(t *testing.T) {
	m := newImitation(t, nil)
	if _, err := NewAzure(m.url, "api://istio-ca", "client-7").Token(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := NewAzure(m.url, "api://istio-ca", "client-8").Token(t.Context()); err == nil {
		t.Error("no error for an identity that is not there")
	}
}

// A machine in no cloud: nobody listens, or nobody answers. Neither may hold anything up.
func TestNoMetadataService(t *testing.T) {
	addr := freeport.Addr().String()
	for _, s := range []Source{NewGCE(addr, "istio-ca"), NewAzure(addr, "x", ""), NewAWS(addr, "", "istio-ca")} {
		_, err := s.Token(t.Context())
		if want := "at " + addr + ": connection refused"; err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", s.Name(), err, want)
		}
	}

	// Accepted by the kernel and never answered: only ctx, or the time-out of the exchange, ends it.
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	s := NewGCE(silent.Addr().String(), "istio-ca")
	if _, err := s.Token(ctx); err == nil || err.Error() != "no answer from a metadata service of GCE at "+s.Where()+": silence" {
		t.Errorf("silence: %v", err)
	}
	for _, host := range []string{"", "metadata.google.internal", "169.254.169.254:80", "[fd00:ec2::254]"} {
		if w := NewGCE(host, "a").Where(); w != host && !(host == "" && w == linkLocal) {
			t.Errorf("%q is asked at %q", host, w)
		}
	}
	client := newMetadata("GCE", "").client
	if tr := client.Transport.(*http.Transport); tr.Proxy != nil || client.Timeout != metadataAnswer {
		t.Error("a metadata client with a proxy, or without a time-out")
	}
}

// The signature that botocore makes for the same request and the same second.
func TestSignatureIsWhatAWSExpects(t *testing.T) {
	req, err := http.NewRequest("POST", "https://sts.us-east-1.amazonaws.com/", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")
	keys := awsKeys{id: "AKIDEXAMPLE", region: "us-east-1", secret: Hide("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"), session: Hide("session-of-the-role")}
	keys.sign(req, "sts", "Action=GetWebIdentityToken&Version=2011-06-15", time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC))
	const want = "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20261123/us-east-1/sts/aws4_request, SignedHeaders=content-type;host;x-amz-date;x-amz-security-token, Signature=a923980af89c69ff3518128fac9a7e1ff2040ccfa941ff35f2de7ff17b15f7d7"
	if got := req.Header.Get("Authorization"); got != want {
		t.Errorf("signature\n%s\nwant\n%s", got, want)
	}
}

// The answer of STS is a token: nobody between here and there may read it.
func TestSTSIsAskedInTheClearOnThisMachineOnly(t *testing.T) {
	for base, want := range map[string]bool{
		"https://sts.eu-west-1.amazonaws.com": true, "http://127.0.0.1:4566": true, "http://[::1]:4566": true, "http://localhost:4566/": true,
		"http://sts.eu-west-1.amazonaws.com": false, "http://10.0.0.1": false, "http://127.0.0.1.example.com": false, "http://localhost@10.0.0.1": false,
		"sts.eu-west-1.amazonaws.com": false, "ftp://127.0.0.1": false, "": false,
	} {
		if got := safe(base); got != want {
			t.Errorf("%q: %v, want %v", base, got, want)
		}
	}
	s := NewAWS("", "http://192.0.2.1", "istio-ca").(*awsSource)
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // nothing is asked
	if _, err := s.signed(ctx, "http://192.0.2.1", awsKeys{region: "eu-west-1"}); err == nil || !strings.Contains(err.Error(), "expected https, or http on this machine") {
		t.Errorf("got %v", err)
	}
}

type transport func(*http.Request) (*http.Response, error)

func (f transport) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// Without an address of its own, STS is that of the VM's region, below the domain that IMDS names.
func TestSTSIsThatOfTheRegion(t *testing.T) {
	m := newImitation(t, nil)
	s := NewAWS(m.url, "", "istio-ca").(*awsSource)
	var asked string
	s.outside = &http.Client{Transport: transport(func(r *http.Request) (*http.Response, error) {
		asked = r.URL.String()
		w := httptest.NewRecorder()
		m.ServeHTTP(w, r)
		return w.Result(), nil
	})}
	_, err := s.Token(t.Context())
	if want := "https://sts.eu-west-1.amazonaws.com.cn/"; err != nil || asked != want {
		t.Errorf("asked %q, %v; want %q", asked, err, want)
	}
}
