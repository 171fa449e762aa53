package controlplane

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
)

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
	reuse := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
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
