package dnsproxy

import (
	"bytes"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"wingman/test/freeport"
)

// TestBadUpstreams: whatever they do, the client gets a right answer if one upstream has it, and an error in time if none has.
func TestBadUpstreams(t *testing.T) {
	good := zone(t, example, "big.example.com. 300 IN TXT "+strings.Repeat(` "`+strings.Repeat("x", 250)+`"`, 20))
	// patch answers as good does, changed by f
	patch := func(f func(msg []byte) []byte) func([]byte, transport) [][]byte {
		return func(query []byte, via transport) [][]byte { return [][]byte{f(good(query, via)[0])} }
	}
	always := func(rcode byte) func([]byte, transport) [][]byte {
		return patch(func(msg []byte) []byte { msg[3] |= rcode; return msg })
	}
	overUDPOnly := func(query []byte, via transport) [][]byte {
		if via == overTCP {
			return nil
		}
		return good(query, via)
	}
	// a lie has another id, and an address that nobody should see
	lieOf := func(msg []byte) []byte {
		lie := bytes.Replace(msg, []byte{192, 0, 2, 80}, []byte{192, 0, 2, 66}, 1)
		lie[1] ^= 0xff
		return lie
	}
	lie := patch(lieOf)
	lieFirst := func(query []byte, via transport) [][]byte {
		truth := good(query, via)[0]
		return [][]byte{lieOf(truth), []byte("x"), truth}
	}
	another := patch(func(msg []byte) []byte { msg[14] = 'x'; return msg })
	garbage := patch(func(msg []byte) []byte { return append(msg[:2:2], bytes.Repeat([]byte{0xff}, 40)...) })
	cutShort := patch(func(msg []byte) []byte { return msg[:len(msg)-5] })
	noQuestion := patch(func(msg []byte) []byte { return errorReply(msg, dns.RcodeServerFailure) })

	badVersion := func(query []byte, via transport) [][]byte {
		l, _ := walk(query)
		reply := errorReply(query, dns.RcodeSuccess)
		if l.opt == 0 {
			return good(query, via)
		}
		opt := slices.Clone(query[l.opt : l.opt+optSize])
		opt[5], opt[9], opt[10] = 1, 0, 0
		reply[11] = 1
		return [][]byte{append(reply, opt...)}
	}

	const answer = "NOERROR ra [www.example.com. 300 IN A 192.0.2.80]"
	type server = func([]byte, transport) [][]byte
	tests := []struct {
		name      string
		upstreams []server
		want      string
	}{
		{"one that hangs before one that answers", []server{silent, good}, answer},
		{"all hang", []server{silent, silent}, "SERVFAIL ra [] OPT EDE22"},
		{"one lies about ids", []server{lie, good}, answer},
		{"one lies about the id before it tells the truth", []server{lieFirst}, answer},
		{"one answers another question", []server{another, good}, answer},
		{"all answer another question", []server{another}, "SERVFAIL ra [] OPT EDE22"},
		{"one answers garbage", []server{garbage, good}, answer},
		{"one cuts its answers short", []server{cutShort, good}, answer},
		{"one fails", []server{always(dns.RcodeServerFailure), good}, answer},
		{"one refuses", []server{always(dns.RcodeRefused), good}, answer},
		{"one implements nothing", []server{always(dns.RcodeNotImplemented), good}, answer},
		{"one fails without repeating the question", []server{noQuestion, good}, answer},
		{"one wants another version of EDNS", []server{badVersion, good}, answer},
		{"all want another version of EDNS", []server{badVersion, badVersion}, "SERVFAIL ra [] OPT"},
		{"all refuse: the client hears so", []server{always(dns.RcodeRefused), always(dns.RcodeRefused)}, "REFUSED ra [" + answer[12:] + " OPT"},
		{"all fail without repeating the question", []server{noQuestion}, "SERVFAIL ra [] OPT"},
		{"no such name is an answer: nobody else is asked", []server{zone(t), good}, "NXDOMAIN ra []"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var addrs []netip.AddrPort
			for _, answer := range tt.upstreams {
				addrs = append(addrs, newUpstream(t, answer).addr)
			}
			s := serve(t, Config{Upstreams: addrs, ForwardTimeout: time.Second})
			for via := range transports {
				req := question("www.example.com", dns.TypeA)
				req.SetEdns0(1232, false)
				got := brief(exchange(t, s.addr, via, req))
				if strings.TrimSuffix(got, " OPT") != strings.TrimSuffix(tt.want, " OPT") {
					t.Errorf("over %v\n got %s\nwant %s", via, got, tt.want)
				}
			}
		})
	}
	t.Run("a truncated answer is fetched by TCP and fits the client", func(t *testing.T) {
		up := newUpstream(t, good)
		s := serve(t, Config{Upstreams: []netip.AddrPort{up.addr}})
		req := question("big.example.com", dns.TypeTXT)
		if got := exchange(t, s.addr, overTCP, req); got.Truncated || len(got.Answer) != 1 || len(got.Answer[0].(*dns.TXT).Txt) != 20 {
			t.Errorf("over TCP: got %s, want the whole record", brief(got))
		}
		if got := exchange(t, s.addr, overUDP, req); !got.Truncated || len(got.Answer) != 0 {
			t.Errorf("over UDP: got %s, want TC and no answer", brief(got))
		}
	})
	t.Run("an answer that cannot be fetched by TCP is passed on truncated", func(t *testing.T) {
		up := newUpstream(t, overUDPOnly)
		s := serve(t, Config{Upstreams: []netip.AddrPort{up.addr}, ForwardTimeout: time.Second})
		if got := brief(exchange(t, s.addr, overUDP, question("big.example.com", dns.TypeTXT))); got != "NOERROR tc,ra []" {
			t.Errorf("got %s, want TC", got)
		}
	})
	t.Run("a server without EDNS says so to the client", func(t *testing.T) {
		up := newUpstream(t, func(query []byte, via transport) [][]byte {
			if l, _ := walk(query); l.opt == 0 {
				return good(query, via)
			}
			return [][]byte{errorReply(query, dns.RcodeFormatError)}
		})
		s := serve(t, Config{Upstreams: []netip.AddrPort{up.addr}})
		for via := range transports {
			req := question("www.example.com", dns.TypeA)
			req.SetEdns0(1232, false)
			if got := brief(exchange(t, s.addr, via, req)); got != "FORMERR ra []" {
				t.Errorf("with EDNS: got %s, want FORMERR without an OPT", got)
			}
		}
		for via := range transports { // after the others: the cache answers both kinds
			if got := brief(exchange(t, s.addr, via, question("www.example.com", dns.TypeA))); got != answer {
				t.Errorf("without: got %s, want %s", got, answer)
			}
		}
	})
	t.Run("a client over TCP never has a truncated answer", func(t *testing.T) {
		up := newUpstream(t, overUDPOnly)
		s := serve(t, Config{Upstreams: []netip.AddrPort{up.addr}, ForwardTimeout: time.Second})
		req := question("big.example.com", dns.TypeTXT)
		req.SetEdns0(1232, false)
		if got := brief(exchange(t, s.addr, overTCP, req)); got != "SERVFAIL ra [] OPT EDE23" {
			t.Errorf("got %s, want SERVFAIL with the cause", got)
		}
	})
	t.Run("answers that cannot be fetched by TCP are had of the next server", func(t *testing.T) {
		t.Parallel()
		cuts := func(query []byte, via transport) [][]byte {
			if via == overTCP {
				return nil
			}
			return [][]byte{headOnly(good(query, via)[0])}
		}
		for name, next := range map[string]string{"whole by UDP": "www.example.com", "by TCP": "big.example.com"} {
			cut, second := newUpstream(t, cuts), newUpstream(t, good)
			// without the next one nothing comes before the time is up
			s := serve(t, Config{Upstreams: []netip.AddrPort{cut.addr, second.addr}, ForwardTimeout: patience})
			start := time.Now()
			qtype := dns.TypeTXT
			if next == "www.example.com" {
				qtype = dns.TypeA
			}
			if got := exchange(t, s.addr, overTCP, question(next, qtype)); got.Truncated || len(got.Answer) != 1 {
				t.Errorf("%s: got %s, want the whole record", name, brief(got))
			}
			if took := time.Since(start); took > patience/2 {
				t.Errorf("%s: took %v", name, took)
			}
		}
	})
	t.Run("nobody listens: the next is asked at once", func(t *testing.T) {
		up := newUpstream(t, good)
		// the refusal must be heard: with a time-out this long nothing else ends the wait for the first
		s := serve(t, Config{Upstreams: []netip.AddrPort{freeport.Addr(), up.addr}, ForwardTimeout: patience})
		if got := brief(exchange(t, s.addr, overUDP, question("www.example.com", dns.TypeA))); got != answer {
			t.Errorf("got %s, want %s", got, answer)
		}
	})
	t.Run("nobody listens anywhere: SERVFAIL at once", func(t *testing.T) {
		s := serve(t, Config{Upstreams: []netip.AddrPort{freeport.Addr(), freeport.Addr()}, ForwardTimeout: 2 * patience})
		if got := brief(exchange(t, s.addr, overUDP, question("www.example.com", dns.TypeA))); got != "SERVFAIL ra []" {
			t.Errorf("got %s, want SERVFAIL", got)
		}
	})
}
