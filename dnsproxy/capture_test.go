package dnsproxy

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"

	"wingman/test/netns"
)

// inNamespace makes the test run in a process of its own that was born in a fresh network and mount namespace: a Server's
// goroutines move between threads, so a thread's namespace would not do. It reports whether this is that process; the
// other one has run it and is done.
func inNamespace(t *testing.T) bool {
	t.Helper()
	const mark = "WINGMAN_TEST_IN_NAMESPACE"
	if os.Getenv(mark) == t.Name() {
		return true
	}
	netns.New(t)
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=2m")
	cmd.Env = append(os.Environ(), mark+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	t.Logf("in the namespace:\n%s", out)
	if err != nil {
		t.Error(err)
	}
	return false
}

// capture gives the machine an address and redirects DNS to resolver, over UDP and TCP, to port, as the capture rules do.
func capture(t *testing.T, addr, resolver string, port uint16) {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []string{addr, "2001:db8::2"} {
		if err := netlink.AddrAdd(lo, &netlink.Addr{IPNet: hostNet(a)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: hostNet(resolver), Src: net.ParseIP(addr)}); err != nil {
		t.Fatal(err)
	}
	rules := fmt.Sprintf("table ip capture {\n chain out {\n type nat hook output priority -100;\n ip daddr %s udp dport 53 redirect to :%d\n ip daddr %s tcp dport 53 redirect to :%d\n }\n}\n", resolver, port, resolver, port)
	cmd := exec.Command(netns.Tool(t, "nft"), "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v\n%s", err, out)
	}
}

func hostNet(addr string) *net.IPNet {
	ip := net.ParseIP(addr)
	bits := 128
	if ip4 := ip.To4(); ip4 != nil {
		ip, bits = ip4, 32
	}
	return &net.IPNet{IP: ip, Mask: net.CIDRMask(bits, bits)}
}

// listen is Listen for a test.
func listen(t *testing.T, addr string) Config {
	t.Helper()
	udp, tcp, err := Listen(netip.MustParseAddrPort(addr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { udp.Close(); tcp.Close() })
	return Config{UDP: []*net.UDPConn{udp}, TCP: []*net.TCPListener{tcp}}
}

// TestRedirectedQuestions sends questions through the kernel's redirect: an answer reaches its client only if it leaves from
// the address that the redirected question went to.
func TestRedirectedQuestions(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	const resolver = "10.99.0.53"
	capture(t, "10.99.0.2", resolver, 15053)
	up := newUpstream(t, zone(t, example))
	for _, bound := range []string{"127.0.0.1:15053", "0.0.0.0:15053", "[::]:15053"} {
		t.Run("bound to "+bound, func(t *testing.T) {
			cfg := listen(t, bound)
			cfg.Upstreams = []netip.AddrPort{up.addr}
			s := serve(t, cfg, forum(t))
			for via := range transports {
				for _, tt := range []struct{ name, want string }{
					{"forum", "NOERROR aa,ra [forum. 30 IN A 10.96.72.87]"},
					{"www.example.com", "NOERROR ra [www.example.com. 300 IN A 192.0.2.80]"},
				} {
					got := brief(exchange(t, netip.MustParseAddrPort(resolver+":53"), via, question(tt.name, dns.TypeA)))
					if got != tt.want {
						t.Errorf("%s over %v: got %s, want %s", tt.name, via, got, tt.want)
					}
				}
			}
			s.stop()
			cfg.UDP[0].Close()
			cfg.TCP[0].Close()
		})
	}
	t.Run("a socket bound to no address answers from the one it was asked at", func(t *testing.T) {
		cfg := listen(t, "[::]:15054")
		cfg.Upstreams = []netip.AddrPort{up.addr}
		serve(t, cfg, forum(t))
		for _, at := range []string{"127.0.0.1:15054", "127.0.0.7:15054", "10.99.0.2:15054", "[::1]:15054", "[2001:db8::2]:15054"} {
			for _, name := range []string{"forum", "www.example.com"} {
				if got := exchange(t, netip.MustParseAddrPort(at), overUDP, question(name, dns.TypeA)); len(got.Answer) != 1 {
					t.Errorf("%s at %s: got %v", name, at, got)
				}
			}
		}
	})
}

// TestOurOwnQuestionsRedirected is a capture that does not exempt the agent: it must notice, say so and take another way.
func TestOurOwnQuestionsRedirected(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	const resolver = "10.99.0.53"
	capture(t, "10.99.0.2", resolver, 15053)
	up := newUpstream(t, zone(t, example))
	cfg := listen(t, "127.0.0.1:15053")
	var log lines
	cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
	cfg.Upstreams = []netip.AddrPort{netip.MustParseAddrPort(resolver + ":53"), up.addr}
	s := serve(t, cfg)
	for _, name := range []string{"www.example.com", "WWW.example.com"} {
		began := time.Now()
		if got := exchange(t, s.addr, overUDP, question(name, dns.TypeA)); len(got.Answer) != 1 {
			t.Errorf("%s: got %v after %v", name, got, time.Since(began))
		}
	}
	if n := log.count("upstream resolver leads back to this agent"); n != 1 {
		t.Errorf("the loop was logged %d times, want once", n)
	}
	// it was the question itself that gave it away, not a probe
	var refused []string
	s.metrics.each(func(via, qtype, rcode, from string, n uint64) {
		if from == "refused" {
			refused = append(refused, fmt.Sprint(via, " ", qtype, " ", rcode, " ", n))
		}
	})
	if want := []string{"udp A REFUSED 1"}; !slices.Equal(refused, want) {
		t.Errorf("refused were %q, want %q: the first question alone", refused, want)
	}
}

// TestRealClients resolves by way of /etc/resolv.conf and the redirect, as programs do.
func TestRealClients(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	const resolver = "10.99.0.53"
	capture(t, "10.99.0.2", resolver, 15053)
	up := newUpstream(t, zone(t, example, "www.example.com. 300 IN AAAA 2001:db8::80", "big.example.com. 300 IN TXT "+strings.Repeat(` "`+strings.Repeat("x", 250)+`"`, 10)))
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	conf := t.TempDir() + "/resolv.conf"
	if err := os.WriteFile(conf, []byte("nameserver "+resolver+"\nsearch corp.example\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount(conf, "/etc/resolv.conf", "", syscall.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	cfg := listen(t, "127.0.0.1:15053")
	cfg.ResolvConf = conf
	cfg.Upstreams = []netip.AddrPort{up.addr}
	serve(t, cfg, forum(t))
	tests := []struct {
		name    string
		command []string
		want    string // part of the output
	}{
		{"glibc: a service by name and namespace", []string{"getent", "ahosts", "webapp.istioinaction"}, "10.96.97.98"},
		{"glibc: a short name, completed by the search list first", []string{"getent", "ahosts", "forum"}, "10.96.72.87"},
		{"glibc: a name with both families", []string{"getent", "ahosts", "db.corp.internal"}, "2001:db8:240::10"},
		{"glibc: many addresses, by TCP after truncation", []string{"getent", "ahosts", "many.corp.internal"}, "240.240.1.40"},
		{"glibc: an external name", []string{"getent", "ahosts", "www.example.com"}, "2001:db8::80"},
		{"glibc: an address of the mesh", []string{"getent", "hosts", "10.96.97.98"}, "webapp.istioinaction.svc.cluster.local"},
		{"glibc: localhost", []string{"getent", "ahosts", "localhost"}, "127.0.0.1"},
		{"dig: truncation and TCP", []string{"dig", "+short", "+bufsize=512", "big.example.com", "TXT"}, strings.Repeat("x", 250)},
		{"dig: cookies, NSID and an unknown option", []string{"dig", "+nsid", "+cookie", "+ednsopt=65001:616263", "+subnet=192.0.2.0/24", "forum"}, "status: NOERROR"},
		{"dig: EDNS version 1", []string{"dig", "+edns=1", "+noednsnegotiation", "forum"}, "status: BADVERS"},
		{"dig: an opcode nobody has", []string{"dig", "+opcode=15", "+header-only", "forum"}, "status: NOTIMP"},
		{"dig: several questions over one connection", []string{"dig", "+tcp", "+keepopen", "+short", "forum", "www.example.com"}, "192.0.2.80"},
		{"dig: a large buffer still gets no large datagram", []string{"dig", "+bufsize=4096", "+ignore", "big.example.com", "TXT"}, "flags: qr tc"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			out, err := exec.Command(program(t, tt.command[0]), tt.command[1:]...).CombinedOutput()
			var exit *exec.ExitError
			if err != nil && !errors.As(err, &exit) {
				t.Fatal(err)
			}
			if !strings.Contains(string(out), tt.want) {
				t.Errorf("%s: want %q in\n%s", strings.Join(tt.command, " "), tt.want, out)
			}
		})
	}
	// resolvers that are libraries, each asked for the same names
	names := map[string]string{"webapp.istioinaction": "10.96.97.98", "forum": "10.96.72.87", "db.corp.internal": "2001:db8:240::10", "many.corp.internal": "240.240.1.40", "www.example.com": "2001:db8::80"}
	// musl before 1.2.4 does not ask by TCP after truncation: it has those that fit, in an order of chance
	part := maps.Clone(names)
	part["many.corp.internal"] = "240.240.1."
	for _, lib := range []struct {
		name   string
		names  map[string]string
		lookup func(t *testing.T, name string) string
	}{
		{"Go's resolver", names, func(t *testing.T, name string) string {
			addrs, err := (&net.Resolver{PreferGo: true}).LookupHost(t.Context(), name)
			return fmt.Sprint(addrs, err)
		}},
		{"musl", part, func(t *testing.T, name string) string {
			return run(t, compiled(t, "musl-gcc", "testdata/getaddrinfo.c"), name)
		}},
		{"c-ares", names, func(t *testing.T, name string) string {
			return run(t, compiled(t, "gcc", "testdata/cares.c", "-lcares"), name)
		}},
	} {
		t.Run(lib.name, func(t *testing.T) {
			for name, want := range lib.names {
				if got := lib.lookup(t, name); !strings.Contains(got, want) {
					t.Errorf("%s: want %s in %s", name, want, got)
				}
			}
		})
	}
}

// compiled builds a C program, or skips as program does: compilers and libraries are not what this repository asks for.
func compiled(t *testing.T, compiler, source string, args ...string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "program")
	cc := program(t, compiler)
	if text, err := exec.Command(cc, append([]string{"-o", out, source}, args...)...).CombinedOutput(); err != nil {
		netns.Skip(t, fmt.Sprintf("%s does not compile here (test/setup/setup.sh dns): %s", source, text))
	}
	return out
}

func run(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		t.Errorf("%v: %v", args, err)
	}
	return string(out)
}
