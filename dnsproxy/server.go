package dnsproxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Server answers DNS. Make it with New, then Run it once.
type Server struct {
	cfg     Config
	log     *slog.Logger
	table   atomic.Pointer[tableInUse]
	cache   *cache
	forward *forwarder
	metrics *metrics
	tcp     *tcpServer
	guests  guests
	ready   chan struct{}
	grace   time.Duration // stopGrace but in tests
}

// tableInUse is a table with the time it came.
type tableInUse struct {
	*Table
	since time.Time
}

// stopGrace is how long questions in flight may still be answered after Run was asked to end.
const stopGrace = time.Second

// New checks cfg and makes a server. It opens nothing; resolv.conf may be missing now and appear later.
func New(cfg Config) (*Server, error) {
	var problems []error
	if len(cfg.UDP)+len(cfg.TCP) == 0 {
		problems = append(problems, errors.New("no socket to answer on"))
	}
	if cfg.ForwardTimeout < 0 {
		problems = append(problems, fmt.Errorf("forward time-out %v is negative", cfg.ForwardTimeout))
	}
	for _, addr := range cfg.Upstreams {
		if !addr.IsValid() || addr.Port() == 0 {
			problems = append(problems, fmt.Errorf("upstream %v: want an address and a port", addr))
		}
	}
	routes, err := newRoutes(cfg.Forward)
	problems = append(problems, err)
	if err := errors.Join(problems...); err != nil {
		return nil, fmt.Errorf("dns proxy: %w", err)
	}
	cfg.ResolvConf = cmp.Or(cfg.ResolvConf, defaultResolvConf)
	cfg.UplinkConf = cmp.Or(cfg.UplinkConf, defaultUplinkConf)
	cfg.ForwardTimeout = cmp.Or(cfg.ForwardTimeout, defaultForwardTimeout)
	if cfg.MaxForwards <= 0 {
		cfg.MaxForwards = defaultMaxForwards
	}
	s := &Server{cfg: cfg, log: cfg.Log, ready: make(chan struct{}), grace: stopGrace}
	s.cache = newCache(max(cmp.Or(cfg.CacheBytes, defaultCacheBytes), 0), max(cmp.Or(cfg.MaxStale, defaultMaxStale), 0))
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.table.Store(&tableInUse{})
	s.metrics = newMetrics(s.Stats)
	s.forward = newForwarder(s, routes)
	s.tcp = newTCPServer(s)
	if cfg.Metrics != nil {
		if err := cfg.Metrics.Register(s.metrics); err != nil {
			return nil, fmt.Errorf("dns proxy: register metrics: %w", err)
		}
	}
	return s, nil
}

// Replace makes t the table that answers, from the next question on. nil forgets the mesh: everything goes upstream.
func (s *Server) Replace(t *Table) {
	was := s.table.Swap(&tableInUse{Table: t, since: time.Now()})
	level := slog.LevelDebug // a large mesh changes addresses all day
	if was.Len() != t.Len() {
		level = slog.LevelInfo
	}
	s.log.Log(context.Background(), level, "name table replaced", "from", was.Version(), "to", t.Version(), "names", t.Len())
}

// Table is the table in use; nil before the first Replace.
func (s *Server) Table() *Table { return s.table.Load().Table }

// Ready is closed once every socket is being read.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Run answers until ctx ends, then what is in flight for at most a second, and returns nil. It returns an error only if a
// socket can no longer be read. See Config.UDP and Config.TCP for what becomes of the sockets.
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	workers, err := s.udpWorkers()
	if err != nil {
		return err
	}
	resolvers, err := s.forward.start()
	if err != nil {
		for _, w := range workers {
			w.sock.close()
		}
		return err
	}
	var (
		wg     sync.WaitGroup
		failed = make(chan error, len(s.cfg.UDP)+len(s.cfg.TCP))
	)
	for _, w := range workers {
		wg.Go(func() { failed <- w.run(ctx) })
	}
	for _, l := range s.cfg.TCP {
		wg.Go(func() { failed <- s.tcp.accept(ctx, l) })
	}
	wg.Go(func() { s.forward.watch().run(ctx, resolvers, s.forward.reconfigure) })
	close(s.ready)

	select {
	case <-ctx.Done():
	case err = <-failed:
		cancel()
	}
	// readers first: what they have read already is answered or in flight when they end
	deadline := time.Now().Add(s.grace)
	for _, w := range workers {
		w.sock.gate.stop()
	}
	for _, l := range s.cfg.TCP {
		_ = l.SetDeadline(time.Unix(1, 0))
	}
	s.guests.end()
	s.tcp.drain()
	wg.Wait()
	s.forward.stop(deadline)
	s.tcp.close()
	for _, w := range workers {
		w.sock.close()
	}
	return err
}

// udpWorkers takes the UDP sockets over; on error they are closed.
func (s *Server) udpWorkers() (workers []*udpWorker, err error) {
	for _, conn := range s.cfg.UDP {
		var w *udpWorker
		sock, err := takeOver(conn)
		if err == nil {
			w, err = newUDPWorker(s, sock)
		}
		if err != nil {
			for _, w := range workers {
				w.sock.close()
			}
			return nil, err
		}
		workers = append(workers, w)
	}
	return workers, nil
}

// isTimeout reports a deadline that has passed: the way Run wakes readers.
func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}
