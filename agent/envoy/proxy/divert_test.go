package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"wingman/agent/envoy/envoytest"
)

// Beside Envoy's listeners: new connections wait, whichever of them they would have gone to, and those that were made before are accepted.
func TestADiversionLetsInWhoIsOnTheWay(t *testing.T) {
	envoytest.Network(t)
	first := listenAsEnvoy(t, "0.0.0.0:15006")
	second := listenAsEnvoy(t, "0.0.0.0:15006")
	ports := []netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:15006")}
	const at = "127.0.0.1:15006"
	for range 20 {
		if err := <-dial(t, at); err != nil {
			t.Fatal(err)
		}
	}
	envoytest.Await(t, "20 to accept", func(context.Context) error {
		if n := onTheWay(ports); n != 20 {
			return fmt.Errorf("there are %d", n)
		}
		return nil
	})
	h, err := divert(ports, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer h.release()
	var waiting []<-chan error
	for range 40 {
		waiting = append(waiting, dial(t, at))
	}
	for range 5 {
		mustWait(t, at)
	}
	if n := onTheWay(ports); n != 20 {
		t.Errorf("%d are to be accepted, want the 20 from before", n)
	}
	accepted := 0
	for _, l := range []net.Listener{first, second} {
		accepted += acceptAll(t, l)
	}
	if n := onTheWay(ports); accepted != 20 || n != 0 {
		t.Errorf("%d were accepted, %d are left", accepted, n)
	}
	// Envoy goes, what stands by takes over, and the next Envoy serves those who waited.
	standing, err := standBy(ports, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer standing.release()
	first.Close()
	second.Close()
	h.release()
	mustWait(t, at)
	next := listenAsEnvoy(t, "0.0.0.0:15006")
	go func() {
		for {
			c, err := next.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	for _, w := range waiting {
		if err := <-w; err != nil {
			t.Error(errors.Join(errors.New("one who waited"), err))
		}
	}
}

// acceptAll accepts what waits in a listener's queue and returns how many that were.
func acceptAll(t *testing.T, l net.Listener) (n int) {
	t.Helper()
	raw, err := l.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = raw.Control(func(fd uintptr) {
		for {
			conn, _, err := unix.Accept(int(fd)) // Go's sockets do not block
			if errors.Is(err, unix.EAGAIN) {
				return
			}
			if err != nil {
				t.Error(err)
				return
			}
			unix.Close(conn)
			n++
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func FuzzCountOnTheWay(f *testing.F) {
	f.Add("  sl  local_address rem_address   st tx_queue rx_queue\n   0: 00000000:3A9E 00000000:0000 0A 00000000:00000003 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0\n")
	f.Add("   1: 0100007F:3A9E 0100007F:D431 03 00000000:00000000 01:00000063 00000000     0        0 0 1 0\n")
	f.Add(": : : 0A :")
	f.Fuzz(func(t *testing.T, table string) {
		n := countOnTheWay(strings.NewReader(table), []netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:15006")})
		if n < 0 {
			t.Errorf("%d", n)
		}
	})
}
