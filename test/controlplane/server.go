package controlplane

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	securityapi "istio.io/api/security/v1alpha1"
)

// Start begins to serve, at the same address each time: a stopped control plane comes back with the authority, groups,
// entries and names it had, as istiod comes back to what Kubernetes has kept.
func (s *Server) Start() error {
	s.lifecycle.Lock()
	defer s.lifecycle.Unlock()
	s.mu.Lock()
	running, closed := s.running, s.closed
	s.mu.Unlock()
	if running || closed {
		return errors.New("control plane stand-in is already running or closed")
	}
	if err := s.gate.open(); err != nil {
		return fmt.Errorf("control plane stand-in: %w", err)
	}
	if err := s.startDebug(); err != nil {
		s.gate.close()
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running = true
	s.instance++
	for key, e := range s.entries { // istiod finds entries that were left before its time by a rare sweep
		if !e.LeftAt.IsZero() {
			instance := s.instance
			e.timer = time.AfterFunc(10*s.cfg.Grace, func() { s.removeEntry(key, e, instance) })
		}
	}
	s.wakeLocked()
	return nil
}

// Stop kills the control plane as kill -9 does: the port is closed, every connection reset, no goodbye. Entries stay as
// they are, because there is nobody to remove them. It returns when every stream has ended. A second Stop does nothing.
func (s *Server) Stop() {
	s.lifecycle.Lock()
	defer s.lifecycle.Unlock()
	s.stopLocked()
}

// stopLocked needs lifecycle.
func (s *Server) stopLocked() {
	s.mu.Lock()
	if !s.running {
		s.mu.Unlock()
		return
	}
	s.running = false
	for _, e := range s.entries {
		if e.timer != nil {
			e.timer.Stop()
			e.timer = nil
		}
	}
	s.wakeLocked()
	s.mu.Unlock()
	s.stopDebug()
	s.gate.close()
}

// Close stops the server for good and gives its port back.
func (s *Server) Close() {
	s.lifecycle.Lock()
	defer s.lifecycle.Unlock()
	s.stopLocked()
	s.gate.release()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
}

// Addr is the host:port of ADS and CA; valid once Start has returned, also while stopped.
func (s *Server) Addr() string { return s.gate.address() }

// newGRPCServer makes one generation of the gRPC server, with istiod's limits.
// Istio: pilot/pkg/grpc/grpc.go, ServerOptions.
func (s *Server) newGRPCServer() *grpc.Server {
	g := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: s.tlsConfig})),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: s.cfg.KeepaliveTime / 2}),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			Time: s.cfg.KeepaliveTime, Timeout: 10 * time.Second,
			MaxConnectionAge: s.cfg.MaxConnectionAge, MaxConnectionAgeGrace: s.cfg.MaxConnectionAgeGrace,
		}),
		grpc.MaxRecvMsgSize(4<<20),
		grpc.WaitForHandlers(true),
	)
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(g, discoveryService{s: s})
	securityapi.RegisterIstioCertificateServiceServer(g, certificateService{s: s})
	return g
}

// gate owns the port: the listener, every accepted connection, and the gRPC server that gets them.
//
// A bound socket that does not listen keeps the port while nobody serves it, so that clients are refused by the kernel
// and no other program takes it. Each generation of the gRPC server gets the connections accepted during its time.
type gate struct {
	newServer func() *grpc.Server

	mu       sync.Mutex // guards everything below
	addr     string
	keeper   int // file descriptor of the socket that keeps the port; -1 before the first open
	listener net.Listener
	current  *generation
	conns    map[net.Conn]struct{}
	mute     bool           // accepted connections are left alone, not even a handshake
	loops    sync.WaitGroup // accept loops and gRPC servers
}

// generation is one gRPC server and the queue of connections it takes from.
type generation struct {
	server *grpc.Server
	queue  *connQueue
}

func newGate(addr string, newServer func() *grpc.Server) *gate {
	return &gate{addr: addr, keeper: -1, newServer: newServer, conns: map[net.Conn]struct{}{}}
}

func (g *gate) address() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.addr
}

// open listens and starts a fresh generation.
func (g *gate) open() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.listenLocked(); err != nil {
		return err
	}
	g.current = g.startLocked()
	return nil
}

// startLocked runs a new gRPC server.
func (g *gate) startLocked() *generation {
	gen := &generation{server: g.newServer(), queue: newConnQueue(g.addr)}
	g.loops.Go(func() { _ = gen.server.Serve(gen.queue) }) // ends when the server is stopped; the error says only that
	return gen
}

// listenLocked binds the port, for the first time or again.
func (g *gate) listenLocked() error {
	if g.listener != nil {
		return nil
	}
	reuse := net.ListenConfig{Control: func(_, _ string, c syscallConn) error {
		var optErr error
		err := c.Control(func(fd uintptr) { optErr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
		return errors.Join(err, optErr)
	}}
	l, err := reuse.Listen(context.Background(), "tcp", g.addr)
	if err != nil {
		return err
	}
	if g.keeper < 0 {
		if g.keeper, err = keepPort(l.Addr().(*net.TCPAddr)); err != nil {
			l.Close()
			return fmt.Errorf("keep the port: %w", err)
		}
	}
	g.addr, g.listener = l.Addr().String(), l
	g.loops.Go(func() { g.accept(l) })
	return nil
}

// accept hands connections to the current generation until l is closed.
func (g *gate) accept(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		g.mu.Lock()
		g.conns[conn] = struct{}{}
		tracked := &trackedConn{Conn: conn, closed: func() {
			g.mu.Lock()
			defer g.mu.Unlock()
			delete(g.conns, conn)
		}}
		if gen := g.current; gen != nil && !g.mute {
			gen.queue.offer(tracked)
		}
		g.mu.Unlock()
	}
}

// refuse closes the port and leaves connections that are up; allow opens it again.
func (g *gate) refuse() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.listener != nil {
		g.listener.Close()
		g.listener = nil
	}
}

func (g *gate) allow() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.listenLocked()
}

// hang stops (or resumes) giving accepted connections to anybody; those that hung stay hung until reset or close.
func (g *gate) hang(on bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.mute = on
}

// reset ends every connection with a TCP reset.
func (g *gate) reset() {
	g.mu.Lock()
	conns := make([]net.Conn, 0, len(g.conns))
	for c := range g.conns {
		conns = append(conns, c)
	}
	clear(g.conns)
	g.mu.Unlock()
	for _, c := range conns {
		if tcp, ok := c.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // a reset instead of a FIN; if it fails the close below still ends the connection
		}
		c.Close()
	}
}

// drain sends GOAWAY on every connection and closes those that are left after grace; new connections go to a new server.
func (g *gate) drain(grace time.Duration) {
	g.mu.Lock()
	old := g.current
	if old == nil {
		g.mu.Unlock()
		return
	}
	g.current = g.startLocked()
	g.mu.Unlock()
	g.loops.Go(func() {
		stop := time.AfterFunc(grace, old.server.Stop)
		defer stop.Stop()
		old.server.GracefulStop()
	})
}

// close refuses, resets, and waits until every server and loop has ended.
func (g *gate) close() {
	g.refuse()
	g.mu.Lock()
	gen := g.current
	g.current = nil
	g.mu.Unlock()
	g.reset()
	if gen != nil {
		gen.server.Stop()
	}
	g.loops.Wait()
	g.reset() // what was accepted between
}

// release gives the port back.
func (g *gate) release() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.keeper >= 0 {
		unix.Close(g.keeper)
		g.keeper = -1
	}
}
