package identity

import (
	"context"
	"crypto/x509"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"wingman/bootstrap/identity/internal/credential"
)

// A fakeSource is a program or a cloud that says what a test wants.
type fakeSource struct {
	name  string
	asked int
	forgo int // how often it was told to forget

	mu  sync.Mutex // guards say: synctest orders reads after Wait, not writes before the next turn
	say func() (string, error)
}

func (f *fakeSource) Name() string  { return f.name }
func (f *fakeSource) Where() string { return "/usr/bin/" + f.name }
func (*fakeSource) Local() bool     { return false }
func (f *fakeSource) Forget()       { f.forgo++ }

func (f *fakeSource) Token(context.Context) (credential.Token, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked++
	text, err := f.say()
	return credential.Token{JWT: credential.Hide(text)}, err
}

func gives(text string) func() (string, error) { return func() (string, error) { return text, nil } }
func fails(format string, a ...any) func() (string, error) {
	return func() (string, error) { return "", fmt.Errorf(format, a...) }
}

// offering is what a token file with this content offers; "" means that there is none.
func offering(content string) []offer {
	o := offer{source: fileSource{SourceFile, "/run/istio-token"}, token: hide(content), asked: testNow}
	if content == "" {
		o.token, o.err = nil, fmt.Errorf("%w at /run/istio-token", ErrNoToken)
	}
	return []offer{o}
}

// TestSourcesInOrder is one round of asking with several sources. used names those that the CA has seen a token of.
func TestSourcesInOrder(t *testing.T) {
	good, other := token(time.Now().Add(time.Hour), nil), token(time.Now().Add(2*time.Hour), nil)
	expired := token(time.Now().Add(-time.Hour), nil)
	cloud := token(time.Now().Add(time.Hour), func(j *jwt) { j.subject = "104817" })
	refuse := func(bad string) func(ctx context.Context) error {
		return func(ctx context.Context) error {
			if md, _ := metadata.FromIncomingContext(ctx); strings.Join(md.Get("authorization"), "") == "Bearer "+bad {
				return status.Error(codes.Unauthenticated, "request authenticate failure")
			}
			return nil
		}
	}
	const nothing = "nothing to prove who we are with: no living certificate, and "
	tests := []struct {
		name  string
		file  string // "" means none
		exec  func() (string, error)
		gate  func(context.Context) error
		by    string // source that brought the certificate
		asked int    // times that exec was
		want  string // of the error
	}{
		{"the file is enough", good, fails("not to be asked"), nil, "file", 0, ""},
		{"no file: the program", "", gives(good), nil, "exec", 1, ""},
		{"the file's token has expired: the program", expired, gives(good), nil, "exec", 1, ""},
		{"istiod refuses the file's token: the program", good, gives(other), refuse(good), "exec", 1, ""},
		{"both have the same token, and istiod is asked once", good, gives(good), refuse(good), "", 1,
			`istiod refuses the token although its claims look right (issuer "https://kubernetes.default.svc"): it was revoked, its service account is gone, or cluster "Kubernetes" does not know its issuer; ` + mendToken},
		{"an expired token is better than none: istiod's clock counts", expired, fails("killed, not done within 10s"), nil, "file", 1, ""},
		{"nobody has one", "", fails("/usr/bin/exec: killed, not done within 10s"), nil, "", 1, nothing + "no token: exec: /usr/bin/exec: killed, not done within 10s; " + mendToken},
		{"the program has nothing to say either", "", fails("%w today", ErrNoToken), nil, "", 1, nothing + "no token at /run/istio-token; " + mendToken},
		{"the program's token is one of a cloud that istiod does not know", "", gives(cloud), refuse(cloud), "", 1,
			`istiod refuses the token of exec: its subject "104817" (issuer "https://accounts.google.com") is no service account's: ` +
				"the API server must map it to system:serviceaccount:forum-services:forum-sa (docs/identity.md)"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ca := newTestCA(t, nil)
			ca.with(func() {
				ca.gate = tt.gate
				if tt.file == expired { // by istiod's clock it lives
					ca.clock = func() time.Time { return time.Now().Add(-2 * time.Hour) }
				}
			})
			vm := newMachine(t, ca)
			cfg := vm.config(ca)
			cfg.TokenFile = "/run/istio-token"
			m, err := New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			exec := &fakeSource{name: "exec", say: tt.exec}
			offers := append(offering(tt.file), offer{source: exec})
			out := m.ask(t.Context(), request{offers: offers, roots: anchors{}.withFile([]*x509.Certificate{ca.root.cert})})
			if got := oneLine(out.err); got != tt.want {
				t.Errorf("said\n%s\nwant\n%s", got, tt.want)
			}
			if (out.cert != nil) != (tt.by != "") || out.source != tt.by || exec.asked != tt.asked {
				t.Errorf("certificate %v by %q, the program was asked %d times; want %q, %d", out.cert, out.source, exec.asked, tt.by, tt.asked)
			}
			for _, secret := range []string{good, other, expired, cloud} {
				if strings.Contains(oneLine(out.err), secret[20:]) {
					t.Error("a token is in the error")
				}
			}
		})
	}
}

// TestASourceThatIsAskedOnlyWhenNeeded is a machine without a token file: its program is asked once, for the first certificate, and never again while certificates renew
// each other.
func TestASourceThatIsAskedOnlyWhenNeeded(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		l.cfg.TokenFile = ""
		exec := &fakeSource{name: "exec", say: fails("/usr/bin/exec: killed, not done within 10s")}
		l.sources = []credential.Source{exec}
		l.start()
		l.pass(time.Minute)
		s := l.m.State()
		l.mustBe(None)
		if len(s.Tokens) != 1 || s.Tokens[0].Problem != "/usr/bin/exec: killed, not done within 10s" || s.Tokens[0].AskedAt.IsZero() || s.Tokens[0].Present {
			t.Errorf("state of the source: %+v", s.Tokens)
		}
		const want = "nothing to prove who we are with: no living certificate, and /usr/bin/exec: killed, not done within 10s; name a token file and fill it with: kubectl create token"
		if !strings.HasPrefix(s.LastError, want) {
			t.Errorf("last error %q", s.LastError)
		}
		if n := l.log.count("WARN", "source gives no token"); n != 1 {
			t.Errorf("one cause has %d lines", n)
		}
		exec.mu.Lock()
		exec.say = gives(token(time.Now().Add(time.Hour), nil))
		exec.mu.Unlock()
		l.pass(3 * time.Minute)
		l.mustBe(Valid)
		s = l.m.State()
		if s.Credential != "token" || s.Source != "exec" || s.Tokens[0].Problem != "" || !s.Tokens[0].Present {
			t.Errorf("by %s of %q, source %+v", s.Credential, s.Source, s.Tokens)
		}
		asked := exec.asked
		l.pass(48 * time.Hour)
		l.mustBe(Valid)
		if s := l.m.State(); exec.asked != asked || s.Credential != "certificate" || s.Source != "" {
			t.Errorf("asked %d times more while certificates renewed each other; by %s of %q", exec.asked-asked, s.Credential, s.Source)
		}
	})
}

func TestARefusedTokenIsForgotten(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		l.cfg.TokenFile = ""
		exec := &fakeSource{name: "exec", say: gives(token(time.Now().Add(time.Hour), nil))}
		l.sources = []credential.Source{exec}
		l.ca.gate = func(context.Context) error {
			return status.Error(codes.Unauthenticated, "request authenticate failure")
		}
		l.start()
		if exec.forgo != 1 {
			t.Errorf("told to forget a refused token %d times", exec.forgo)
		}
		l.ca.with(func() {
			l.ca.gate = func(context.Context) error { return status.Error(codes.Unavailable, "shutting down") }
		})
		l.pass(time.Minute)
		if exec.forgo > 2 {
			t.Error("an istiod that is away makes a good token forgotten")
		}
	})
}

// The unit's credential and the token file are both watched files, with a state each.
func TestSystemdsCredentialComesBeforeTheFile(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		l.cfg.Credentials = Credentials{Order: []string{SourceSystemd, SourceFile}, Systemd: filepath.Join(l.vm.root, "run/credentials/wingman.service/istio-token")}
		putFile(t, l.cfg.Credentials.Systemd, `{"token":"`+token(time.Now().Add(2*time.Hour), nil)+`"}`)
		l.start()
		l.mustBe(Valid)
		s := l.m.State()
		if s.Source != SourceSystemd || len(s.Tokens) != 3 || s.Tokens[0].Source != SourceSystemd || !s.Tokens[0].Present || s.Token.Source != SourceFile || s.Token.File != l.vm.token {
			t.Errorf("by %q, sources %+v", s.Source, s.Tokens)
		}
		if got, err := l.m.Token(); err != nil || got != token(time.Now().Add(2*time.Hour), nil) {
			t.Errorf("Token is not the credential's: %v", err)
		}
		synctest.Wait()
	})
}

func TestCredentialsAreChecked(t *testing.T) {
	_, err := New(Config{CAAddress: "istiod:15012", SPIFFEID: testID, RootFile: "/r", StateDir: "/s",
		Credentials: Credentials{Order: []string{"vault", "exec", "exec"}, Systemd: "x"}})
	const want = `identity settings: systemd credential "x": expected an absolute path; ` +
		`credentials "vault": expected some of systemd, file, exec, gce, aws, azure; credentials: "exec" stands there twice; ` +
		`credential exec: command "": expected a list that begins with the absolute path of a program`
	if oneLine(err) != want {
		t.Errorf("%s\nwant %s", oneLine(err), want)
	}
}
