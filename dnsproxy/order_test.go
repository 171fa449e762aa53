package dnsproxy

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func TestFasterServersComeFirst(t *testing.T) {
	const ms = time.Millisecond
	tests := []struct {
		name string
		took []time.Duration // of the servers as written; 0: unknown
		want string          // their places
	}{
		{"nothing is known", []time.Duration{0, 0, 0}, "0 1 2"},
		{"the second is unknown", []time.Duration{900 * ms, 0}, "0 1"},
		{"the first is unknown", []time.Duration{0, ms}, "0 1"},
		{"as written where they are alike", []time.Duration{30 * ms, 20 * ms, 10 * ms}, "0 1 2"},
		{"many times, but few milliseconds", []time.Duration{50 * ms, ms}, "0 1"},
		{"many milliseconds, but not twice", []time.Duration{400 * ms, 210 * ms}, "0 1"},
		{"clearly faster", []time.Duration{200 * ms, ms}, "1 0"},
		{"the last is the fastest by far", []time.Duration{200 * ms, 190 * ms, ms}, "2 0 1"},
		{"the one in between is not clearly slower than its neighbours", []time.Duration{90 * ms, 60 * ms, 30 * ms}, "2 0 1"},
		{"each clearly faster than the one before", []time.Duration{900 * ms, 300 * ms, 100 * ms}, "2 1 0"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var servers []*server
			for i, took := range tt.took {
				servers = append(servers, &server{label: fmt.Sprint(i), srtt: took})
			}
			var got []string
			for _, s := range fasterFirst(servers) {
				got = append(got, s.label)
			}
			if strings.Join(got, " ") != tt.want {
				t.Errorf("order %v, want %s", got, tt.want)
			}
			for i, s := range servers {
				if s.label != fmt.Sprint(i) {
					t.Error("the list as written was changed")
				}
			}
		})
	}
}

// TestASlowServerIsFoundOut: the next is measured when the first is slow, and asked in its stead; the first is measured on, and takes
// its place when it is as fast again.
func TestASlowServerIsFoundOut(t *testing.T) {
	t.Parallel()
	good := zone(t)
	slow := newUpstream(t, func(query []byte, via transport) [][]byte {
		<-time.After(200 * time.Millisecond)
		return good(query, via)
	})
	quick := newUpstream(t, good)
	s := serve(t, Config{Upstreams: []netip.AddrPort{slow.addr, quick.addr}, CacheBytes: -1})
	serial := 0
	ask := func() {
		serial++
		exchange(t, s.addr, overUDP, question(fmt.Sprintf("%d.example.com", serial), dns.TypeA))
	}
	ask() // the first alone
	ask() // the first, and the second to compare
	waitFor(t, func() bool { return s.Stats().Upstreams[1].Latency > 0 })
	before := len(slow.questions())
	for range compareEvery {
		ask()
	}
	if got := len(slow.questions()) - before; got < 1 || got > 3 {
		t.Errorf("of %d questions the slow server was asked %d, want 1 to compare, or few more", compareEvery, got)
	}
	slow.set(good)
	s.forward.mu.Lock()
	s.forward.routes[0].servers[0].srtt = 51 * time.Millisecond // one more measured answer, and it is not clearly slower
	s.forward.mu.Unlock()
	waitFor(t, func() bool {
		before := len(slow.questions())
		ask()
		ask()
		return len(slow.questions()) == before+2
	})
}
