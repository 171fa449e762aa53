package dnsproxy

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"wingman/test/freeport"
)

const second = instant(time.Second)

// replyTo makes an upstream's answer of records in zone file format; those after "--" are authority.
func replyTo(t testing.TB, req *dns.Msg, rcode int, records ...string) []byte {
	t.Helper()
	m := new(dns.Msg).SetRcode(req, rcode)
	m.RecursionAvailable = true
	m.Compress = true
	section := &m.Answer
	for _, text := range records {
		if text == "--" {
			section = &m.Ns
			continue
		}
		rr, err := dns.NewRR(text)
		if err != nil {
			t.Fatal(err)
		}
		*section = append(*section, rr)
	}
	msg, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return msg
}

// cacheKeyOf is the key under which the answer to req is kept.
func cacheKeyOf(t testing.TB, req *dns.Msg) string {
	t.Helper()
	msg, err := req.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return newUpstreamQuery(msg).cacheKey
}

func TestCacheLives(t *testing.T) {
	const soa = "example.com. 600 IN SOA ns.example.com. root.example.com. 1 2 3 4 "
	tests := []struct {
		name    string
		rcode   int
		records []string
		fresh   time.Duration // 0: not kept
	}{
		{"an address lives for its TTL", 0, []string{"a.example.com. 60 IN A 1.1.1.1"}, time.Minute},
		{"the shortest TTL counts", 0, []string{"a.example.com. 60 IN CNAME b.example.com.", "b.example.com. 10 IN A 1.1.1.1"}, 10 * time.Second},
		{"no life is longer than an hour", 0, []string{"a.example.com. 86400 IN A 1.1.1.1"}, time.Hour},
		{"a TTL of zero is for this client alone", 0, []string{"a.example.com. 0 IN A 1.1.1.1"}, 0},
		{"a TTL with its first bit set is zero (RFC 2181 section 8)", 0, []string{"a.example.com. 2147483648 IN A 1.1.1.1"}, 0},
		{"no such name: the SOA's minimum", dns.RcodeNameError, []string{"--", soa + "30"}, 30 * time.Second},
		{"no such data: the SOA's TTL if that is less", 0, []string{"--", soa + "6000"}, 5 * time.Minute},
		{"no such name without a SOA", dns.RcodeNameError, nil, 0},
		{"a referral is no answer", 0, []string{"--", "example.com. 60 IN NS ns.example.com."}, 0},
		{"a failure", dns.RcodeServerFailure, []string{"a.example.com. 60 IN A 1.1.1.1"}, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			req := question("a.example.com", dns.TypeA)
			c := newCache(1<<20, time.Hour)
			key := cacheKeyOf(t, req)
			const start = 1000 * second
			c.put(key, replyTo(t, req, tt.rcode, tt.records...), start)
			e, fresh := c.get([]byte(key), start)
			if tt.fresh == 0 {
				if e != nil {
					t.Errorf("kept until %v, want not at all", time.Duration(e.expires-start))
				}
				return
			}
			if !fresh {
				t.Fatal("not kept")
			}
			if got := time.Duration(e.expires - start); got != tt.fresh {
				t.Errorf("fresh for %v, want %v", got, tt.fresh)
			}
			if e, fresh := c.get([]byte(key), e.expires); e == nil || fresh {
				t.Error("past its time: want stale")
			}
			if e, _ := c.get([]byte(key), e.expires+3600*second); e != nil {
				t.Error("past the limit of staleness: want gone")
			}
		})
	}
}

// TestCachedAnswersAreWhole compares what the hot path writes with what miekg/dns reads in the original.
func TestCachedAnswersAreWhole(t *testing.T) {
	records := []string{"a.example.com. 60 IN CNAME b.example.com.", "b.example.com. 50 IN A 1.1.1.1", "b.example.com. 50 IN A 1.1.1.2", "b.example.com. 50 IN A 1.1.1.3",
		"--", "example.com. 600 IN NS ns.example.com."}
	req := question("A.example.com", dns.TypeA).SetEdns0(1232, true)
	answer := replyTo(t, question("a.example.com", dns.TypeA), 0, records...)
	answer[3] |= flagAD
	e := newCached(cacheKeyOf(t, req), answer, 0)
	if e == nil {
		t.Fatal("not kept")
	}
	msg, err := req.Pack()
	if err != nil {
		t.Fatal(err)
	}
	firsts := map[string]bool{}
	for rotate := range uint32(3) {
		var q query
		buf := make([]byte, 1232)
		copy(buf, msg)
		if !q.parse(msg) {
			t.Fatal("question not parsed")
		}
		length := e.write(buf, &q, 20*second, q.size, rotate)
		got := new(dns.Msg)
		if err := got.Unpack(buf[:length]); err != nil {
			t.Fatal(err)
		}
		firsts[dns.Field(got.Answer[1], 1)] = true
		want := "NOERROR ra,ad [A.example.com. 40 IN CNAME b.example.com.; b.example.com. 30 IN A 1.1.1.1; b.example.com. 30 IN A 1.1.1.2; b.example.com. 30 IN A 1.1.1.3] NS OPT"
		if brief(got) != want || got.Id != req.Id || !got.IsEdns0().Do() {
			t.Errorf("got  %s\nwant %s", brief(got), want)
		}
		if got.Answer[0].Header().Rrtype != dns.TypeCNAME {
			t.Errorf("the CNAME is not first: %v", got.Answer)
		}
		if whole := e.message(msg, 20*second); len(whole) != length-optSize {
			t.Errorf("message of %d octets, written %d with OPT", len(whole), length)
		}
	}
	if len(firsts) != 3 {
		t.Errorf("addresses that came first: %v, want all three", firsts)
	}
}

func TestCacheKeepsToItsSize(t *testing.T) {
	const limit = 20_000
	c := newCache(limit, time.Hour)
	popular := question("popular.example.com", dns.TypeA)
	c.put(cacheKeyOf(t, popular), replyTo(t, popular, 0, "popular.example.com. 60 IN A 1.1.1.1"), 0)
	for i := range 1000 {
		if e, _ := c.get([]byte(cacheKeyOf(t, popular)), 0); e == nil {
			t.Fatalf("the answer that is asked for all the time was evicted by the %dth other", i)
		}
		req := question(fmt.Sprintf("%d.example.com", i), dns.TypeA)
		c.put(cacheKeyOf(t, req), replyTo(t, req, 0, req.Question[0].Name+" 60 IN A 1.1.1.1"), 0)
		sum := 0
		for _, e := range c.entries {
			sum += e.size()
		}
		if _, bytes := c.usage(); bytes > limit || bytes != sum {
			t.Fatalf("after %d answers: %d bytes by the books, %d by count, at most %d", i, bytes, sum, limit)
		}
	}
	var listed int
	for e := c.oldest; e != nil; e = e.newer {
		listed++
	}
	if entries, _ := c.usage(); listed != entries || entries < 10 {
		t.Errorf("%d answers in the map, %d in the list", entries, listed)
	}
	c.flush()
	if entries, bytes := c.usage(); entries != 0 || bytes != 0 {
		t.Errorf("after a flush: %d answers, %d bytes", entries, bytes)
	}
}

func TestCacheIsAskedFirst(t *testing.T) {
	up := newUpstream(t, zone(t, example, "x.other.example. 60 IN A 1.1.1.1"))
	s := serve(t, Config{Upstreams: []netip.AddrPort{up.addr}})
	s.unhurried()
	ask := func(change func(*dns.Msg)) string {
		req := question("www.example.com", dns.TypeA)
		if change != nil {
			change(req)
		}
		exchange(t, s.addr, overUDP, req)
		return strings.Join(up.questions(), "; ")
	}
	once := "udp www.example.com. A"
	for _, change := range []func(*dns.Msg){nil, nil,
		func(m *dns.Msg) { m.Question[0].Name = "WWW.example.COM." },
		func(m *dns.Msg) { m.SetEdns0(4096, false) },
	} {
		if got := ask(change); got != once {
			t.Errorf("upstream was asked %s, want once", got)
		}
	}
	if got := exchange(t, s.addr, overTCP, question("www.example.com", dns.TypeA)); len(got.Answer) != 1 || len(up.questions()) != 1 {
		t.Errorf("over TCP: %v, upstream asked %q", got, up.questions())
	}
	// questions whose answer may differ
	for i, change := range []func(*dns.Msg){
		func(m *dns.Msg) { m.SetEdns0(4096, true) },
		func(m *dns.Msg) { m.CheckingDisabled = true },
		func(m *dns.Msg) { m.AuthenticatedData = true },
		func(m *dns.Msg) { m.RecursionDesired = false },
		func(m *dns.Msg) { m.RecursionDesired = false },
		func(m *dns.Msg) {
			m.SetEdns0(4096, false).IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 1, SourceNetmask: 24, Address: []byte{1, 2, 3, 0}}}
		},
	} {
		ask(change)
		if got := len(up.questions()); got != i+2 {
			t.Errorf("change %d: upstream was asked %d times, want %d", i, got, i+2)
		}
	}
	if got := s.Stats().BySource["cache"]; got != 4 {
		t.Errorf("%d answers counted as from the cache, want 4", got)
	}
}

// TestStaleAnswers is RFC 8767: what was true once beats no answer, in time for the client, and says so.
func TestStaleAnswers(t *testing.T) {
	const stale = "NOERROR ra [www.example.com. 30 IN A 192.0.2.1] OPT EDE3"
	req := question("www.example.com", dns.TypeA).SetEdns0(1232, false)
	old := replyTo(t, question("www.example.com", dns.TypeA), 0, "www.example.com. 60 IN A 192.0.2.1")
	tests := []struct {
		name   string
		answer func([]byte, transport) [][]byte
		want   string
	}{
		{"no upstream answers", silent, stale},
		{"upstream fails", func(q []byte, _ transport) [][]byte { return [][]byte{errorReply(q, dns.RcodeServerFailure)} }, stale},
		{"upstream answers: the new one counts", zone(t, example), "NOERROR ra [www.example.com. 300 IN A 192.0.2.80] OPT"},
		{"upstream says the name is gone: it is", zone(t), "NXDOMAIN ra [] OPT"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			up := newUpstream(t, tt.answer)
			s := serve(t, Config{Upstreams: []netip.AddrPort{up.addr}})
			req := req.Copy() // packing changes it
			s.cache.put(cacheKeyOf(t, req), old, now()-100*second)
			began := time.Now()
			if got := brief(exchange(t, s.addr, overUDP, req)); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
			if took := time.Since(began); took > 4*time.Second {
				t.Errorf("took %v: want it long before the client gives up", took)
			}
		})
	}
	t.Run("after a failure at once, until upstream answers again", func(t *testing.T) {
		t.Parallel()
		up := newUpstream(t, silent)
		s := serve(t, Config{Upstreams: []netip.AddrPort{up.addr}})
		s.forward.mu.Lock()
		s.forward.routes[0].servers[0].srtt = maxPatience // too few of its answers are late to call it down
		s.forward.mu.Unlock()
		req := req.Copy()
		s.cache.put(cacheKeyOf(t, req), old, now()-100*second)
		exchange(t, s.addr, overUDP, req)
		waitFor(t, func() bool { // the first flight has ended, the next question makes one
			s.forward.mu.Lock()
			defer s.forward.mu.Unlock()
			s.forward.routes[0].servers[0].fails = 0
			return len(s.forward.flights) == 0
		})
		began := time.Now()
		if got := brief(exchange(t, s.addr, overUDP, req.Copy())); got != stale {
			t.Errorf("got %s, want %s", got, stale)
		}
		if took := time.Since(began); took > staleAfter/2 {
			t.Errorf("took %v: want it at once", took)
		}
		up.set(zone(t, example))
		waitFor(t, func() bool {
			return brief(exchange(t, s.addr, overUDP, req.Copy())) == "NOERROR ra [www.example.com. 300 IN A 192.0.2.80] OPT"
		})
	})
	t.Run("not beyond the limit", func(t *testing.T) {
		s := serve(t, Config{Upstreams: []netip.AddrPort{freeport.Addr()}, MaxStale: time.Minute})
		s.cache.put(cacheKeyOf(t, req), old, now()-1000*second)
		if got := brief(exchange(t, s.addr, overUDP, req)); got != "SERVFAIL ra [] OPT EDE22" {
			t.Errorf("got %s, want SERVFAIL", got)
		}
	})
}

func TestPopularAnswersAreAskedForBeforeTheyEnd(t *testing.T) {
	up := newUpstream(t, zone(t, example))
	s := serve(t, Config{Upstreams: []netip.AddrPort{up.addr}})
	s.unhurried()
	req := question("www.example.com", dns.TypeA)
	// of 60 s, 58 have passed
	s.cache.put(cacheKeyOf(t, req), replyTo(t, req, 0, "www.example.com. 60 IN A 192.0.2.1"), now()-58*second)
	for range prefetchHits {
		if got := exchange(t, s.addr, overUDP, req); dns.Field(got.Answer[0], 1) != "192.0.2.1" {
			t.Errorf("got %v, want the answer that still lives", got.Answer)
		}
	}
	waitFor(t, func() bool {
		e, _ := s.cache.get([]byte(cacheKeyOf(t, req)), now())
		return e.expires > now()+200*second
	})
	if asked := up.questions(); !slices.Equal(asked, []string{"udp www.example.com. A"}) {
		t.Errorf("upstream was asked %q, want once", asked)
	}
	if got := exchange(t, s.addr, overUDP, req); dns.Field(got.Answer[0], 1) != "192.0.2.80" {
		t.Errorf("got %v, want the new answer", got.Answer)
	}
}

// TestCachedAnswersDoNotHideTheMesh: the table may change while an answer lives.
func TestCachedAnswersDoNotHideTheMesh(t *testing.T) {
	const soa = "corp.example. 600 IN SOA ns. root. 1 2 3 4 300"
	const name = "98.97.96.10.in-addr.arpa."
	const completed = "auto.corp.internal.svc.cluster.local."
	up := newUpstream(t, func(query []byte, _ transport) [][]byte {
		req := new(dns.Msg)
		if err := req.Unpack(query); err != nil {
			t.Error(err)
		}
		switch req.Question[0].Name {
		case name:
			return [][]byte{replyTo(t, req, 0, name+" 300 IN PTR host.corp.example.")}
		case completed:
			return [][]byte{replyTo(t, req, 0, completed+" 300 IN A 192.0.2.1")}
		}
		return [][]byte{replyTo(t, req, dns.RcodeNameError, "--", soa)}
	})
	s := serve(t, Config{Upstreams: []netip.AddrPort{up.addr}})
	s.unhurried()
	s.forward.mu.Lock()
	s.forward.conf.search = searchKeys([]string{"svc.cluster.local", "corp.example"})
	s.forward.mu.Unlock()
	const denied = "NXDOMAIN ra [] SOA"
	names := []struct {
		name          string
		qtype         uint16
		without, with string
	}{
		{"forum", dns.TypeA, denied, "NOERROR aa,ra [forum. 30 IN A 10.96.72.87]"},
		{"forum.corp.example", dns.TypeA, denied, "NOERROR aa,ra [forum. 30 IN A 10.96.72.87; forum.corp.example. 30 IN CNAME forum.]"},
		{"istioinaction.svc.cluster.local", dns.TypeA, denied, "NOERROR ra [] SOA"},
		{name, dns.TypePTR, "NOERROR ra [" + name + " 300 IN PTR host.corp.example.]", "NOERROR aa,ra [" + name + " 30 IN PTR webapp.istioinaction.svc.cluster.local.]"},
		{completed, dns.TypeA, "NOERROR ra [" + completed + " 300 IN A 192.0.2.1]", "NOERROR aa,ra [auto.corp.internal. 30 IN A 240.240.0.1; " + completed + " 30 IN CNAME auto.corp.internal.]"},
	}
	ask := func() (got []string) {
		for _, n := range names {
			got = append(got, brief(exchange(t, s.addr, overUDP, question(n.name, n.qtype))))
		}
		return got
	}
	var without, with []string
	for _, n := range names {
		without, with = append(without, n.without), append(with, n.with)
	}
	for i, step := range []struct {
		table *Table
		want  []string
	}{{nil, without}, {forum(t), with}, {forum(t), with}, {nil, without}} {
		s.Replace(step.table)
		if diff := cmp.Diff(step.want, ask()); diff != "" {
			t.Errorf("step %d (-want +got)\n%s", i, diff)
		}
	}
	if asked := up.questions(); len(asked) != len(names) {
		t.Errorf("upstream was asked %q, want each name once", asked)
	}
}

// FuzzCache: what was kept of an upstream's answer is written as an answer that parses, within the limit, with the records
// that the original had.
func FuzzCache(f *testing.F) {
	req := question("a.example.com", dns.TypeA).SetEdns0(1232, false)
	msg, err := req.Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(msg, replyTo(f, req, 0, "a.example.com. 60 IN CNAME b.example.com.", "b.example.com. 50 IN A 1.1.1.1", "b.example.com. 50 IN A 1.1.1.2"), uint32(1), int64(20))
	f.Add(msg, replyTo(f, req, dns.RcodeNameError, "--", "example.com. 600 IN SOA ns. root. 1 2 3 4 300"), uint32(0), int64(1000))
	f.Fuzz(func(t *testing.T, asked, answer []byte, rotate uint32, age int64) {
		var q query
		if !q.parse(asked) || len(answer) < headerSize || !answers(answer, asked, binary.BigEndian.Uint16(answer)) {
			return
		}
		e := newCached("", answer, 0)
		original := new(dns.Msg)
		if e == nil || original.Unpack(answer) != nil {
			return
		}
		buf := make([]byte, maxTCP)
		copy(buf, asked)
		length := e.write(buf, &q, instant(age), q.size, rotate)
		if length == 0 {
			return
		}
		got := checkAnswer(t, asked, buf[:length], q.size)
		if len(got.Answer) != len(original.Answer) || len(got.Ns) != len(original.Ns) || got.Rcode != original.Rcode&0xf {
			t.Errorf("kept of\n%v\nwritten as\n%v", original, got)
		}
		for _, rr := range got.Answer {
			if !slices.ContainsFunc(original.Answer, func(o dns.RR) bool { return dns.IsDuplicate(rr, o) || rr.String() == o.String() }) {
				t.Errorf("%v is not in\n%v", rr, original)
			}
		}
	})
}
