package dnsproxy

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

func TestWithoutStub(t *testing.T) {
	const stub = "# systemd-resolved\nnameserver 127.0.0.53\noptions edns0\nsearch a.example\n"
	gone := errors.New("gone")
	for _, tc := range []struct {
		name, text, uplinks string
		err                 error
		servers, search     string
	}{
		{"the stub is what it asks", stub, "nameserver 10.0.0.2\nnameserver 2001:db8::2\nsearch b.example\n", nil, "10.0.0.2 2001:db8::2", "a.example."},
		{"other servers stay as they are", "nameserver 10.0.0.1\nsearch a.example\n", "nameserver 10.0.0.2\n", gone, "10.0.0.1", "a.example."},
		{"servers beside the stub stay before its own", "nameserver 127.0.0.53\nnameserver 10.0.0.1\n", "nameserver 10.0.0.2\n", nil, "10.0.0.1 10.0.0.2", ""},
		{"a stub that asks a stub", "nameserver 127.0.0.54", "nameserver 127.0.0.53\nnameserver 10.0.0.2\n", nil, "10.0.0.2", ""},
		{"nothing behind it", stub, "# empty\n", nil, "", "a.example."},
	} {
		got, err := withoutStub(tc.text, func() (string, error) { return tc.uplinks, tc.err })
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		c := parseResolvConf(got)
		var servers, search []string
		for _, s := range c.servers {
			servers = append(servers, s.Addr().String())
		}
		for _, k := range c.search {
			search = append(search, nameOf(k))
		}
		if strings.Join(servers, " ") != tc.servers || strings.Join(search, " ") != tc.search {
			t.Errorf("%s: %q has servers %v, search list %v; want %s, %s", tc.name, got, servers, search, tc.servers, tc.search)
		}
	}
	if _, err := withoutStub(stub, func() (string, error) { return "", gone }); !errors.Is(err, gone) {
		t.Errorf("without the file of its servers: %v, want the error", err)
	}
}

func FuzzWithoutStub(f *testing.F) {
	f.Add("nameserver 127.0.0.53\noptions edns0\n", "nameserver 10.0.0.2")
	f.Add("nameserver 10.0.0.1\nnameserver ::ffff:127.0.0.53", "nameserver fe80::1%eth0\nnameserver 127.0.0.54")
	f.Fuzz(func(t *testing.T, text, uplinks string) {
		out, err := withoutStub(text, func() (string, error) { return uplinks, nil })
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range parseResolvConf(out).servers {
			if slices.Contains(stubs, s) && len(parseResolvConf(text).servers) < maxServers {
				t.Errorf("%q still names %s", out, s)
			}
		}
	})
}

// Its own file is followed as resolv.conf is.
func TestServersBehindResolvedAreFollowed(t *testing.T) {
	dir := t.TempDir()
	conf, behind := filepath.Join(dir, "resolv.conf"), filepath.Join(dir, "run", "resolv.conf")
	write := func(path, text string) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path+".new", []byte(text), 0o644), os.Rename(path+".new", path)); err != nil {
			t.Fatal(err)
		}
	}
	write(conf, "nameserver 127.0.0.53\n")
	write(behind, "nameserver 10.0.0.1\n")
	s := serve(t, Config{ResolvConf: conf, UplinkConf: behind, BehindResolved: true})
	servers := func() string {
		var list []string
		for _, u := range s.Stats().Upstreams {
			list = append(list, strings.TrimSuffix(u.Address, ":53"))
		}
		return strings.Join(list, " ")
	}
	for _, want := range []string{"10.0.0.1", "10.0.0.2 10.0.0.3"} {
		write(behind, "nameserver "+strings.ReplaceAll(want, " ", "\nnameserver ")+"\n")
		waitFor(t, func() bool { return servers() == want })
		if got := servers(); got != want {
			t.Errorf("upstreams %s, want %s", got, want)
		}
	}
}

// What systemd-resolved remembers longer would hide a name that the mesh gets meanwhile.
func TestDenialsLiveShortBehindResolved(t *testing.T) {
	up := newUpstream(t, func(query []byte, _ transport) [][]byte {
		q := new(dns.Msg)
		if q.Unpack(query) != nil {
			return nil
		}
		a := new(dns.Msg).SetReply(q)
		soa := "example. 3600 IN SOA ns.example. x.example. 1 2 3 4 3600"
		switch q.Question[0].Name {
		case "none.example.":
			a.Rcode = dns.RcodeNameError
			a.Ns = oneRecord(t, soa)
		case "empty.example.":
			a.Ns = oneRecord(t, soa)
		case "soon.example.":
			a.Ns = oneRecord(t, "example. 7 IN SOA ns.example. x.example. 1 2 3 4 3600")
		case "there.example.":
			a.Answer = oneRecord(t, "there.example. 3600 IN A 192.0.2.1")
			a.Ns = oneRecord(t, "example. 3600 IN NS ns.example.")
		}
		out, err := a.Pack()
		if err != nil {
			return nil
		}
		return [][]byte{out}
	})
	ttls := func(m *dns.Msg) (out []uint32) {
		for _, rr := range append(m.Answer, m.Ns...) {
			out = append(out, rr.Header().Ttl)
		}
		return out
	}
	for _, tc := range []struct {
		name           string
		behind, before []uint32
	}{
		{"none.example.", []uint32{tableTTL}, []uint32{3600}},
		{"empty.example.", []uint32{tableTTL}, []uint32{3600}},
		{"soon.example.", []uint32{7}, []uint32{7}},
		{"there.example.", []uint32{3600, 3600}, []uint32{3600, 3600}},
	} {
		for _, behind := range []bool{true, false} {
			s := serve(t, Config{Upstreams: []netip.AddrPort{up.addr}, BehindResolved: behind, CacheBytes: -1})
			want := tc.before
			if behind {
				want = tc.behind
			}
			if got := ttls(exchange(t, s.addr, overUDP, question(tc.name, dns.TypeA))); !slices.Equal(got, want) {
				t.Errorf("%s, behind systemd-resolved %t: TTLs %v, want %v", tc.name, behind, got, want)
			}
		}
	}
}

func oneRecord(t *testing.T, text string) []dns.RR {
	rr, err := dns.NewRR(text)
	if err != nil {
		t.Error(err)
		return nil
	}
	return []dns.RR{rr}
}
