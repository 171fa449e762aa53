package agent

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"wingman/agent/xds"
	"wingman/agent/xds/discovery"
	"wingman/bootstrap"
)

// A stop, and a drain by hand, wait for an istiod that does not listen, but not for ever.
func TestIstiodIsToldWithinALimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, err := xds.New(xds.Config{
			Address: "istiod:15012", Node: func(context.Context) (*discovery.Node, error) { return nil, nil }, TLS: func() *tls.Config { return nil },
			Subscriptions: []xds.Subscription{{TypeURL: xds.TypeNameTable}},
		})
		if err != nil {
			t.Fatal(err)
		}
		client.ReportHealth(xds.Health{Reason: "it leaves"})
		ctx, end := context.WithCancel(context.Background())
		defer end()
		began, done := time.Now(), make(chan bool, 1)
		go func() { done <- sent(ctx, client) }()
		select {
		case was := <-done:
			if took := time.Since(began); was || took != farewell {
				t.Errorf("sent: %t after %s, want false after %s", was, took, farewell)
			}
		case <-time.After(time.Hour):
			t.Error("it waits still")
		}
	})
}

// within fails the test when f does not return by itself.
func within(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Errorf("%s: it waits still", what)
	}
}

// sideOf is the agent's side of an Envoy whose admin port is at an address.
func sideOf(t *testing.T, admin net.Addr) *envoySide {
	t.Helper()
	cfg := &bootstrap.Config{Paths: bootstrap.DefaultPaths(t.TempDir())}
	cfg.Envoy.AdminPort, cfg.Envoy.HangTimeout = netip.MustParseAddrPort(admin.String()).Port(), time.Minute
	return &envoySide{log: slog.New(slog.DiscardHandler), cfg: func() *bootstrap.Config { return cfg }, presence: presence{live: true}}
}

// An Envoy that takes the question and never answers does not hold up the agent's looks.
func TestAnEnvoyThatIsSilentIsNotHeardForEver(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // the kernel takes connections; nobody answers
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	e := sideOf(t, l.Addr())
	within(t, "a look at a silent Envoy", func() {
		if deaf := e.hear(context.Background(), e.cfg(), 7); deaf != "" {
			t.Errorf("after one question it is given up: %s", deaf)
		}
	})
	if e.silence.since.IsZero() {
		t.Error("its silence was not noted")
	}
}

// Connections that never end do not hold up a stop for longer than it has.
func TestADrainOfEnvoyEnds(t *testing.T) {
	drained := make(chan struct{}, 100)
	admin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/drain_listeners" {
			drained <- struct{}{}
		}
		if r.URL.Path == "/stats" {
			fmt.Fprintln(w, "listener.0.0.0.0_15006.downstream_cx_active: 1")
			return
		}
		_, _ = io.WriteString(w, "OK\n")
	}))
	defer admin.Close()
	e := sideOf(t, admin.Listener.Addr())
	const most = 500 * time.Millisecond
	began := time.Now()
	within(t, "a drain with a connection that stays", func() { e.drain(context.Background(), most) })
	if took := time.Since(began); took < most {
		t.Errorf("it ended after %s: the connection was not waited for", took)
	}
	if len(drained) == 0 {
		t.Error("Envoy was not asked to drain")
	}
}
