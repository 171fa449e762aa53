package dnsproxy

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// seeds are questions of many shapes.
func seeds(f *testing.F) {
	add := func(m *dns.Msg) {
		msg, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(msg)
	}
	for _, name := range []string{"webapp.istioinaction", "forum", "many.corp.internal", "x.wild.corp.internal", "98.97.96.10.in-addr.arpa", "www.example.com", ".", "localhost"} {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeSOA, dns.TypeANY, dns.TypePTR, dns.TypeAXFR, dns.TypeOPT} {
			add(question(name, qtype))
			add(question(name, qtype).SetEdns0(512, true))
		}
	}
	odd := question("forum", dns.TypeA).SetEdns0(4096, true)
	odd.IsEdns0().SetVersion(1)
	add(odd)
	odd = question("forum", dns.TypeA).SetEdns0(0, false)
	odd.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0102030405060708"}, &dns.EDNS0_LOCAL{Code: 65001, Data: []byte("abc")}}
	add(odd)
	for _, opcode := range []int{dns.OpcodeStatus, dns.OpcodeNotify, dns.OpcodeUpdate, 15} {
		odd = question("forum", dns.TypeA)
		odd.Opcode = opcode
		add(odd)
	}
	odd = question("forum", dns.TypeA)
	odd.Question = append(odd.Question, odd.Question[0])
	add(odd)
	odd = question("forum", dns.TypeA)
	odd.Question[0].Qclass = dns.ClassCHAOS
	add(odd)
	odd = question("forum", dns.TypeA)
	odd.Response = true
	add(odd)
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte{0xc0, 0x0c}, 20))
}

// FuzzMessages: whatever comes in, there is no panic; an answer parses, belongs to the question and keeps to the client's
// size; and the hot path and miekg/dns say the same.
func FuzzMessages(f *testing.F) {
	seeds(f)
	table := forum(f)
	none, err := NewTable(TableConfig{NoIPv6: true, Domain: "svc.cluster.local"}, nameTable(f, "testdata/nametable.json"))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, msg []byte) {
		for _, table := range []*Table{table, none, nil} {
			for via := range transports {
				checkMessage(t, table, msg, via)
			}
		}
	})
}

func checkMessage(t *testing.T, table *Table, msg []byte, via transport) {
	local, req, _, v := table.answerLocally(msg, via)
	if (v == verdictReply) != (local != nil) {
		t.Fatalf("verdict %v with answer %x", v, local)
	}
	var want *dns.Msg
	limit := minUDP
	if local != nil {
		if req != nil {
			limit = clientLimit(req, via)
		}
		want = checkAnswer(t, msg, local, max(limit, maxUDP))
	}
	if v == verdictForward {
		checkUpstreamQuery(t, msg)
	}
	var q query
	if table == nil || !q.parse(msg) || !q.answerable() {
		return
	}
	buf := make([]byte, max(len(msg), maxTCP))
	copy(buf, msg)
	limit = q.size
	if via == overTCP {
		limit = maxTCP
	}
	length := table.fast(buf, &q, limit, rotation())
	if length == 0 {
		if key := q.key[:q.n]; v == verdictReply && !isLocalhost(key) {
			if _, by := table.resolve(key); by != rulePTR {
				t.Fatalf("the hot path leaves what miekg/dns answers: %v", want)
			}
		}
		return
	}
	if want == nil {
		t.Fatalf("the hot path answers what miekg/dns does not: %x", buf[:length])
	}
	got := checkAnswer(t, msg, buf[:length], limit)
	if got.Truncated != want.Truncated {
		t.Fatalf("truncated: hot path %v, miekg/dns %v", got.Truncated, want.Truncated)
	}
	if want.Truncated {
		got.Answer, want.Answer = nil, nil // which of them, and how many, differ
	}
	if g, w := whole(got), whole(want); g != w {
		t.Fatalf("hot path\n%s\nmiekg/dns\n%s", g, w)
	}
}

// whole is a message as text, its answers in the order of their text.
func whole(m *dns.Msg) string {
	m = m.Copy()
	slices.SortFunc(m.Answer, func(a, b dns.RR) int { return strings.Compare(a.String(), b.String()) })
	return m.String()
}

// checkAnswer parses an answer and checks what holds for all of them.
func checkAnswer(t *testing.T, msg, answer []byte, limit int) *dns.Msg {
	m := new(dns.Msg)
	if err := m.Unpack(answer); err != nil {
		t.Fatalf("question %x\nanswer %x does not parse: %v", msg, answer, err)
	}
	if l, ok := walk(answer); !ok || l.end != len(answer) {
		t.Fatalf("question %x\nanswer %x has something after its records", msg, answer)
	}
	if len(answer) > limit {
		t.Fatalf("question %x\nanswer of %d octets, at most %d", msg, len(answer), limit)
	}
	if msg[2]&flagQR != 0 || answer[2]&flagQR == 0 || !bytes.Equal(msg[:2], answer[:2]) {
		t.Fatalf("question %x\nanswer %x is none to it", msg, answer)
	}
	return m
}

// checkUpstreamQuery: what goes upstream parses, and has the client's question.
func checkUpstreamQuery(t *testing.T, msg []byte) {
	q := newUpstreamQuery(msg)
	if l, ok := walk(q.msg); !ok || l.end != len(q.msg) {
		t.Fatalf("question %x goes upstream as %x", msg, q.msg)
	}
	end := skipName(msg, headerSize)
	if end == 0 || !bytes.Equal(msg[:end+4], q.msg[:end+4]) {
		t.Fatalf("question %x goes upstream as %x", msg, q.msg)
	}
}

// FuzzUpstreamAnswers: whatever an upstream sends, what a client gets parses as far as it did and keeps to its size.
func FuzzUpstreamAnswers(f *testing.F) {
	good := zone(f, example, "big.example.com. 300 IN TXT "+strings.Repeat(` "`+strings.Repeat("x", 250)+`"`, 9))
	for _, req := range []*dns.Msg{question("www.example.com", dns.TypeA), question("big.example.com", dns.TypeTXT).SetEdns0(4096, true), question("no.example.com", dns.TypeA)} {
		msg, err := req.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(msg, good(msg, overTCP)[0])
	}
	f.Fuzz(func(t *testing.T, asked, answer []byte) {
		_, req, _, v := (*Table)(nil).answerLocally(asked, overUDP)
		if v != verdictForward {
			return
		}
		sent := newUpstreamQuery(asked)
		if len(answer) < headerSize || !answers(answer, sent.msg, uint16(answer[0])<<8|uint16(answer[1])) {
			return
		}
		parses := new(dns.Msg).Unpack(answer) == nil
		for via := range transports {
			w := waiter{msg: asked, via: via, limit: clientLimit(req, via)}
			reply := fit(answer, w)
			if l, ok := walk(reply); !ok || l.end != len(reply) || len(reply) > w.limit || !bytes.Equal(reply[:2], asked[:2]) {
				t.Fatalf("question %x\nupstream %x\nreply %x (limit %d)", asked, answer, reply, w.limit)
			}
			if err := new(dns.Msg).Unpack(reply); err != nil && parses {
				t.Fatalf("question %x\nupstream %x\nreply %x: %v", asked, answer, reply, err)
			}
		}
	})
}

// FuzzResolvConf: no file makes a server or a search suffix that is none.
func FuzzResolvConf(f *testing.F) {
	f.Add("nameserver 10.0.0.1\nsearch a.example b\noptions timeout:1 attempts:2 rotate use-vc\n")
	f.Add("# comment\n;x\ndomain .\nnameserver fe80::1%eth0\r\n\toptions ndots:99999999999999999999")
	f.Fuzz(func(t *testing.T, text string) {
		c := parseResolvConf(text)
		for _, s := range c.servers {
			if !s.IsValid() {
				t.Errorf("server %v of %q", s, text)
			}
		}
		for _, key := range c.search {
			if got, err := keyOf(nameOf(key)); err != nil || !bytes.Equal(got, key) || len(key) == 0 {
				t.Errorf("search suffix %q of %q", key, text)
			}
		}
		if len(c.servers) > maxServers || c.attempts > maxAttempts || c.timeout.Seconds() > maxTimeout || c.attempts < 0 || c.timeout < 0 {
			t.Errorf("%q: over the limits: %+v", text, c)
		}
	})
}

// FuzzTableNames: a name is left out and that is told, or it answers under its host, its short forms and, if it is the only one, its address.
func FuzzTableNames(f *testing.F) {
	f.Add("webapp.istioinaction.svc.cluster.local", "webapp", "istioinaction", "alt.example", "svc.cluster.local")
	f.Add("*.wild.example", "", "", "", "")
	f.Add(strings.Repeat("x.", 127), "a..b", "\x00", "*", "ns.svc")
	f.Fuzz(func(t *testing.T, host, short, namespace, alt, domain string) {
		addr := netip.MustParseAddr("192.0.2.1")
		name := Name{Host: host, Addrs: []netip.Addr{addr}, Registry: kubernetesRegistry, ShortName: short, Namespace: namespace}
		if alt != "" {
			name.AltHosts = []string{alt}
		}
		table, err := NewTable(TableConfig{Namespace: namespace, Domain: domain}, []Name{name})
		if err != nil {
			return
		}
		if table.Len() == 0 {
			if left := table.LeftOut(""); len(left) != 1 && !name.isNobodys() {
				t.Errorf("%+v answers nothing, and left out is %v", name, left)
			}
			return
		}
		names := append([]string{host}, table.services[0].AltHosts...)
		if full, err := (&build{Table: table}).fullKey(table.services[0]); err == nil && full != nil {
			d := strings.TrimPrefix(strings.TrimSuffix(domain, "."), namespace+".")
			names = append(names, fmt.Sprintf("%s.%s", short, namespace), fmt.Sprintf("%s.%s.%s", short, namespace, d))
		}
		for _, n := range names {
			if rrs, found := table.Lookup(n, dns.TypeA); !found || len(rrs) != 1 {
				t.Errorf("%q of %+v: %v, %v", n, name, rrs, found)
			}
		}
		if again, err := table.Update(TableConfig{Namespace: namespace, Domain: domain}, nil); err != nil || len(describe(again)) != 3 {
			t.Errorf("%+v leaves %v behind, %v", name, describe(again), err)
		}
	})
}
