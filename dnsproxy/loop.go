package dnsproxy

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/miekg/dns"
)

// A question that we send upstream may come back to us: resolv.conf names a forwarder of this machine (systemd-resolved's
// stub, dnsmasq), whose own questions the capture rules send here; or our own are captured, because we run as another user
// than the rules exempt. Such a question must cause neither a storm nor silence:
//
//   - An equal question joins the one in flight (forwarder.ask), so nothing multiplies.
//   - A datagram from one of our own upstream sockets is a loop for certain.
//   - When an equal question joins one that its server has not answered yet, the server is sent a probe: a name made up for
//     the occasion. If anyone asks us for it, the server leads here.
//
// A server that leads here is not asked, and probed now and then until it no longer does. If systemd-resolved is the one,
// its own servers are asked in its stead.

const (
	probeEvery   = 10 * time.Second
	probeTimeout = 2 * time.Second
	probeSuffix  = "\x0cwingman-loop" // two labels in all: stubs do not pass single ones on
)

// suspectLoopLocked is called when an equal question comes while fl is upstream.
func (f *forwarder) suspectLoopLocked(fl *flight) {
	for _, a := range fl.attempts {
		if a.server.srtt == 0 || a.server.fails > 0 {
			f.probeLocked(a.server)
		}
	}
}

// loopLocked reports whether the question of w went out from here, and deals with the server that sent it back.
func (f *forwarder) loopLocked(w waiter, q *upstreamQuery) bool {
	if s := f.probes[string(q.name)]; s != nil {
		f.loopedLocked(s)
		return true
	}
	c, ok := w.to.(*udpClient)
	if !ok {
		return false
	}
	sock := f.ports[networkOrder(&c.to.Port)]
	if sock == nil {
		return false
	}
	a := sock.pending[binary.BigEndian.Uint16(w.msg)]
	if a == nil || !answers(asResponse(w.msg), a.flight.query, a.id) {
		return false
	}
	f.loopedLocked(sock.server)
	return true
}

// asResponse is a query with the response bit set.
func asResponse(msg []byte) []byte {
	response := append([]byte(nil), msg...)
	response[2] |= flagQR
	return response
}

// loopedLocked takes a server out of use.
func (f *forwarder) loopedLocked(s *server) {
	s.sawProbe = true
	if s.looping {
		return
	}
	s.looping, s.nextProbe = true, time.Now().Add(probeEvery)
	f.log.Error("upstream resolver leads back to this agent, not used: DNS would loop", "upstream", s.label,
		"hint", "let capture rules exempt the agent's user and the machine's own resolver, or name another server in resolv.conf")
	f.s.metrics.failures.WithLabelValues(s.label, reasonLoop).Inc()
	f.useUplinksLocked(s)
	f.turnAwayLocked(s)
}

// turnAwayLocked makes the flights that would ask s ask others now; those that have nobody else end.
func (f *forwarder) turnAwayLocked(s *server) {
	for _, fl := range f.flights {
		if fl.probe || fl.done || !slices.Contains(fl.order, s) {
			continue
		}
		fl.order, fl.sends, fl.overTCP = fl.route.orderLocked(f), 0, false
		done := fl
		if len(fl.order) > 0 {
			done = f.advanceLocked(fl)
		} else {
			f.finishLocked(fl, fl.fallback)
		}
		if done != nil {
			f.readers.Go(func() { f.deliver(done, nil) })
		}
	}
}

// probeLocked asks s for a name that only we know.
func (f *forwarder) probeLocked(s *server) {
	now := time.Now()
	if now.Before(s.nextProbe) || f.closing {
		return
	}
	s.nextProbe = now.Add(probeEvery)
	s.sawProbe = false
	label := fmt.Sprintf("%016x", rand.Uint64())
	name := "\x10" + label + probeSuffix
	query, err := new(dns.Msg).SetQuestion(nameOf([]byte(name)), dns.TypeTXT).Pack()
	if err != nil {
		return // a name of hexadecimal digits packs
	}
	fl := &flight{
		key: "probe " + label, query: query, route: f.routes[len(f.routes)-1], order: []*server{s}, probe: true, deadline: now.Add(probeTimeout),
		waiters: []waiter{{msg: query, limit: maxUDP, to: &probeEnd{f: f, server: s, name: name}, trace: &trace{raw: true}}},
	}
	f.probes[name] = s
	f.flights[fl.key] = fl
	if done := f.advanceLocked(fl); done != nil {
		f.readers.Go(func() { f.deliver(done, nil) })
	}
}

// probeEnd hears how a probe ended.
type probeEnd struct {
	f      *forwarder
	server *server
	name   string
}

func (p *probeEnd) reply([]byte) {
	p.f.mu.Lock()
	defer p.f.mu.Unlock()
	delete(p.f.probes, p.name)
	if p.server.looping && !p.server.sawProbe {
		p.server.looping = false
		p.f.log.Info("upstream resolver no longer leads back to this agent", "upstream", p.server.label)
	}
}

// useUplinksLocked puts the servers that systemd-resolved asks in the place of its stub.
func (f *forwarder) useUplinksLocked(s *server) {
	r := f.routes[len(f.routes)-1]
	if !s.addr.Addr().IsLoopback() || r.backup != nil {
		return
	}
	text, err := os.ReadFile(f.s.cfg.UplinkConf)
	if err != nil {
		return // no systemd-resolved here
	}
	var addrs []netip.AddrPort
	for _, addr := range parseResolvConf(string(text)).servers {
		if addr != s.addr && !f.s.listensOn(addr) {
			addrs = append(addrs, addr)
		}
	}
	if len(addrs) == 0 {
		return
	}
	f.log.Warn("asking the resolvers behind the local one", "instead_of", s.label, "file", f.s.cfg.UplinkConf, "servers", addrs)
	for _, addr := range addrs {
		r.backup = append(r.backup, newServer(f, addr))
	}
}
