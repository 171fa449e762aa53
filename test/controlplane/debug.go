package controlplane

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"time"
)

// Stream is what the server knows of an open ADS stream: a row of `istioctl proxy-status`, with the ACK state of
// istiod's /debug/syncz.
type Stream struct {
	ID       uint64           `json:"id"`
	Node     string           `json:"node"`
	Delta    bool             `json:"delta"`
	Identity string           `json:"identity"`
	By       string           `json:"by"` // ByCertificate or ByToken
	OpenedAt time.Time        `json:"openedAt"`
	Entry    string           `json:"entry,omitempty"` // namespace/name
	Watches  map[string]Watch `json:"watches"`         // by type URL
}

// Watch is one subscription. Synced means that the last answer was acknowledged.
type Watch struct {
	Names     []string `json:"names,omitempty"`
	Sent      string   `json:"sent"`
	Acked     string   `json:"acked"`
	Synced    bool     `json:"synced"`
	LastError string   `json:"lastError,omitempty"`
}

// Streams returns the open streams in the order they were opened.
func (s *Server) Streams() []Stream {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.streamsLocked()
}

// WaitStreams blocks until match is true of all open streams together.
func (s *Server) WaitStreams(ctx context.Context, match func([]Stream) bool) error {
	_, err := await(ctx, s, func() (struct{}, bool) { return struct{}{}, match(s.streamsLocked()) })
	if err != nil {
		return fmt.Errorf("wait for streams, there are %+v: %w", s.Streams(), err)
	}
	return nil
}

func (s *Server) streamsLocked() []Stream {
	out := make([]Stream, 0, len(s.streams))
	for _, id := range slices.Sorted(maps.Keys(s.streams)) {
		st := s.streams[id]
		view := Stream{
			ID: st.id, Node: st.node.id, Delta: st.delta, Identity: st.caller.identity, By: st.caller.by,
			OpenedAt: st.openedAt, Watches: map[string]Watch{},
		}
		if st.entry.name != "" {
			view.Entry = st.entry.String()
		}
		for typeURL, w := range st.watches {
			view.Watches[typeURL] = Watch{
				Names: slices.Sorted(maps.Keys(w.names)), Sent: w.sent, Acked: w.acked,
				Synced: w.sent != "" && w.sent == w.acked, LastError: w.lastError,
			}
		}
		out = append(out, view)
	}
	return out
}

// debugServer is the HTTP side: /entries, /streams and /events as JSON.
type debugServer struct {
	addr string
	http *http.Server
	done chan struct{}
}

// DebugURL is where the debug endpoint serves; empty without one.
func (s *Server) DebugURL() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.debug == nil {
		return ""
	}
	return "http://" + s.debug.addr
}

// startDebug serves the debug endpoint if one is wanted. It shows identities, so it stays on loopback.
func (s *Server) startDebug() error {
	if s.cfg.DebugAddr == "" {
		return nil
	}
	addr, err := netip.ParseAddrPort(s.cfg.DebugAddr)
	if err != nil || !addr.Addr().IsLoopback() {
		return fmt.Errorf("debug address %q: want a loopback IP address and a port", s.cfg.DebugAddr)
	}
	l, err := net.Listen("tcp", s.cfg.DebugAddr)
	if err != nil {
		return fmt.Errorf("debug endpoint: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /entries", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, s.Entries()) })
	mux.HandleFunc("GET /streams", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, s.Streams()) })
	mux.HandleFunc("GET /events", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, s.Events()) })
	d := &debugServer{addr: l.Addr().String(), http: &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}, done: make(chan struct{})}
	go func() {
		defer close(d.done)
		if err := d.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			s.log.Error("debug endpoint ended", "err", err)
		}
	}()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.debug = d
	return nil
}

// stopDebug closes the debug endpoint and waits for it.
func (s *Server) stopDebug() {
	s.mu.Lock()
	d := s.debug
	s.debug = nil
	s.mu.Unlock()
	if d != nil {
		d.http.Close()
		<-d.done
	}
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the client is gone, there is nobody to tell
}
