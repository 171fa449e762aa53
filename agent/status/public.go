package status

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Public serves the port that everyone may read. Make it with NewPublic.
type Public struct {
	addr   string
	server *http.Server
}

// NewPublic makes the server for addr, host:port. ready returns the reasons why this machine is not ready; none means ready. metrics are
// the agent's own.
func NewPublic(addr string, ready func() []string, metrics prometheus.Gatherer, merge Merge) *Public {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz/ready", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		if why := ready(); len(why) > 0 {
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprintln(w, strings.Join(why, "\n"))
			return
		}
		fmt.Fprintln(w, "ready")
	})
	mux.Handle("GET /metrics", merge.guard(promhttp.HandlerFor(metrics, promhttp.HandlerOpts{MaxRequestsInFlight: 4})))
	mux.Handle("GET /stats/prometheus", merge.guard(newMerger(metrics, merge)))
	return &Public{addr: addr, server: newServer(mux)}
}

// guard refuses other machines where metrics are for this one alone.
func (c Merge) guard(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c.LocalhostOnly != nil && c.LocalhostOnly() && !fromHere(r.RemoteAddr) {
			http.Error(w, "metrics are for this machine alone (metrics.localhostOnly)", http.StatusForbidden)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// envoyInbound is where Envoy's connections come from when they carry what other machines sent; it is a loopback address.
var envoyInbound = netip.AddrFrom4([4]byte{127, 0, 0, 6})

// fromHere reports whether a client's address is this machine's loopback and not Envoy's stand-in for a stranger.
func fromHere(remote string) bool {
	ap, err := netip.ParseAddrPort(remote)
	addr := ap.Addr().Unmap()
	return err == nil && addr.IsLoopback() && addr != envoyInbound
}

// newServer bounds what a client can hold open: the port is reachable by everyone.
func newServer(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
	}
}

// Run serves until ctx ends. A port that is taken is an error; the caller tries again later.
func (p *Public) Run(ctx context.Context) error {
	l, err := net.Listen("tcp", p.addr)
	if err != nil {
		return fmt.Errorf("status port: %w", err)
	}
	return serve(ctx, p.server, l)
}

func serve(ctx context.Context, s *http.Server, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	if err := s.Serve(l); ctx.Err() == nil || !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
