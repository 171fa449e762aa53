package dnsproxy

import (
	"encoding/hex"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

var update = flag.Bool("update", false, "rewrite the answers in testdata/conformance.txt; review the difference as code")

// TestConformance asks what testdata/conformance.txt asks and compares whole answers. The file explains itself.
func TestConformance(t *testing.T) {
	const file = "testdata/conformance.txt"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	head, body, _ := strings.Cut(string(text), "\n\n")
	var zoneLines []string
	search := ""
	for line := range strings.Lines(head) {
		if record, ok := strings.CutPrefix(line, "zone "); ok {
			zoneLines = append(zoneLines, record)
		}
		if list, ok := strings.CutPrefix(line, "search "); ok {
			search = list
		}
	}
	resolve := zone(t, zoneLines...)
	seen := make(chan string, 10)
	up := newUpstream(t, func(query []byte, via transport) [][]byte {
		seen <- via.String() + " " + asDig(query)
		return echoOptions(t, query, resolve(query, via))
	})
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(conf, []byte("search "+search), 0o644); err != nil {
		t.Fatal(err)
	}
	table, err := NewTable(TableConfig{Namespace: "forum-services", Domain: "svc.cluster.local", Version: "conformance"},
		slices.Concat(nameTable(t, "testdata/nametable.json"), nameTable(t, "testdata/conformance-names.json")))
	if err != nil {
		t.Fatal(err)
	}
	s := serve(t, Config{Upstreams: []netip.AddrPort{up.addr}, ResolvConf: conf, CacheBytes: -1}, table)
	s.unhurried()

	out := []string{head}
	rows := 0
	for block := range strings.SplitSeq(strings.TrimSpace(body), "\n\n") {
		lines := strings.Split(block, "\n")
		var kept []string // comments, source and question; the answer is made anew
		var query string
		for _, line := range lines {
			if strings.HasPrefix(line, "< ") || strings.HasPrefix(line, "^ ") {
				continue
			}
			kept = append(kept, line)
			if q, ok := strings.CutPrefix(line, "> "); ok {
				query = q
			}
		}
		if query == "" {
			out = append(out, block) // a heading
			continue
		}
		rows++
		via, msg, err := fromDig(query)
		if err != nil {
			t.Fatalf("%s: %v", query, err)
		}
		wait := patience
		if strings.Contains(block, "< no answer") {
			wait = 50 * time.Millisecond
		}
		answer := ask(t, s.addr, via, msg, wait)
		got := append(kept, describeAnswer(t, msg, answer)...)
		for more := true; more; {
			select {
			case line := <-seen:
				got = append(got, "^ "+line)
			default:
				more = false
			}
		}
		out = append(out, strings.Join(got, "\n"))
		if want := block; strings.Join(got, "\n") != want && !*update {
			t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), want)
		}
	}
	if *update {
		if err := os.WriteFile(file, []byte(strings.Join(out, "\n\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if rows < 150 {
		t.Errorf("%d rows, want at least 150", rows)
	}
}

// fromDig makes a query of a line as one would give it to dig: NAME TYPE [CLASS] [+tcp] [+norec] [+ad] [+cd] [+do] [+bufsize=N]
// [+edns=V] [+ednsflags=0xNNNN] [+ednsopt=CODE[:HEX]] [+opcode=N] [+z]; or "raw" and hexadecimal octets after the id.
func fromDig(line string) (transport, []byte, error) {
	const id = 0xabcd
	fields := strings.Fields(line)
	if fields[0] == "raw" || fields[0] == "rawtcp" {
		msg, err := hex.DecodeString(strings.Join(fields[1:], ""))
		via := overUDP
		if fields[0] == "rawtcp" {
			via = overTCP
		}
		return via, append([]byte{id >> 8, id & 0xff}, msg...), err
	}
	qtype, ok := dns.StringToType[fields[1]]
	if n, numeric := strings.CutPrefix(fields[1], "TYPE"); !ok && numeric {
		v, err := strconv.ParseUint(n, 10, 16)
		if err != nil {
			return 0, nil, err
		}
		qtype = uint16(v)
	}
	m := question(fields[0], qtype)
	m.Id = id
	via := overUDP
	edns := func() *dns.OPT {
		if m.IsEdns0() == nil {
			m.SetEdns0(1232, false)
		}
		return m.IsEdns0()
	}
	for _, field := range fields[2:] {
		key, value, _ := strings.Cut(field, "=")
		number := func(bits int) uint64 {
			n, err := strconv.ParseUint(value, 0, bits)
			if err != nil {
				panic(fmt.Sprintf("%s: %v", line, err))
			}
			return n
		}
		switch key {
		case "+tcp":
			via = overTCP
		case "+norec":
			m.RecursionDesired = false
		case "+ad":
			m.AuthenticatedData = true
		case "+cd":
			m.CheckingDisabled = true
		case "+z":
			m.Zero = true
		case "+aa":
			m.Authoritative = true
		case "+do":
			edns().SetDo()
		case "+bufsize":
			edns().SetUDPSize(uint16(number(16)))
		case "+edns":
			edns().SetVersion(uint8(number(8)))
		case "+ednsflags":
			edns().Hdr.Ttl |= uint32(number(16))
		case "+ednsopt":
			code, data, _ := strings.Cut(value, ":")
			n, err := strconv.ParseUint(code, 10, 16)
			if err != nil {
				return 0, nil, err
			}
			octets, err := hex.DecodeString(data)
			if err != nil {
				return 0, nil, err
			}
			edns().Option = append(edns().Option, &dns.EDNS0_LOCAL{Code: uint16(n), Data: octets})
		case "+opcode":
			m.Opcode = int(number(4))
		default:
			class, ok := dns.StringToClass[field]
			if !ok {
				return 0, nil, fmt.Errorf("%s: what is %q?", line, field)
			}
			m.Question[0].Qclass = class
		}
	}
	msg, err := m.Pack()
	return via, msg, err
}

// asDig is what an upstream saw, in the words of fromDig.
func asDig(msg []byte) string {
	m := new(dns.Msg)
	if err := m.Unpack(msg); err != nil || len(m.Question) != 1 {
		return fmt.Sprintf("raw %x", msg[2:])
	}
	q := m.Question[0]
	line := q.Name + " " + dns.Type(q.Qtype).String()
	if q.Qclass != dns.ClassINET {
		line += " " + dns.Class(q.Qclass).String()
	}
	for _, f := range []struct {
		on   bool
		text string
	}{{!m.RecursionDesired, " +norec"}, {m.AuthenticatedData, " +ad"}, {m.CheckingDisabled, " +cd"}} {
		if f.on {
			line += f.text
		}
	}
	if opt := m.IsEdns0(); opt != nil {
		line += fmt.Sprintf(" +bufsize=%d", opt.UDPSize())
		if opt.Do() {
			line += " +do"
		}
		for _, o := range opt.Option {
			line += fmt.Sprintf(" +ednsopt=%d", o.Option())
		}
	}
	return line
}

// echoOptions makes an upstream send back the options it knows not to be of the hop, to see that they pass.
func echoOptions(t testing.TB, query []byte, replies [][]byte) [][]byte {
	req, reply := new(dns.Msg), new(dns.Msg)
	if req.Unpack(query) != nil || req.IsEdns0() == nil || len(req.IsEdns0().Option) == 0 || reply.Unpack(replies[0]) != nil || reply.IsEdns0() == nil {
		return replies
	}
	reply.IsEdns0().Option = req.IsEdns0().Option
	msg, err := reply.Pack()
	if err != nil {
		t.Error(err)
		return replies
	}
	return [][]byte{msg}
}

// describeAnswer is the whole of an answer, line by line. Records of a section are sorted: their order is another matter.
func describeAnswer(t testing.TB, query, answer []byte) []string {
	t.Helper()
	if answer == nil {
		return []string{"< no answer"}
	}
	if len(answer) == headerSize {
		m := new(dns.Msg)
		if err := m.Unpack(answer); err != nil {
			t.Error(err)
		}
		return []string{"< " + headerLine(m) + " (header alone)"}
	}
	m := new(dns.Msg)
	if err := m.Unpack(answer); err != nil {
		t.Errorf("answer %x: %v", answer, err)
		return nil
	}
	if m.Id != 0xabcd {
		t.Errorf("answer to %x has id %#x", query, m.Id)
	}
	lines := []string{"< " + headerLine(m)}
	if q := skipName(query, headerSize); len(m.Question) != 1 || string(query[headerSize:q+4]) != string(answer[headerSize:min(len(answer), q+4)]) {
		lines = append(lines, fmt.Sprintf("< QUESTION %v", m.Question))
	}
	for _, section := range []struct {
		name string
		rrs  []dns.RR
	}{{"ANSWER", m.Answer}, {"AUTHORITY", m.Ns}, {"ADDITIONAL", m.Extra}} {
		var records []string
		for _, rr := range section.rrs {
			if rr.Header().Rrtype != dns.TypeOPT {
				records = append(records, "< "+section.name+" "+strings.Join(strings.Fields(rr.String()), " "))
			}
		}
		if m.Truncated && len(records) > 1 {
			records = []string{fmt.Sprintf("< %s %d of type %s", section.name, len(records), dns.Type(section.rrs[0].Header().Rrtype))}
		}
		slices.Sort(records)
		lines = append(lines, records...)
	}
	return lines
}

// headerLine is the code, the flags and the OPT of a message.
func headerLine(m *dns.Msg) string {
	line := dns.RcodeToString[m.Rcode]
	if m.Rcode == dns.RcodeBadVers {
		line = "BADVERS" // miekg/dns has BADSIG for the number
	}
	if m.Opcode != dns.OpcodeQuery {
		line += fmt.Sprintf(" opcode %d", m.Opcode)
	}
	for _, f := range []struct {
		on   bool
		name string
	}{{m.Response, "qr"}, {m.Authoritative, "aa"}, {m.Truncated, "tc"}, {m.RecursionDesired, "rd"}, {m.RecursionAvailable, "ra"}, {m.Zero, "z"}, {m.AuthenticatedData, "ad"}, {m.CheckingDisabled, "cd"}} {
		if f.on {
			line += " " + f.name
		}
	}
	opt := m.IsEdns0()
	if opt == nil {
		return line
	}
	line += fmt.Sprintf("; EDNS %d, %d octets", opt.Version(), opt.UDPSize())
	if opt.Do() {
		line += ", do"
	}
	if z := opt.Hdr.Ttl & 0x7fff; z != 0 {
		line += fmt.Sprintf(", flags %#x", z)
	}
	for _, o := range opt.Option {
		line += fmt.Sprintf(", option %d", o.Option())
		if ede, ok := o.(*dns.EDNS0_EDE); ok {
			line += fmt.Sprintf(" (error %d %q)", ede.InfoCode, ede.ExtraText)
		}
	}
	return line
}

// TestAnswersAreCompressed: what miekg/dns packs is no longer than what the hot path writes (RFC 1035 section 4.1.4).
func TestAnswersAreCompressed(t *testing.T) {
	table := forum(t)
	for _, qclass := range []uint16{dns.ClassINET, dns.ClassANY} { // the hot path leaves class ANY
		for _, qtype := range []uint16{dns.TypeA, dns.TypeTXT} {
			req := question("webapp.istioinaction", qtype)
			req.Question[0].Qclass = qclass
			msg, err := req.Pack()
			if err != nil {
				t.Fatal(err)
			}
			want := len(msg) + aSize
			if qtype == dns.TypeTXT {
				want = len(msg) + len(negativeSOA)
			}
			if reply, _, _, _ := table.answerLocally(msg, overUDP); len(reply) != want {
				t.Errorf("type %v, class %v: %d octets, want %d: %x", dns.Type(qtype), dns.Class(qclass), len(reply), want, reply)
			}
		}
	}
}
