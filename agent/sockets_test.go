package agent

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"wingman/dnsproxy"
	"wingman/test/freeport"
)

// memoryStore is a systemd FD store that remembers names.
type memoryStore struct{ stored, removed []string }

func (s *memoryStore) StoreFDs(name string, files ...*os.File) error {
	s.stored = append(s.stored, name)
	return nil
}

func (s *memoryStore) RemoveFDs(name string) error {
	s.removed = append(s.removed, name)
	return nil
}

// handedIn opens a pair of sockets on addr as an earlier process would have left them.
func handedIn(t *testing.T, addr string, names ...string) (map[string][]*os.File, netip.AddrPort) {
	t.Helper()
	udp, tcp, err := dnsproxy.Listen(netip.MustParseAddrPort(addr))
	if err != nil {
		t.Fatal(err)
	}
	at := addrPort(udp.LocalAddr())
	files := map[string][]*os.File{}
	for i, c := range []interface{ File() (*os.File, error) }{udp, tcp} {
		f, err := c.File()
		if err != nil {
			t.Fatal(err)
		}
		files[names[i]] = append(files[names[i]], f)
	}
	udp.Close()
	tcp.Close()
	return files, at
}

func TestHandedInSocketsAreUsedAndKeepWhatWaits(t *testing.T) {
	for _, name := range []struct{ udp, tcp string }{{"dns-udp4", "dns-tcp4"}, {"wingman.socket", "wingman.socket"}} {
		files, at := handedIn(t, "127.0.0.1:0", name.udp, name.tcp)
		client, err := net.Dial("udp", at.String())
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		if _, err := client.Write([]byte("a query while nobody runs")); err != nil {
			t.Fatal(err)
		}
		store := &memoryStore{}
		s, err := openSockets([]netip.AddrPort{at}, files, store, quiet())
		if err != nil {
			t.Fatal(err)
		}
		defer s.close()
		if len(s.udp) != 1 || len(s.tcp) != 1 || !s.inherited {
			t.Fatalf("sockets %+v, want the pair that was handed in", s)
		}
		if len(store.stored)+len(store.removed) != 0 {
			t.Errorf("store was told %+v, want nothing: it has them", store)
		}
		b := make([]byte, 100)
		if err := s.udp[0].SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if n, err := s.udp[0].Read(b); err != nil || string(b[:n]) != "a query while nobody runs" {
			t.Errorf("read %q, %v; want the query that waited", b[:n], err)
		}
	}
}

func TestNewSocketsGoIntoTheStore(t *testing.T) {
	at := freeport.Addr()
	store := &memoryStore{}
	s, err := openSockets([]netip.AddrPort{at}, nil, store, quiet())
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	if want := []string{"dns-udp4", "dns-tcp4"}; !slices.Equal(store.stored, want) || s.inherited {
		t.Errorf("stored %v, inherited %v; want %v, false", store.stored, s.inherited, want)
	}
}

func TestSocketsThatServeNobodyLeave(t *testing.T) {
	files, old := handedIn(t, "127.0.0.1:0", "dns-udp4", "dns-tcp4")
	at := freeport.Addr()
	store := &memoryStore{}
	s, err := openSockets([]netip.AddrPort{at}, files, store, quiet())
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	slices.Sort(store.removed)
	if want := []string{"dns-tcp4", "dns-udp4"}; !slices.Equal(store.removed, want) {
		t.Errorf("removed %v, want %v", store.removed, want)
	}
	if c, err := net.ListenPacket("udp", old.String()); err != nil {
		t.Errorf("the old port is still held: %v", err)
	} else {
		c.Close()
	}
}

func TestHandedInWildcardServesLoopback(t *testing.T) {
	files, at := handedIn(t, "0.0.0.0:0", "unit.socket", "unit.socket")
	want := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), at.Port())
	s, err := openSockets([]netip.AddrPort{want}, files, &memoryStore{}, quiet())
	if err != nil {
		t.Fatalf("openSockets = %v, want the wildcard sockets to serve %s", err, want)
	}
	s.close()
}

func TestTakenPortIsAnErrorAndLeavesNothingOpen(t *testing.T) {
	held, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	taken := addrPort(held.LocalAddr())
	free := freeport.Addr()
	if _, err := openSockets([]netip.AddrPort{free, taken}, nil, &memoryStore{}, quiet()); err == nil {
		t.Fatal("openSockets = nil although a port is taken")
	}
	c, err := net.ListenPacket("udp", free.String())
	if err != nil {
		t.Fatalf("the other port stays open: %v", err)
	}
	c.Close()
}

func TestOneDaemonPerRunFolder(t *testing.T) {
	dir := t.TempDir() + "/run"
	first, err := takeLock(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := takeLock(dir); err == nil {
		t.Fatal("the lock was taken twice")
	}
	first.Close()
	again, err := takeLock(dir)
	if err != nil {
		t.Errorf("the lock outlives its holder: %v", err)
	}
	again.Close()
	var notDir *os.PathError
	if _, err := takeLock("/proc/version/x"); !errors.As(err, &notDir) {
		t.Errorf("takeLock below a file = %v, want the system's error", err)
	}
}
