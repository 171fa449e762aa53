package identity

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write what is said of each bad case into docs/identity.md")

// badCasesPage is where operators read the sentences; the table stands between two marks.
const (
	badCasesPage  = "../../docs/identity.md"
	badCasesBegin = "<!-- bad cases: written by go test ./bootstrap/identity -run TestBadCases -update -->\n"
	badCasesEnd   = "<!-- end of bad cases -->\n"
)

// TestBadCases holds each fault against the sentence that docs/identity.md promises for it. The faults of a request are the rounds of
// TestRequestsEachFaultInOneSentence, by name; those of clock, disk and output folder have makers of their own.
func TestBadCases(t *testing.T) {
	byName := map[string]round{}
	for _, r := range rounds() {
		byName[r.name] = r
	}
	request := func(name string) func(t *testing.T) string {
		return func(t *testing.T) string {
			r, ok := byName[name]
			if !ok {
				t.Fatalf("no round %q", name)
			}
			out, _, address := r.run(t)
			return strings.ReplaceAll(oneLine(out.err), address, "istiod.istio-system.svc:15012")
		}
	}
	cases := []struct {
		title string
		said  func(t *testing.T) string
	}{
		{"token missing", request("no certificate, no token")},
		{"token expired", request("a token that has expired")},
		{"token for another audience", request("a token for another audience")},
		{"token of another service account", request("a token of another service account")},
		{"token of another service account, refused", request("a token of another service account, refused")},
		{"token is not a JWT", request("a token file that holds no token")},
		{"certificate expired, no token", request("a certificate that has expired, no token")},
		{"istiod's certificate is of another root", request("istiod's certificate is by another root")},
		{"istiod's certificate is for another name", request("istiod's certificate is for another name")},
		{"istiod's certificate has expired", request("istiod's certificate has expired")},
		{"istiod's certificate begins in our future", request("istiod's certificate begins in our future")},
		{"the clock is hours behind", func(t *testing.T) string { return saidOfTheClock(t, -2*time.Hour-3*time.Minute) }},
		{"the clock is hours ahead", func(t *testing.T) string { return saidOfTheClock(t, 2*time.Hour+3*time.Minute) }},
		{"our root has expired", request("our root has expired")},
		{"CA answers garbage", request("an answer that is garbage")},
		{"CA answers for another key", request("an answer for another key")},
		{"CA answers in the wrong order", request("an answer in the wrong order")},
		{"CA answers with one certificate", request("an answer with one certificate")},
		{"CA gives 5 s of life", saidOfAShortLife},
		{"CA hangs, while little life is left", request("a CA that hangs")},
		{"CA says UNAUTHENTICATED, the token looks right", request("a token that istiod refuses although it looks right")},
		{"CA says UNAUTHENTICATED to a certificate", request("a CA that takes tokens only, and no token")},
		{"CA says PERMISSION_DENIED", request("not allowed to")},
		{"CA says UNAVAILABLE", request("unavailable")},
		{"CA says RESOURCE_EXHAUSTED", request("overloaded")},
		{"nobody listens at CA_ADDR", request("nobody listens")},
		{"a server without a CA at CA_ADDR", request("no CA there")},
		{"key file and chain exchanged by hand", saidOfAnExchange},
		{"the store belongs to root", func(t *testing.T) string {
			dir, said := saidOfFoldersOfRoot(t)
			return strings.ReplaceAll(said[1], dir, "/var/lib/wingman")
		}},
		{"/etc/certs belongs to root", func(t *testing.T) string {
			dir, said := saidOfFoldersOfRoot(t)
			return strings.ReplaceAll(strings.ReplaceAll(said[2], dir+"/certs", "/etc/certs"), dir, "/var/lib/wingman")
		}},
		{"/etc/certs is a link to a folder elsewhere", func(t *testing.T) string { return saidOfALink(t, true) }},
		{"/etc/certs is a link to nowhere", func(t *testing.T) string { return saidOfALink(t, false) }},
	}
	var table strings.Builder
	table.WriteString("| fault | what `wingman cert show`, the log and `wingman status` say |\n|---|---|\n")
	for _, tt := range cases {
		t.Run(tt.title, func(t *testing.T) {
			said := strings.NewReplacer("|", `\|`, "<", "&lt;").Replace(unchanging(tt.said(t)))
			fmt.Fprintf(&table, "| %s | %s |\n", tt.title, said)
		})
	}
	if os.Geteuid() != 0 {
		t.Skip("some of the sentences need root to come about")
	}
	page, err := os.ReadFile(badCasesPage)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(page), badCasesBegin)
	promised, after, ended := strings.Cut(rest, badCasesEnd)
	if !ok || !ended {
		t.Fatalf("%s has no table of bad cases between its two marks", badCasesPage)
	}
	if *update {
		if err := os.WriteFile(badCasesPage, []byte(before+badCasesBegin+table.String()+badCasesEnd+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if promised != table.String() {
		t.Errorf("%s promises\n%s\nbut what is said is\n%s", badCasesPage, promised, table.String())
	}
}

// unchanging is a sentence without what differs from run to run: serials and dates.
func unchanging(said string) string {
	said = regexp.MustCompile(`serial [0-9a-f]{8,}`).ReplaceAllString(said, "serial 4f1b29a3")
	return regexp.MustCompile(`20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ`).ReplaceAllString(said, "2026-01-02T03:04:05Z")
}

// saidOfTheClock is what the dates of a certificate tell of a clock that is off.
func saidOfTheClock(t *testing.T, off time.Duration) (said string) {
	inLab(t, func(t *testing.T, l *lab) {
		l.ca.clock = func() time.Time { return time.Now().Add(-off) }
		putFile(t, l.vm.token, token(time.Now().Add(10*time.Hour), nil))
		l.start()
		l.mustBe(Valid)
		said = l.m.State().Clock
	})
	return said
}

// saidOfAShortLife is what a CA is told off with that gives five seconds. It must not become a hot loop, and the certificate is used.
func saidOfAShortLife(t *testing.T) (said string) {
	inLab(t, func(t *testing.T, l *lab) {
		l.ca.life = 5 * time.Second
		l.start()
		l.mustBe(Valid)
		said = l.m.State().LifeProblem
		l.pass(time.Minute)
		s := l.m.State()
		if n := len(l.ca.seen()); s.Health != Fine || n < 20 || n > 40 {
			t.Errorf("health %s after %d requests in a minute", s.Health, n)
		}
		if n := l.log.count("WARN", "certificates live too short"); n != 1 {
			t.Errorf("said %d times in a minute:\n%s", n, l.log)
		}
		if s.LifeProblem == "" {
			t.Error("after a minute nothing is said of it")
		}
		l.ca.with(func() { l.ca.life = time.Hour })
		l.pass(5 * time.Second)
		if s := l.m.State(); s.LifeProblem != "" {
			t.Errorf("the CA gives an hour, and still: %s", s.LifeProblem)
		}
	})
	return said
}

// saidOfAnExchange is what the store says of a key and a chain that stand in each other's place.
func saidOfAnExchange(t *testing.T) string {
	k, dir := newKeyring(t), filepath.Join(t.TempDir(), storeName)
	s := newStore(dir, systemDisk)
	for range 2 {
		mustSave(t, s, k.issue(), k.roots())
	}
	key, chain := s.path(generationsDir, "2", keyFile), s.path(generationsDir, "2", chainFile)
	if err := systemDisk.exchange(key, chain); err != nil {
		t.Fatal(err)
	}
	g, err := newStore(dir, systemDisk).load(testID, testNow)
	if !errors.Is(err, errCorrupt) {
		t.Errorf("got %v", err)
	}
	if generationNumber(g) != 1 {
		t.Errorf("generation %d is used, want the one before", generationNumber(g))
	}
	return strings.ReplaceAll(oneLine(err), dir, "/var/lib/wingman/identity")
}

// saidOfALink is what is said of an output folder that is a link. Where there is a folder behind it, the certificates appear there.
func saidOfALink(t *testing.T, there bool) string {
	k, dir := newKeyring(t), t.TempDir()
	s := newStore(filepath.Join(dir, storeName), systemDisk)
	c := k.issue()
	mustSave(t, s, c, k.roots())
	elsewhere := filepath.Join(dir, "elsewhere")
	if there {
		if err := os.Mkdir(elsewhere, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	certs := filepath.Join(dir, "certs")
	if err := os.Symlink(elsewhere, certs); err != nil {
		t.Fatal(err)
	}
	err := output{dir: certs, store: s.dir, disk: systemDisk}.ensure("/elsewhere", nil, time.Now())
	if there {
		if got := pairOnDisk(t, elsewhere); got != c.Serial || err != nil {
			t.Errorf("%q behind the link, want %s; %v", got, c.Serial, err)
		}
		return "nothing: the certificates appear in that folder"
	}
	return strings.NewReplacer(certs, "/etc/certs", elsewhere, "/mnt/certs", fmt.Sprint("-o ", os.Geteuid()), "-o 995").Replace(oneLine(err))
}
