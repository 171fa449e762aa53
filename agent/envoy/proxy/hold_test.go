package proxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// listenAsEnvoy opens a port as Envoy does; at 127.0.0.1:0, one that is free.
func listenAsEnvoy(t *testing.T, at string) net.Listener {
	t.Helper()
	network := "tcp6"
	if netip.MustParseAddrPort(at).Addr().Is4() {
		network = "tcp4" // plain "tcp" makes one socket of both families of 0.0.0.0
	}
	l, err := (&net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) }), err)
	}}).Listen(t.Context(), network, at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// mustWait fails unless a connection is neither made nor refused.
func mustWait(t *testing.T, at string) {
	t.Helper()
	if err := <-dialFor(t, 50*time.Millisecond, at); !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a connection to a port that is held: %v, want it to wait", err)
	}
}

// dial connects in the background, for as long as a patient client does.
func dial(t *testing.T, at string) <-chan error { return dialFor(t, 30*time.Second, at) }

func dialFor(t *testing.T, patience time.Duration, at string) <-chan error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	done := make(chan error, 1)
	go func() {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", at)
		if err == nil {
			c.Close()
		}
		done <- err
	}()
	return done
}

func TestAConnectionThatIsHeldIsServedByTheNextEnvoy(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0", "[::]:0"} {
		t.Run(address, func(t *testing.T) { t.Parallel(); holdAndServe(t, address) })
	}
}

func holdAndServe(t *testing.T, address string) {
	first := listenAsEnvoy(t, address)
	at := first.Addr().String()
	ports := []netip.AddrPort{netip.MustParseAddrPort(at)}
	if !shared(ports, nil) {
		t.Fatal("a port with SO_REUSEPORT is not shared")
	}
	first.Close()
	if err := <-dial(t, at); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Fatalf("nobody listens and nothing is held: %v, want a refusal", err)
	}

	h, err := holdPorts(ports, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer h.release()
	mustWait(t, at)
	waiting := dial(t, at)
	if err := checkPorts([]Port{{Addr: ports[0]}}, h.inodes()); err != nil {
		t.Errorf("what holds a port is taken for a stranger on it: %v", err)
	}
	if err := checkPorts([]Port{{Addr: ports[0]}}, nil); err == nil {
		t.Error("nobody is seen on a port that is held: the test above says nothing")
	}
	next := listenAsEnvoy(t, at)
	served := make(chan error, 1)
	go func() {
		c, err := next.Accept()
		if err == nil {
			c.Close()
		}
		served <- err
	}()
	h.release()
	if err := errors.Join(<-waiting, <-served); err != nil {
		t.Errorf("after the hold: %v", err)
	}
}

func TestAHoldEndsByItself(t *testing.T) {
	l := listenAsEnvoy(t, "127.0.0.1:0")
	at := l.Addr().String()
	l.Close()
	h, err := holdPorts([]netip.AddrPort{netip.MustParseAddrPort(at)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	h.releaseAfter(time.Minute)
	if !h.keep() {
		t.Error("a hold ends before its time")
	}
	h.releaseAfter(50 * time.Millisecond)
	// The first packet is dropped, the one a second later finds nobody.
	if err := <-dial(t, at); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("after the hold: %v, want a refusal", err)
	}
	if left := h.inodes(); len(left) > 0 {
		t.Errorf("sockets %q are left", left)
	}
	if h.keep() {
		t.Error("a hold that ended is kept")
	}
	h.release() // again is nothing
	(*hold)(nil).release()
}

func TestAPortThatIsNotSharedIsNotHeld(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // without SO_REUSEPORT: the next Envoy could not listen beside ours either
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ports := []netip.AddrPort{netip.MustParseAddrPort(l.Addr().String())}
	if shared(ports, nil) {
		t.Error("a port without SO_REUSEPORT counts as shared")
	}
	if h, err := holdPorts(ports, nil); err == nil {
		h.release()
		t.Error("a port that somebody has is held")
	}
}

// What stands by beside an Envoy takes nothing from it, and has what comes after its end wait, from the first connection on.
func TestAHoldStandsByWithoutTakingAnything(t *testing.T) {
	first := listenAsEnvoy(t, "0.0.0.0:0")
	port := netip.MustParseAddrPort(first.Addr().String()).Port()
	ports := []netip.AddrPort{netip.AddrPortFrom(netip.IPv4Unspecified(), port)}
	at := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port).String()
	h, err := standBy(ports, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer h.release()
	for i := range 100 { // a share of them would be lost to a socket that the kernel takes for equal
		if err := <-dial(t, at); err != nil {
			t.Fatalf("connection %d while Envoy serves: %v", i, err)
		}
	}
	first.Close()
	mustWait(t, at)
	waiting := dial(t, at)
	next := listenAsEnvoy(t, netip.AddrPortFrom(netip.IPv4Unspecified(), port).String())
	if err := <-waiting; err != nil {
		t.Errorf("a connection that began without an Envoy: %v", err)
	}
	next.Close()
	for _, other := range []string{"127.0.0.1:1", "[::]:1"} {
		if h, err := standBy([]netip.AddrPort{netip.MustParseAddrPort(other)}, nil); err == nil {
			h.release()
			t.Errorf("stands by at %s, where it would take from Envoy", other)
		}
	}
}

// An Envoy of another user could not listen beside a socket of root's.
func TestAHoldBelongsToEnvoysUser(t *testing.T) {
	if err := os.Chown(t.TempDir(), 4711, 4711); err != nil {
		t.Skipf("only a root with many users gives sockets away: %v", err)
	}
	l := listenAsEnvoy(t, "127.0.0.1:0")
	at := netip.MustParseAddrPort(l.Addr().String())
	l.Close()
	h, err := holdPorts([]netip.AddrPort{at}, &User{UID: 4711, GID: 4711})
	if err != nil {
		t.Fatal(err)
	}
	defer h.release()
	sockets, err := listeningSockets()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(sockets, func(s listening) bool { return s.addr == at && s.uid == 4711 }) {
		t.Errorf("no socket of uid 4711 listens at %s: %+v", at, sockets)
	}
}

func TestWhenConnectionsAreHeld(t *testing.T) {
	now := time.Now()
	served := machine{timings: testTimings, phase: PhaseLive, liveAt: now.Add(-time.Hour)}
	for _, tc := range []struct {
		name   string
		change func(*machine)
		want   bool
	}{
		{"it served for long", func(*machine) {}, true},
		{"it hung and was killed", func(m *machine) { m.phase = PhaseHanging }, true},
		{"it never served", func(m *machine) { m.liveAt = time.Time{} }, false},
		{"it was asked to stop", func(m *machine) { m.stop = true }, false},
		{"it keeps crashing: the next start is far", func(m *machine) {
			m.most, m.liveAt, m.ended = time.Minute, now.Add(-time.Second), 2*soon
		}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := served
			tc.change(&m)
			if got := m.holds(now); got != tc.want {
				t.Errorf("holds = %v, want %v", got, tc.want)
			}
		})
	}
}
