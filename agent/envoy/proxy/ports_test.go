package proxy

import (
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
)

func TestParseSockets(t *testing.T) {
	if !nativeIsLittle {
		t.Skip("the tables below are of a little-endian machine")
	}
	const tcp = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:3A98 00000000:0000 0A 00000000:00000000 00:00000000 00000000   995        0 41234 1 0000000000000000 100 0 0 10 0
   1: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 22222 1 0000000000000000 100 0 0 10 0
   2: 0200630A:C350 0100630A:3A94 01 00000000:00000000 02:000A7D2E 00000000   995        0 33333 2 0000000000000000 20 4 30 10 -1
`
	const tcp6 = `  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000000000000000000000000000:3AAD 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000    33        0 55555 1 0000000000000000 100 0 0 10 0
   1: 0000000000000000FFFF00000100007F:1F90 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 66666 1 0000000000000000 100 0 0 10 0
   2: B80D0120000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 77777 1 0000000000000000 100 0 0 10 0
`
	at := netip.MustParseAddrPort
	for _, tt := range []struct {
		name, table string
		want        []listening
	}{
		{"IPv4, connections left out", tcp, []listening{{at("127.0.0.1:15000"), 995, "41234"}, {at("0.0.0.0:22"), 0, "22222"}}},
		{"IPv6, mapped IPv4 too", tcp6, []listening{{at("[::]:15021"), 33, "55555"}, {at("127.0.0.1:8080"), 1000, "66666"}, {at("[2001:db8::1]:80"), 1000, "77777"}}},
		{"nothing", "", nil},
		{"damaged lines", "a b c 0A\n 0: XX:1 0 0A 0 0 0 0 0 0 0\n 0: 0100:0001 0 0A 0 0 0 0 0 0 0\n", nil},
	} {
		got, err := parseSockets(strings.NewReader(tt.table))
		if err != nil || len(got) != len(tt.want) {
			t.Errorf("%s: got %v, %v; want %v", tt.name, got, err, tt.want)
			continue
		}
		for i := range got {
			if got[i] != tt.want[i] {
				t.Errorf("%s: socket %d is %v, want %v", tt.name, i, got[i], tt.want[i])
			}
		}
	}
}

func TestConflicts(t *testing.T) {
	at := netip.MustParseAddrPort
	tests := []struct {
		name         string
		mine, theirs string
		want         bool
	}{
		{"another port", "0.0.0.0:15001", "0.0.0.0:15002", false},
		{"both everywhere", "0.0.0.0:15001", "0.0.0.0:15001", true},
		{"theirs on one address", "0.0.0.0:15001", "10.0.0.1:15001", true},
		{"theirs on loopback", "0.0.0.0:15001", "127.0.0.1:15001", true},
		{"mine on loopback, theirs everywhere", "127.0.0.1:15000", "0.0.0.0:15000", true},
		{"mine on loopback, theirs everywhere by IPv6", "127.0.0.1:15000", "[::]:15000", true},
		{"mine everywhere, theirs everywhere by IPv6", "0.0.0.0:15001", "[::]:15001", true},
		{"the same loopback", "127.0.0.1:15000", "127.0.0.1:15000", true},
		{"another loopback", "127.0.0.1:15000", "127.0.0.2:15000", false},
		{"loopback of the other family", "127.0.0.1:15000", "[::1]:15000", false},
		{"mine everywhere, theirs on an address of the other family", "0.0.0.0:15001", "[2001:db8::1]:15001", false},
		{"mine everywhere by IPv6, theirs on an IPv4 address", "[::]:15001", "10.0.0.1:15001", true},
		{"mine on ::1, theirs on all of IPv4", "[::1]:15000", "0.0.0.0:15000", false},
	}
	for _, tt := range tests {
		if got := (Port{Addr: at(tt.mine)}).conflicts(at(tt.theirs)); got != tt.want {
			t.Errorf("%s: %s and %s: %v, want %v", tt.name, tt.mine, tt.theirs, got, tt.want)
		}
	}
}

// What the kernel lists for a socket of this process, and whom it names.
func TestTheKernelsTables(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "0.0.0.0:0", "[::1]:0"} {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Logf("%s: %v", address, err)
			continue
		}
		mine := netip.MustParseAddrPort(l.Addr().String())
		all, err := listeningSockets()
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, s := range all {
			if s.addr.Port() != mine.Port() {
				continue
			}
			found = true
			if s.uid != uint32(os.Geteuid()) || s.addr.Addr() != mine.Addr() && !s.addr.Addr().IsUnspecified() {
				t.Errorf("%s is listed as %+v", mine, s)
			}
			if who := holder(s); !strings.HasSuffix(who, "(pid "+strconv.Itoa(os.Getpid())+")") {
				t.Errorf("%s is said to be held by %s", mine, who)
			}
		}
		if !found {
			t.Errorf("%s is not among %v", mine, all)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// Other users' processes cannot be seen; their uid can.
func TestAHolderThatCannotBeSeen(t *testing.T) {
	p := Port{Addr: netip.MustParseAddrPort("127.0.0.1:15000"), Purpose: "its admin interface", Setting: "envoy.adminPort"}
	for who, s := range map[string]listening{
		"a process of uid 33":    {uid: 33, inode: "no such inode"},
		"another user's process": {uid: overflowUID, inode: "no such inode"},
	} {
		want := "port 15000, Envoy's for its admin interface, is held by " + who + " (as root, ss -ltnp names it): stop it, or give Envoy another port with envoy.adminPort"
		if got := p.taken(s); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}

// Another port for what istiod's listeners get would be one that nobody listens on: no setting of this machine moves them.
func TestAPortOfIstiodsHasNoSetting(t *testing.T) {
	p := Port{Addr: netip.MustParseAddrPort("0.0.0.0:15001"), Purpose: "outbound traffic", Mesh: true}
	want := "port 15001, Envoy's for outbound traffic, is held by a process of uid 33 (as root, ss -ltnp names it): stop it, or have it listen elsewhere: istiod chooses this port for the whole mesh"
	if got := p.taken(listening{uid: 33, inode: "no such inode"}); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func FuzzParseSockets(f *testing.F) {
	f.Add("   0: 0100007F:3A98 00000000:0000 0A 00000000:00000000 00:00000000 00000000   995        0 41234 1\n")
	f.Add("   0: 00000000000000000000000000000000:3AAD 0:0 0A 0 0 0 33 0 5\n")
	f.Add("0: :0 0 0A 0 0 0 0 0 0")
	f.Fuzz(func(t *testing.T, table string) {
		sockets, err := parseSockets(strings.NewReader(table))
		if err != nil {
			return
		}
		for _, s := range sockets {
			if !s.addr.IsValid() {
				t.Errorf("%q gives %+v", table, s)
			}
			Port{Addr: netip.MustParseAddrPort("0.0.0.0:1")}.conflicts(s.addr)
		}
	})
}
