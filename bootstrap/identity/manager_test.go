package identity

import (
	"context"
	"testing"
	"time"
)

// start runs a manager of cfg until the test ends.
func start(t *testing.T, cfg Config) *Manager {
	t.Helper()
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	run(t, m)
	return m
}

// run runs m until the test ends, or until the function it returns is called.
func run(t *testing.T, m *Manager) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
	t.Cleanup(stop)
	return stop
}

// within waits for c to be closed or to deliver.
func within[T any](t *testing.T, d time.Duration, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(d):
		t.Fatalf("%s: nothing after %v", what, d)
		panic("unreachable")
	}
}

func TestManagerGetsACertificateWithATokenAndKeepsItWithoutOne(t *testing.T) {
	ca := newTestCA(t, nil)
	vm := newMachine(t, ca)
	putFile(t, vm.token, token(time.Now().Add(time.Hour), nil))
	m := start(t, vm.config(ca))
	within(t, 5*time.Second, m.Ready(), "first certificate")
	if got := m.Current(); got.SPIFFEID != testID || !got.usable(time.Now()) {
		t.Errorf("current: %v", got)
	}
}
