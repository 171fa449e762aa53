package sds

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"wingman/agent/envoy/peer"
	"wingman/bootstrap/identity"
	"wingman/internal/filewatch"
)

// Source is where this workload's identity comes from; *identity.Manager is one.
type Source interface {
	// Current is the newest certificate, nil when there is none; the last one then stays in use.
	Current() *identity.Certificate
}

// Config is what a Server is made from. Socket and Source must be set.
type Config struct {
	Socket string // path of the unix socket
	Owner  uint32 // uid of Envoy's user, where that is another than this process's (peer.Config)
	Root   string // folder that stands for "/" in the paths of file-cert: and file-root:; "" means "/"
	Source Source

	Log     *slog.Logger          // nil discards
	Metrics prometheus.Registerer // nil means none
}

// Server serves secrets. Make it with New; its methods are safe for concurrent use.
type Server struct {
	cfg     Config
	log     *slog.Logger
	metrics metrics
	store   *store
	fresh   chan struct{} // buffered 1: the Source has another certificate
	ready   chan struct{}
	once    sync.Once
	lasting map[string]trouble // of files; keep's alone

	// Tests put others here before Run.
	current func() (material, bool)

	mu          sync.Mutex // guards everything below
	refusals    []string   // reasons that were logged, newest last
	lastRefusal string
	troubles    map[string]string // names of files → what is wrong with them
}

// material is an identity as bytes.
type material struct{ chain, key, roots []byte }

const (
	// recheck is how often files are looked at although nothing was heard of them.
	recheck = 30 * time.Second
	// settling is how long a file may be wrong before that is worth a line: certificate and key are replaced one after the other.
	settling = time.Second
	// pause keeps a folder in which much happens from making this busy.
	pause = 50 * time.Millisecond
	// maxRefusals bounds how many reasons are remembered.
	maxRefusals = 50
	// maxMessage bounds a request: names and a node.
	maxMessage = 4 << 20
)

// New checks cfg. It opens and starts nothing.
func New(cfg Config) (*Server, error) {
	if cfg.Source == nil || !filepath.IsAbs(cfg.Socket) {
		return nil, fmt.Errorf("SDS needs a source and an absolute socket path, found %q", cfg.Socket)
	}
	if cfg.Root == "" {
		cfg.Root = "/"
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		cfg:      cfg,
		log:      cfg.Log,
		metrics:  newMetrics(cfg.Metrics),
		store:    newStore(),
		fresh:    make(chan struct{}, 1),
		ready:    make(chan struct{}),
		lasting:  map[string]trouble{},
		troubles: map[string]string{},
	}
	s.current = func() (material, bool) {
		c := cfg.Source.Current()
		if c == nil {
			return material{}, false
		}
		return material{chain: c.ChainPEM(), key: c.KeyPEM(), roots: c.RootsPEM()}, true
	}
	return s, nil
}

// Refresh says that the Source has another certificate, or other roots. It returns at once; the push follows.
func (s *Server) Refresh() { poke(s.fresh) }

// Ready is closed once the socket accepts connections.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Run serves until ctx ends, and returns nil then. An error means that the socket cannot be opened or broke: run it again later.
func (s *Server) Run(ctx context.Context) error {
	l, err := peer.Listen(peer.Config{Path: s.cfg.Socket, Owner: s.cfg.Owner, Log: s.log})
	if err != nil {
		return fmt.Errorf("SDS: %w", err)
	}
	g := grpc.NewServer(grpc.MaxRecvMsgSize(maxMessage), grpc.WaitForHandlers(true))
	g.RegisterService(&service, s)
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }() // Run waits for it
	s.once.Do(func() { close(s.ready) })

	inner, cancel := context.WithCancel(ctx)
	kept := make(chan struct{})
	go func() { defer close(kept); s.keep(inner) }() // Run waits for it
	select {
	case <-ctx.Done():
	case err = <-served:
		served <- err
	}
	cancel()
	g.Stop() // streams have no end of their own: Envoy comes back to the next server
	<-kept
	err = <-served
	if ctx.Err() != nil {
		return nil
	}
	return errors.Join(errors.New("SDS: the server ended"), err)
}

// keep makes the store follow the Source and the files.
func (s *Server) keep(ctx context.Context) {
	f := files{root: s.cfg.Root, watch: filewatch.New(s.log, recheck)}
	defer f.watch.Stop()
	for {
		values := s.identity()
		names := s.store.files()
		f.follow(names)
		wrong := map[string]string{}
		for _, name := range names {
			v, err := f.load(name)
			if err != nil {
				wrong[name] = err.Error()
				continue
			}
			values[name] = v
		}
		if changed := s.store.put(values); len(changed) > 0 {
			s.log.Info("secrets changed", "names", changed)
		}
		next := s.noteTroubles(wrong, time.Now())
		timer := time.NewTimer(next)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-s.fresh:
		case <-s.store.asked:
		case <-timer.C:
		case <-f.watch.Changed():
			select { // let a writer finish; a new certificate does not wait for that
			case <-time.After(pause):
			case <-s.fresh:
			case <-ctx.Done():
			}
		}
		timer.Stop()
	}
}

// identity returns what the Source has now: nothing when it has none.
func (s *Server) identity() map[string]secret {
	values := map[string]secret{}
	m, ok := s.current()
	if !ok {
		return values
	}
	if len(m.chain) > 0 && len(m.key) > 0 {
		values[string(kindIdentity)] = certificateSecret(string(kindIdentity), m.chain, m.key)
	}
	if len(m.roots) > 0 {
		values[string(kindRoots)] = rootsSecret(string(kindRoots), m.roots)
	}
	return values
}
