package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/test/bufconn"

	"wingman/bootstrap/identity/internal/credential"
	"wingman/test/syncbuffer"
)

// A lab is a VM and a CA in simulated time, joined by a pipe in memory. Files are real; what inotify would tell, poke tells.
type lab struct {
	t    *testing.T
	ca   *testCA
	vm   machineDirs
	cfg  Config
	m    *Manager
	stop func()
	log  *logBook

	disk    disk
	sources []credential.Source // nil: those of cfg
	down    atomic.Bool         // the CA cannot be reached
	ahead   atomic.Int64        // of the machine's wall clock, nanoseconds
	slept   atomic.Int64        // that the machine was suspended for, nanoseconds
	events  chan struct{}
	clock   chan struct{} // what the kernel tells of the clock

	mu      sync.Mutex // guards changes
	changes []*Certificate
}

// inLab runs f in a bubble. The VM has the CA's root and a token of one hour; nothing runs before start.
func inLab(t *testing.T, f func(t *testing.T, l *lab)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		lis := bufconn.Listen(1 << 20)
		l := &lab{t: t, ca: newTestCA(t, lis), events: make(chan struct{}, 1), clock: make(chan struct{}, 1), log: &logBook{}, disk: systemDisk}
		l.vm = newMachine(t, l.ca)
		l.cfg = l.vm.config(l.ca)
		l.cfg.CAAddress = testServer + ":15012"
		l.cfg.GraceJitter = -1
		l.cfg.Log = slog.New(slog.NewTextHandler(l.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		l.cfg.Dial = func(ctx context.Context, _ string) (net.Conn, error) {
			if l.down.Load() {
				return nil, errors.New("connection refused")
			}
			return lis.DialContext(ctx)
		}
		l.cfg.OnChange = func(c *Certificate) {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.changes = append(l.changes, c)
		}
		l.putToken(time.Hour)
		f(t, l)
		l.log.mustNotHold(t, l.vm)
	})
}

// start runs a new manager; the one before must have been stopped.
func (l *lab) start() {
	l.t.Helper()
	var err error
	if l.m, err = New(l.cfg); err != nil {
		l.t.Fatal(err)
	}
	l.m.now = func() time.Time { return wallClock().Add(time.Duration(l.ahead.Load())) }
	l.m.disk = l.disk
	if l.sources != nil {
		l.m.sources = l.sources
	}
	l.m.newWatch = func(*slog.Logger) watch { return testWatch(l.events) }
	l.m.newClock = func(*slog.Logger) clockWatch { return testWatch(l.clock) }
	l.m.asleep = func() time.Duration { return time.Duration(l.slept.Load()) }
	l.stop = run(l.t, l.m)
	synctest.Wait()
}

// pass lets time go by, and then everything come to rest.
func (l *lab) pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// poke says that a file changed.
func (l *lab) poke() {
	l.events <- struct{}{}
	synctest.Wait()
}

func (l *lab) putToken(life time.Duration) {
	putFile(l.t, l.vm.token, token(time.Now().Add(life), nil))
}

func (l *lab) mustBe(phase Phase) {
	l.t.Helper()
	if s := l.m.State(); s.Phase != phase {
		l.t.Fatalf("phase %s, want %s; last error %q", s.Phase, phase, s.LastError)
	}
}

// told is what OnChange was called with since the last told.
func (l *lab) told() []*Certificate {
	l.mu.Lock()
	defer l.mu.Unlock()
	told := l.changes
	l.changes = nil
	return told
}

// onDisk is the serial in the output folder; the pair there must match.
func (l *lab) onDisk() string { return pairOnDisk(l.t, l.vm.output) }

type testWatch chan struct{}

func (testWatch) Arm([]string)               {}
func (w testWatch) Changed() <-chan struct{} { return w }
func (testWatch) Stop()                      {}
func (w testWatch) changed() <-chan struct{} { return w }
func (testWatch) stop()                      {}

// A logBook keeps what was logged.
type logBook struct{ syncbuffer.Buffer }

// count is how many lines hold all of parts.
func (b *logBook) count(parts ...string) (n int) {
lines:
	for line := range strings.Lines(b.String()) {
		for _, p := range parts {
			if !strings.Contains(line, p) {
				continue lines
			}
		}
		n++
	}
	return n
}

// mustNotHold fails the test if a token or a line of any key below vm was logged.
func (b *logBook) mustNotHold(t *testing.T, vm machineDirs) {
	t.Helper()
	text := b.String()
	filepath.WalkDir(vm.root, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() || filepath.Base(path) != keyFile && path != vm.token {
			return nil
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return nil
		}
		for secret := range strings.FieldsFuncSeq(string(data), func(r rune) bool { return r == '\n' || r == '.' }) {
			if len(secret) > 40 && strings.Contains(text, secret) {
				t.Errorf("a line of %s is in the log", path)
			}
		}
		return nil
	})
}

// verifyPeer asks config what it makes of a server that shows leaf.
func verifyPeer(config *tls.Config, leaf *x509.Certificate) error {
	return config.VerifyConnection(tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}})
}
