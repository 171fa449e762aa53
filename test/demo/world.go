package main

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"

	"wingman/test/controlplane"
)

// Addresses of the world and of the machine in it.
const (
	worldAddr    = "10.99.0.1"
	resolverAddr = "10.99.0.53"
	machineAddr  = "10.99.0.2"
	prefix       = "/24"
)

// Names that are asked for.
const (
	meshName     = "webapp.istioinaction"
	meshAddr     = "10.96.97.98"
	externalName = "www.example.com"
	externalAddr = "203.0.113.10" // RFC 5737
)

// Lives that let a renewal and a removal be seen within a minute. The certificate's is in testdata/sidecar.env.
const (
	tokenLife = 8 * time.Second
	grace     = 2 * time.Second
)

// world is everything that is not the machine: the mesh's control plane and the network's resolver.
type world struct {
	plane    *controlplane.Server
	resolver *resolver
}

// newWorld gives this process's network namespace its addresses and starts the servers. The control plane knows the
// book's WorkloadGroup and services.
func newWorld() (*world, error) {
	for _, addr := range []string{worldAddr + prefix, resolverAddr + prefix} {
		if err := addAddr("mesh0", addr); err != nil {
			return nil, err
		}
	}
	if err := setUp("lo"); err != nil {
		return nil, err
	}
	plane, err := controlplane.New(controlplane.Config{Addr: worldAddr + ":15012", Grace: grace, Clusters: []string{"west-cluster"}})
	if err != nil {
		return nil, err
	}
	plane.AddGroup(controlplane.Group{
		Namespace: "forum-services", Name: "forum", ServiceAccount: "forum-sa", Network: "vm-network", Labels: map[string]string{"app": "forum"},
	})
	plane.AddService("istioinaction", "webapp", meshAddr)
	plane.AddService("istioinaction", "catalog", "10.96.210.152")
	plane.AddService("forum-services", "forum", "10.96.72.87")
	r, err := startResolver(resolverAddr+":53", map[string]string{externalName + ".": externalAddr})
	if err != nil {
		return nil, err
	}
	if err := plane.Start(); err != nil {
		return nil, errors.Join(err, r.stop())
	}
	return &world{plane, r}, nil
}

func (w *world) close() error {
	w.plane.Close()
	return w.resolver.stop()
}

// resolver is the network's DNS server: it knows a few names, everything else does not exist, and it remembers who asked for what.
type resolver struct {
	names   map[string]string // name with final dot to IPv4 address
	servers []*dns.Server
	done    sync.WaitGroup

	mu    sync.Mutex
	asked []string // names in lower case, with final dot
}

// startResolver serves UDP and TCP.
func startResolver(addr string, names map[string]string) (*resolver, error) {
	r := &resolver{names: names}
	pc, err := net.ListenPacket("udp", addr)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", pc.LocalAddr().String())
	if err != nil {
		pc.Close()
		return nil, err
	}
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: r}, {Listener: l, Handler: r}} {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		r.servers = append(r.servers, s)
		r.done.Go(func() { _ = s.ActivateAndServe() }) // its error at shutdown says only that
		<-started
	}
	return r, nil
}

// ServeDNS answers one question.
func (r *resolver) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	reply := new(dns.Msg).SetReply(q)
	reply.RecursionAvailable = true
	name := strings.ToLower(q.Question[0].Name)
	r.mu.Lock()
	r.asked = append(r.asked, name)
	r.mu.Unlock()
	addr, known := r.names[name]
	switch {
	case !known:
		reply.Rcode = dns.RcodeNameError
	case q.Question[0].Qtype == dns.TypeA:
		reply.Answer = []dns.RR{&dns.A{
			Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 1}, A: net.ParseIP(addr),
		}}
	}
	_ = w.WriteMsg(reply) // who asked has gone
}

// saw counts the questions for a name, without final dot, so far.
func (r *resolver) saw(name string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, asked := range r.asked {
		if asked == strings.ToLower(name)+"." {
			n++
		}
	}
	return n
}

func (r *resolver) addr() string { return r.servers[0].PacketConn.LocalAddr().String() }

func (r *resolver) stop() error {
	var errs []error
	for _, s := range r.servers {
		errs = append(errs, s.Shutdown())
	}
	r.done.Wait()
	return errors.Join(errs...)
}

// layCable makes a veth pair: mesh0 here, eth0 in the network namespace that fd names.
func layCable(fd int) error {
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "mesh0"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(fd)}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("veth pair: %w", err)
	}
	return setUp("mesh0")
}

func setUp(link string) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return fmt.Errorf("link %s: %w", link, err)
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("link %s up: %w", link, err)
	}
	return nil
}

func addAddr(link, addr string) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return fmt.Errorf("link %s: %w", link, err)
	}
	a, err := netlink.ParseAddr(addr)
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(l, a); err != nil {
		return fmt.Errorf("address %s on %s: %w", addr, link, err)
	}
	return nil
}

// wantAddrs compares the answer of a resolver with what is right.
func wantAddrs(a answer, want string) error {
	if a.Error != "" {
		return fmt.Errorf("%s does not resolve: %s", a.Name, a.Error)
	}
	if !slices.Equal(a.Addrs, []string{want}) {
		return fmt.Errorf("%s is %v, want %s", a.Name, a.Addrs, want)
	}
	return nil
}
