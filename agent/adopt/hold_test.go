package adopt

import (
	"context"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"wingman/test/netns"
)

// What is held is let go by the kernel itself, also when nobody asks it to; adopt's own questions pass.
func TestAHoldLetsGoByItself(t *testing.T) {
	netns.New(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	at := l.Addr().(*net.TCPAddr)
	const limit, jiffy = 3 * time.Second, 10 * time.Millisecond
	// Whatever else the machine does: nobody comes through before the limit is over, and after it everybody.
	began := time.Now()
	if err := (Hold{TCP: []uint16{uint16(at.Port)}, Limit: limit}).begin(); err != nil {
		t.Fatal(err)
	}
	marker := net.Dialer{Timeout: 10 * time.Second, Control: marked}
	conn, err := marker.Dial("tcp", at.String())
	if took := time.Since(began); err != nil || took >= limit {
		t.Fatalf("adopt's own connection is held: %v after %s", err, took)
	}
	conn.Close()
	if conn, err = net.DialTimeout("tcp", at.String(), 30*time.Second); err != nil {
		t.Fatalf("after the limit: %v", err)
	}
	conn.Close()
	if took := time.Since(began); took < limit-jiffy {
		t.Errorf("the connection waited %s only, want %s", took, limit)
	}
}

// Without rules queries go where names are known, but those of the agent's user, and only to the machine's own resolvers.
func TestAHoldKeepsDNS(t *testing.T) {
	netns.New(t)
	servers := map[string]string{"127.0.0.53:53": "resolver", "127.0.0.54:53": "another", "127.0.0.1:15054": "names"}
	for at, name := range servers {
		c, err := net.ListenPacket("udp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		go func() {
			for b := make([]byte, 16); ; {
				_, from, err := c.ReadFrom(b)
				if err != nil {
					return
				}
				_, _ = c.WriteTo([]byte(name), from)
			}
		}()
	}
	ask := func(at string) string {
		t.Helper()
		c, err := net.Dial("udp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 16)
		if _, err := c.Write([]byte("?")); err != nil {
			t.Fatal(err)
		}
		n, err := c.Read(b)
		if err != nil {
			return err.Error()
		}
		return string(b[:n])
	}
	around := []netip.Addr{netip.MustParseAddr("127.0.0.53"), netip.MustParseAddr("fd00::53")}
	for _, tc := range []struct {
		name string
		hold Hold
		want map[string]string
	}{
		{"an application's", Hold{Everything: true, User: 12345, DNS: 15054, Resolvers: around}, map[string]string{"127.0.0.53:53": "names", "127.0.0.54:53": "another"}},
		{"the agent's", Hold{Everything: true, User: uint32(os.Geteuid()), DNS: 15054, Resolvers: around}, map[string]string{"127.0.0.53:53": "resolver"}},
		{"where DNS is not captured", Hold{Everything: true, User: 12345}, map[string]string{"127.0.0.53:53": "resolver"}},
	} {
		tc.hold.Limit = time.Minute
		if err := tc.hold.begin(); err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
		for at, want := range tc.want {
			if got := ask(at); got != want {
				t.Errorf("%s, to %s: answered by %q, want %q", tc.name, at, got, want)
			}
		}
	}
	if err := letGo(); err != nil {
		t.Fatal(err)
	}
	if got := ask("127.0.0.53:53"); got != "resolver" {
		t.Errorf("let go: answered by %q", got)
	}
}

func TestUntilSaysWhatKeptIt(t *testing.T) {
	err := until(context.Background(), 50*time.Millisecond, func(context.Context) (bool, string) { return false, "it rains" })
	if err == nil || err.Error() != "not within 50ms: it rains" {
		t.Errorf("%v", err)
	}
}
