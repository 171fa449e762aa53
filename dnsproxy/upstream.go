package dnsproxy

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
)

// route is a set of servers for the names below a suffix.
type route struct {
	suffix  []byte // key; empty for the default route
	fixed   []netip.AddrPort
	servers []*server
	backup  []*server // asked when all of servers lead back here
	turn    int       // for rotate
	asked   int       // questions; one of compareEvery compares the servers
}

// newRoutes makes the routes of split DNS and, last, the default one. Every problem is in the error.
func newRoutes(forward map[string][]netip.AddrPort) ([]*route, error) {
	var routes []*route
	var problems []error
	for _, suffix := range slices.Sorted(maps.Keys(forward)) {
		servers := forward[suffix]
		key, err := appendKey(nil, strings.TrimPrefix(suffix, "*."))
		if err != nil {
			problems = append(problems, fmt.Errorf("forward %q: %w", suffix, err))
		}
		if len(servers) == 0 {
			problems = append(problems, fmt.Errorf("forward %q: no server", suffix))
		}
		for _, addr := range servers {
			if !addr.IsValid() || addr.Port() == 0 {
				problems = append(problems, fmt.Errorf("forward %q: server %v: want an address and a port", suffix, addr))
			}
		}
		routes = append(routes, &route{suffix: key, fixed: servers})
	}
	sort.SliceStable(routes, func(i, j int) bool { return len(routes[i].suffix) > len(routes[j].suffix) })
	return append(routes, &route{}), errors.Join(problems...)
}

// routeOf finds the route for a name's key.
func (f *forwarder) routeOf(key []byte) *route {
	for _, r := range f.routes {
		if isBelow(key, r.suffix) {
			return r
		}
	}
	return f.routes[len(f.routes)-1]
}

// setLocked gives the route its servers; those it has already keep what is known of them. Our own listeners are left out:
// asking them would be asking ourselves.
func (r *route) setLocked(f *forwarder, addrs []netip.AddrPort) {
	former := slices.Concat(r.servers, r.backup)
	r.servers, r.backup = nil, nil
	for _, addr := range addrs {
		if f.s.listensOn(addr) {
			f.log.Warn("upstream resolver is this agent itself, not used: DNS would loop",
				"upstream", addr, "hint", "name the machine's real resolvers in resolv.conf")
			continue
		}
		at := slices.IndexFunc(former, func(s *server) bool { return s.addr == addr })
		if at >= 0 {
			r.servers = append(r.servers, former[at])
		} else {
			r.servers = append(r.servers, newServer(f, addr))
		}
	}
	for _, s := range former {
		if !slices.Contains(r.servers, s) {
			s.closeLocked()
		}
	}
}

// orderLocked lists the servers in the order to ask them: as written, but for those that are clearly faster than one before
// them, or by turns with "rotate"; servers that are down come last, those that lead back here not at all.
func (r *route) orderLocked(f *forwarder) []*server {
	order := f.usableLocked(r.servers)
	if len(order) == 0 {
		order = f.usableLocked(r.backup)
	}
	switch n := len(order); {
	case n > 1 && f.conf.rotate:
		r.turn++
		order = slices.Concat(order[r.turn%n:], order[:r.turn%n])
	case n > 1:
		order = fasterFirst(order)
	}
	if len(order) > 1 && slices.ContainsFunc(order, (*server).down) {
		order = slices.Clone(order)
		slices.SortStableFunc(order, func(a, b *server) int { return compareBool(a.down(), b.down()) })
	}
	return order
}

// fasterFirst puts each server before those that are clearly slower. The order as written means something where servers know
// different names, so a little does not count. The list it is given stays as it is.
func fasterFirst(servers []*server) []*server {
	order, changed := servers, false
	for i := range order {
		at := i
		for j := i + 1; j < len(order); j++ {
			if order[j].clearlyFaster(order[at]) {
				at = j
			}
		}
		if at == i {
			continue
		}
		if !changed {
			order, changed = slices.Clone(order), true
		}
		best := order[at]
		copy(order[i+1:at+1], order[i:at])
		order[i] = best
	}
	return order
}

// tryLocked asks others of the flight's servers its question too, in flights of their own that nobody waits for: each that is
// down now and then, for an answer ends that; and one of the others by one of compareEvery questions, or at once if the first
// is slow and nothing is known of it, for its time to be known.
func (f *forwarder) tryLocked(fl *flight) {
	now := time.Now()
	r, first := fl.route, fl.order[0]
	r.asked++
	compared := 1 + r.asked/compareEvery%(len(fl.order)-1)
	for i, s := range fl.order[1:] {
		key := "try " + s.label
		if f.flights[key] != nil {
			continue
		}
		switch {
		case s.down() && !now.Before(s.nextTry):
			s.nextTry = now.Add(tryEvery)
		case s.down():
			continue
		case s.srtt == 0 && first.srtt > muchSlower:
		case r.asked%compareEvery != 0 || i+1 != compared:
			continue
		}
		try := &flight{key: key, query: fl.query, route: r, order: []*server{s}, probe: true, deadline: now.Add(probeTimeout)}
		f.flights[key] = try
		f.advanceLocked(try)
	}
}

// usableLocked lists the servers that do not lead back here. The others are probed: it may have ended.
func (f *forwarder) usableLocked(servers []*server) []*server {
	if !slices.ContainsFunc(servers, func(s *server) bool { return s.looping }) {
		return servers
	}
	var usable []*server
	for _, s := range servers {
		if s.looping {
			f.probeLocked(s)
		} else {
			usable = append(usable, s)
		}
	}
	return usable
}

// why says in an extended error (RFC 8914) why nobody answered.
func (r *route) why(f *forwarder) (code uint16, text string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(r.servers) == 0 {
		return dns.ExtendedErrorCodeNoReachableAuthority, "no upstream resolver is configured"
	}
	var said []string
	for _, s := range r.servers {
		why := cmp.Or(s.lastError, "no answer")
		if s.looping {
			why = "leads back to this agent"
		}
		said = append(said, s.label+": "+why)
	}
	return dns.ExtendedErrorCodeNoReachableAuthority, "no upstream answers: " + strings.Join(said, "; ")
}

// server is one upstream resolver and what is known of it.
type server struct {
	addr    netip.AddrPort
	label   string
	took    prometheus.Observer
	sockets map[*upSocket]struct{}
	current *upSocket // for the next question
	streams pool

	srtt, rttvar time.Duration // RFC 6298; zero before the first answer
	fails        int           // in a row
	lastError    string        // why, of the last failure
	nextTry      time.Time     // while it is down

	least time.Duration // of patience; zero but in tests

	looping   bool      // leads back to us
	sawProbe  bool      // the last probe came back
	nextProbe time.Time // not before
}

func newServer(f *forwarder, addr netip.AddrPort) *server {
	label := addr.String()
	return &server{addr: addr, label: label, took: f.s.metrics.took.WithLabelValues(label), sockets: map[*upSocket]struct{}{}}
}

// Reasons of failures, label values.
const (
	reasonTimeout     = "timeout"
	reasonUnreachable = "unreachable"
	reasonRefused     = "refused"
	reasonStream      = "stream"
	reasonLoop        = "loop"
)

const (
	downAfter = 3               // failures in a row
	tryEvery  = 5 * time.Second // a server that is down

	firstPatience = 400 * time.Millisecond // before anything is known of a server
	minPatience   = 50 * time.Millisecond
	maxPatience   = time.Second

	compareEvery = 20                    // of how many questions one is also asked of another server
	muchSlower   = 50 * time.Millisecond // and more than twice the time: worth another order than the one written
)

// down reports a server that has failed so often that it is asked last.
func (s *server) down() bool { return s.fails >= downAfter }

// clearlyFaster reports a difference that a client feels.
func (s *server) clearlyFaster(other *server) bool {
	return s.srtt > 0 && other.srtt > 2*s.srtt && other.srtt-s.srtt > muchSlower
}

// patience is the time after which an answer is late.
func (s *server) patience() time.Duration {
	if s.srtt == 0 {
		return max(firstPatience, s.least)
	}
	return max(min(max(s.srtt+4*s.rttvar, minPatience), maxPatience), s.least)
}

func (s *server) answeredLocked(f *forwarder, took time.Duration) {
	s.took.Observe(took.Seconds())
	if s.fails >= downAfter {
		f.log.Info("upstream resolver answers again", "upstream", s.label)
	}
	s.fails, s.lastError = 0, ""
	if s.srtt == 0 {
		s.srtt, s.rttvar = took, took/2
		return
	}
	diff := s.srtt - took
	s.rttvar += (max(diff, -diff) - s.rttvar) / 4
	s.srtt += (took - s.srtt) / 8
}

func (s *server) failedLocked(f *forwarder, reason string, err error) {
	f.s.metrics.failures.WithLabelValues(s.label, reason).Inc()
	s.lastError = err.Error()
	if s.fails++; s.fails == downAfter {
		s.nextTry = time.Now().Add(tryEvery)
		f.log.Warn("upstream resolver does not answer", "upstream", s.label, "reason", reason, "cause", err)
	}
}

// refusedLocked counts an answer without help in it. The server lives.
func (s *server) refusedLocked(f *forwarder, rcode int) {
	f.s.metrics.failures.WithLabelValues(s.label, reasonRefused).Inc()
	s.lastError = "answers " + dns.RcodeToString[rcode]
}

// closeLocked ends the server's sockets; flights that asked it go on with others or end by their time. A stream may still bring what is due by it.
func (s *server) closeLocked() {
	for sock := range s.sockets {
		sock.closeLocked()
	}
	s.streams.endLocked()
}
