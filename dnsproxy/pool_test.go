package dnsproxy

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// TestPickAStream: one does, unless answers come in turn and slowly.
func TestPickAStream(t *testing.T) {
	t.Parallel()
	const slow, late = 20 * time.Millisecond, 100 * time.Millisecond
	now := time.Now()
	type stream struct {
		pending, answered int
		waited            time.Duration
		retired           bool
	}
	idle, busy, waiting, hung := stream{0, 1, time.Second, false}, stream{3, 1, 10 * time.Millisecond, false}, stream{2, 1, 50 * time.Millisecond, false}, stream{1, 1, time.Second, false}
	connecting := stream{5, 0, 50 * time.Millisecond, false}
	many := slices.Repeat([]stream{waiting}, maxStreams)
	for _, tt := range []struct {
		name        string
		open        []stream
		mixes       bool
		most        int
		want        int // place of the stream; 0: none
		wantAnother bool
		alone       bool
	}{
		{"the first question opens one", nil, false, 0, 0, true, false},
		{"an idle one is used, the oldest first", []stream{idle, idle}, false, 0, 1, false, false},
		{"an idle one before a busy one", []stream{busy, idle}, false, 0, 2, false, false},
		{"one that answers soon gets more", []stream{busy}, false, 0, 1, false, false},
		{"one that answers slowly gets company", []stream{waiting}, false, 0, 0, true, false},
		{"unless it answers in any order", []stream{waiting}, true, 0, 1, false, false},
		{"one that is being made is waited for", []stream{connecting}, false, 0, 1, false, false},
		{"one that hangs gets company, whatever it did before", []stream{hung}, true, 0, 0, true, false},
		{"one that hangs is passed over", []stream{hung, waiting}, true, 0, 2, false, false},
		{"no more than some", many, false, 0, 1, false, false},
		{"those that hang do not count", append(slices.Repeat([]stream{hung}, maxStreams), many[1:]...), false, 0, 0, true, false},
		{"but there are not too many of them", slices.Repeat([]stream{hung}, maxHung), false, 0, 1, false, false},
		{"one that answers soon gets no question that wants to be alone", []stream{busy}, false, 0, 0, true, true},
		{"an idle one is alone", []stream{busy, idle}, false, 0, 2, false, true},
		{"a retired one is not used", []stream{{0, 1, 0, true}}, false, 0, 0, true, false},
		{"one that has had its share is not used", []stream{idle}, false, 1, 0, true, false},
		{"there may be many short ones", slices.Repeat([]stream{busy}, maxStreams), false, 1, 0, true, false},
		{"but not too many", slices.Repeat([]stream{busy}, maxShort), false, 1, 0, false, false},
	} {
		p := &pool{mixes: tt.mixes, most: tt.most}
		for _, o := range tt.open {
			s := &upStream{server: &server{streams: pool{most: tt.most}}, pending: map[uint16]*attempt{}, answered: o.answered, used: o.answered + o.pending, retired: o.retired, moved: now.Add(-o.waited)}
			for id := range o.pending {
				s.pending[uint16(id)] = &attempt{}
			}
			p.open = append(p.open, s)
		}
		best, more := p.pick(now, slow, late, tt.alone)
		if got := slices.Index(p.open, best) + 1; got != tt.want || more != tt.wantAnother {
			t.Errorf("%s: got stream %d, another %t; want %d, %t", tt.name, got, more, tt.want, tt.wantAnother)
		}
	}
}

// TestRealStreams: many questions at once, and one after the other, to servers as they are.
func TestRealStreams(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(*testing.T) *resolver{"unbound": unbound, "dnsmasq": dnsmasq} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := start(t)
			r.start(t)
			s := serve(t, Config{Upstreams: []netip.AddrPort{r.addr}, ResolvConf: overStreams(t), CacheBytes: -1, ForwardTimeout: patience})
			askAll(t, s, 1000)
			for i := range 250 {
				if got := exchange(t, s.addr, overUDP, question(fmt.Sprintf("s%d.example.com", i), dns.TypeA)); len(got.Answer) != 1 {
					t.Errorf("question %d: %s", i, brief(got))
				}
			}
			if n := failures(s); n > 0 {
				t.Errorf("the server is blamed %d times", n)
			}
			s.forward.mu.Lock()
			p := &s.forward.routes[0].servers[0].streams
			t.Logf("%d streams open at the end, %d questions each at most, answers in any order: %t", len(p.open), p.most, p.mixes)
			s.forward.mu.Unlock()
		})
	}
}

// FuzzStream: whatever a server sends on a stream, in whatever pieces, no question is answered by what is no answer to it.
func FuzzStream(f *testing.F) {
	query, err := question("www.example.com", dns.TypeA).SetEdns0(1232, false).Pack()
	if err != nil {
		f.Fatal(err)
	}
	frame := func(msgs ...[]byte) (out []byte) {
		for _, msg := range msgs {
			out = append(binary.BigEndian.AppendUint16(out, uint16(len(msg))), msg...)
		}
		return out
	}
	answer := anyName(query, &dns.EDNS0_LOCAL{Code: dns.EDNS0TCPKEEPALIVE, Data: []byte{0, 100}})
	binary.BigEndian.PutUint16(answer, 7)
	f.Add(frame(answer), uint8(3))
	f.Add(frame(errorReply(answer, dns.RcodeFormatError), answer), uint8(200))
	f.Add(frame(answer[:20]), uint8(1))
	f.Add([]byte("\x00\x00\xff\xff"), uint8(0))
	f.Fuzz(func(t *testing.T, in []byte, piece uint8) {
		s, err := New(Config{UDP: nil, TCP: []*net.TCPListener{nil}})
		if err != nil {
			t.Fatal(err)
		}
		fw := s.forward
		up := newServer(fw, netip.MustParseAddrPort("192.0.2.53:53"))
		up.streams.ended = true // what is lost is not asked again
		stream := &upStream{f: fw, server: up, fd: -1, pending: map[uint16]*attempt{}, timer: time.NewTimer(time.Hour), moved: time.Now(), keep: streamIdle}
		fl := &flight{key: "x", query: query, route: fw.routes[0], order: []*server{up}, sends: 3, deadline: time.Now().Add(time.Hour)}
		fw.mu.Lock()
		defer fw.mu.Unlock()
		fw.epoll = -1
		a := fl.attemptLocked(up)
		a.overTCP, a.id = true, 7
		stream.putLocked(a)
		var framed [2]byte
		if binary.BigEndian.PutUint16(framed[:], uint16(len(query)+4)); !bytes.HasPrefix(stream.out, framed[:]) || new(dns.Msg).Unpack(stream.out[2:]) != nil {
			t.Fatalf("query on the stream: %x", stream.out)
		}
		for len(in) > 0 && !stream.closed {
			n := min(len(in), 1+int(piece))
			stream.takeLocked(in[:n])
			in = in[n:]
		}
		if fl.done && fl.fallback != nil && !answers(fl.fallback, query, 7) {
			t.Errorf("%x passed for an answer", fl.fallback)
		}
		if len(stream.in) > 2+maxTCP {
			t.Errorf("%d octets are kept for an answer", len(stream.in))
		}
	})
}
