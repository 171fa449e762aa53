package dnsproxy

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"
)

// Serve answers on one more UDP socket and one more listener, beside those of Config, until ctx ends: a container bridge that came up after the
// start, say. It closes both and returns nil then, and when Run ends; before Run it waits for it. It returns an error only if a socket cannot be read.
func (s *Server) Serve(ctx context.Context, udp *net.UDPConn, tcp *net.TCPListener) error {
	defer tcp.Close()
	defer udp.Close()
	select {
	case <-s.ready:
	case <-ctx.Done():
		return nil
	}
	ctx, leave := s.guests.enter(ctx)
	if leave == nil {
		return nil // Run is ending
	}
	defer leave()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	sock, err := takeOver(udp)
	if err != nil {
		return err
	}
	defer sock.close()
	w, err := newUDPWorker(s, sock)
	if err != nil {
		return err
	}
	failed := make(chan error, 2)
	var readers sync.WaitGroup
	readers.Go(func() { failed <- w.run(ctx) })
	readers.Go(func() { failed <- s.tcp.accept(ctx, tcp) })
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	if err == nil && ctx.Err() == nil {
		err = errors.New("a DNS socket is not read any more")
	}
	stop()
	sock.gate.stop()
	_ = tcp.SetDeadline(time.Unix(1, 0))
	readers.Wait()
	return err
}

// guests counts the calls of Serve, which end with Run.
type guests struct {
	mu      sync.Mutex // guards everything below
	ended   bool
	cancels map[*context.CancelFunc]struct{}
	inside  sync.WaitGroup
}

// enter lets one in until it calls leave, soon after ctx ends. leave is nil when Run is ending.
func (g *guests) enter(ctx context.Context) (_ context.Context, leave func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ended {
		return ctx, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	if g.cancels == nil {
		g.cancels = map[*context.CancelFunc]struct{}{}
	}
	g.cancels[&cancel] = struct{}{}
	g.inside.Add(1)
	return ctx, func() {
		cancel()
		g.mu.Lock()
		delete(g.cancels, &cancel)
		g.mu.Unlock()
		g.inside.Done()
	}
}

// end sends all away and waits for them.
func (g *guests) end() {
	g.mu.Lock()
	g.ended = true
	for cancel := range g.cancels {
		(*cancel)()
	}
	g.mu.Unlock()
	g.inside.Wait()
}
