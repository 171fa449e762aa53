package agent

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wingman/agent/envoy/proxy"
	"wingman/bootstrap"
)

// A supervisor that is frozen goes on calling an Envoy live that has ended.
func TestAnEnvoyThatDoesNotAnswerIsNotLive(t *testing.T) {
	refused, timeout := fmt.Errorf("admin: %w", syscall.ECONNREFUSED), fmt.Errorf("admin: %w", syscall.ETIMEDOUT)
	const hang = 60 * time.Second
	at := time.Unix(1000, 0)
	var q silence
	for _, c := range []struct {
		after time.Duration
		pid   int
		err   error
		deaf  bool
	}{
		{0, 7, nil, false},
		{1 * time.Second, 7, refused, false},
		{2 * time.Second, 8, refused, false}, // another Envoy, which is given time of its own
		{3 * time.Second, 8, refused, false},
		{4 * time.Second, 8, refused, true},
		{5 * time.Second, 8, nil, false},
		{6 * time.Second, 8, timeout, false}, // a push keeps it busy
		{60 * time.Second, 8, timeout, false},
		{68 * time.Second, 8, timeout, true},
		{69 * time.Second, 8, nil, false},
	} {
		var deaf string
		q, deaf = q.next(c.pid, c.err, hang, at.Add(c.after))
		if (deaf != "") != c.deaf {
			t.Errorf("after %s: deaf %q, want %v", c.after, deaf, c.deaf)
		}
	}
}

// It asks: an Envoy whose port is closed is not live, whatever the state file says.
func TestADeadEnvoyOfAFrozenSupervisorIsNoticed(t *testing.T) {
	e, end := liveEnvoy(t)
	if s := e.look(t.Context()); !s.live() {
		t.Fatalf("not live: %+v: %s", s, s.why())
	}
	end()
	deadline := time.Now().Add(20 * time.Second)
	for {
		s := e.look(t.Context())
		if !s.live() {
			if !strings.Contains(s.why(), "does not answer") {
				t.Errorf("cause: %s", s.why())
			}
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("it still counts as live")
		}
	}
}

// liveEnvoy is the agent's side of an Envoy that a supervisor calls live; end closes its admin port, and nobody says so.
func liveEnvoy(t *testing.T) (e *envoySide, end func()) {
	t.Helper()
	admin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "LIVE") }))
	t.Cleanup(admin.Close)
	cfg := &bootstrap.Config{Paths: bootstrap.DefaultPaths(t.TempDir())}
	cfg.Envoy.AdminPort, cfg.Envoy.HangTimeout = netip.MustParseAddrPort(admin.Listener.Addr().String()).Port(), time.Minute
	cfg.Envoy.Path = "/bin/true"
	dir := proxy.RunDir(cfg)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	state, err := json.Marshal(proxy.State{Phase: proxy.PhaseLive, Supervisor: os.Getpid(), PID: 7})
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "state.json"), state, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	held, err := os.Create(filepath.Join(dir, "lock"))
	if err == nil {
		err = unix.FcntlFlock(held.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { held.Close() })
	return &envoySide{log: slog.New(slog.DiscardHandler), cfg: func() *bootstrap.Config { return cfg }, configured: 7}, admin.Close
}
