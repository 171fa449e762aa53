package status

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestAllowed(t *testing.T) {
	for _, tc := range []struct {
		name string
		peer unix.Ucred
		want bool
	}{
		{"root", unix.Ucred{Uid: 0, Gid: 0}, true},
		{"the daemon's own user", unix.Ucred{Uid: 995, Gid: 4}, true},
		{"a member of its group", unix.Ucred{Uid: 1000, Gid: 995}, true},
		{"anybody else", unix.Ucred{Uid: 1000, Gid: 1000}, false},
		{"a user whose number is the daemon's group", unix.Ucred{Uid: 77, Gid: 1000}, false},
	} {
		if got := allowed(&tc.peer, 995, 995); got != tc.want {
			t.Errorf("%s: allowed(%+v) = %v, want %v", tc.name, tc.peer, got, tc.want)
		}
	}
}

// newAdmin serves operations on a socket of its own and returns its client.
func newAdmin(t *testing.T, ops Operations) Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "run", "admin.sock")
	a := NewAdmin(path, ops, slog.New(slog.DiscardHandler))
	if err := a.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
	})
	return Client(path)
}

func TestClientSpeaksWithAdmin(t *testing.T) {
	drained := ""
	c := newAdmin(t, Operations{
		Status: func() Report { return Report{Version: "v1", Phase: "joined"} },
		Table:  func(match string) ([]DNSName, error) { return []DNSName{{Host: "match=" + match}}, nil },
		Query: func(_ context.Context, name, qtype string, explain bool) (DNSAnswer, error) {
			if name == "" {
				return DNSAnswer{}, errors.New("name \"\": expected a host name")
			}
			return DNSAnswer{Question: name + " " + qtype, RCode: map[bool]string{true: "EXPLAINED", false: "NOERROR"}[explain]}, nil
		},
		Renew:   func(context.Context) error { return errors.New("istiod is away") },
		Drain:   func(_ context.Context, reason string) error { drained = reason; return nil },
		Undrain: func(context.Context) error { return errors.New("no stream") },
		Health:  func() any { return []string{"one"} },
	})
	if r, err := c.Drain(t.Context(), "kernel & co"); err != nil || r.Version != "v1" || drained != "kernel & co" {
		t.Errorf("Drain = %+v, %v with reason %q", r, err, drained)
	}
	if _, err := c.Undrain(t.Context()); err == nil || err.Error() != "no stream" {
		t.Errorf("Undrain = %v, want the daemon's sentence", err)
	}
	if r, err := c.Status(t.Context()); err != nil || r.Version != "v1" || r.Phase != "joined" {
		t.Errorf("Status = %+v, %v", r, err)
	}
	if names, err := c.Table(t.Context(), "*.corp & more"); err != nil || len(names) != 1 || names[0].Host != "match=*.corp & more" {
		t.Errorf("Table = %v, %v; want the glob as given", names, err)
	}
	if a, err := c.Query(t.Context(), "a.b", "AAAA", true); err != nil || a.Question != "a.b AAAA" || a.RCode != "EXPLAINED" {
		t.Errorf("Query = %+v, %v", a, err)
	}
	if _, err := c.Query(t.Context(), "", "A", false); err == nil || err.Error() != `name "": expected a host name` {
		t.Errorf("Query of nothing = %v, want the daemon's sentence", err)
	}
	if _, err := c.Renew(t.Context()); err == nil || err.Error() != "istiod is away" {
		t.Errorf("Renew = %v, want the daemon's sentence", err)
	}
	var history []string
	if err := c.HealthHistory(t.Context(), &history); err != nil || len(history) != 1 {
		t.Errorf("HealthHistory = %v, %v", history, err)
	}
}

func TestNobodyThereIsSaid(t *testing.T) {
	dir := t.TempDir()
	left := filepath.Join(dir, "left.sock")
	a := NewAdmin(left, Operations{}, slog.New(slog.DiscardHandler))
	if err := a.Listen(); err != nil {
		t.Fatal(err)
	}
	a.listener.(peerChecked).SetUnlinkOnClose(false)
	a.listener.Close() // a daemon that died leaves its socket
	for _, path := range []string{filepath.Join(dir, "none.sock"), left} {
		if _, err := Client(path).Status(t.Context()); !errors.Is(err, ErrNotRunning) {
			t.Errorf("Status at %s = %v, want that wingman is not running", path, err)
		}
	}
	// And the next daemon replaces it.
	b := NewAdmin(left, Operations{}, slog.New(slog.DiscardHandler))
	if err := b.Listen(); err != nil {
		t.Errorf("Listen over a left socket = %v, want nil", err)
	} else {
		b.listener.Close()
	}
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket stays after its listener: %v", err)
	}
}

// A daemon that hangs takes connections and says nothing: who asks it is told, and does not wait for ever.
func TestADaemonThatHangsIsSaid(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if pid, err := Client(path).Process(t.Context()); pid != os.Getpid() || err != nil {
		t.Errorf("behind the socket is %d, %v; want this process, %d", pid, err, os.Getpid())
	}
	ended := make(chan error, 1)
	go func() {
		var r Report
		ended <- Client(path).getWithin(t.Context(), 50*time.Millisecond, "/status", nil, &r)
	}()
	select {
	case err := <-ended:
		if err == nil || errors.Is(err, ErrNotRunning) || !strings.Contains(err.Error(), "has not answered within 50ms") {
			t.Errorf("%v, want that it has not answered", err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the question is never given up")
	}
	l.Close()
	if pid, err := Client(path).Process(t.Context()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("nobody is behind the socket: %d, %v, want %v", pid, err, ErrNotRunning)
	}
}
