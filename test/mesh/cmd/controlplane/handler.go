package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"wingman/test/mesh"
	"wingman/test/mesh/kube"
)

// handler is what the package page lists. Requests that change istiod wait for each other.
func handler(m *mesh.Mesh, h *history, istiod netip.Addr, dir string) http.Handler {
	var mu sync.Mutex // held while istiod is killed or started
	mux := http.NewServeMux()
	handle := func(pattern string, do func(ctx context.Context, r *http.Request) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			ctx, cancel := context.WithTimeout(r.Context(), startTimeout)
			defer cancel()
			answer, err := do(ctx, r)
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			_ = json.NewEncoder(w).Encode(answer) // fails only when the asker is gone
		})
	}
	handle("GET /entries", func(context.Context, *http.Request) (any, error) { return h.all(), nil })
	handle("GET /files", func(ctx context.Context, r *http.Request) (any, error) {
		q := r.URL.Query()
		return configure(ctx, m, q.Get("namespace"), q.Get("group"), istiod, dir)
	})
	handle("GET /token", func(ctx context.Context, r *http.Request) (any, error) {
		q := r.URL.Query()
		ttl, err := time.ParseDuration(q.Get("ttl"))
		if err != nil {
			return nil, fmt.Errorf("ttl: %w", err)
		}
		return m.Token(ctx, q.Get("namespace"), q.Get("account"), mesh.Audience, ttl)
	})
	handle("POST /apply", func(ctx context.Context, r *http.Request) (any, error) {
		objects, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		return nil, m.Kube.Apply(ctx, string(objects))
	})
	handle("POST /istiod/kill", func(context.Context, *http.Request) (any, error) {
		mu.Lock()
		defer mu.Unlock()
		m.KillIstiod()
		return nil, nil
	})
	handle("POST /istiod/start", func(ctx context.Context, _ *http.Request) (any, error) {
		mu.Lock()
		defer mu.Unlock()
		return nil, m.StartIstiod(ctx)
	})
	return mux
}

// configure has istioctl write the files of a machine, and reads them.
func configure(ctx context.Context, m *mesh.Mesh, namespace, group string, istiod netip.Addr, dir string) (map[string]string, error) {
	to, err := os.MkdirTemp(dir, "files-")
	if err != nil {
		return nil, err
	}
	if err := m.WorkloadEntryConfigure(ctx, namespace, group, istiod, to); err != nil {
		return nil, err
	}
	files := map[string]string{}
	for _, name := range []string{"cluster.env", "mesh.yaml", "hosts", "istio-token", "root-cert.pem"} {
		content, err := os.ReadFile(filepath.Join(to, name))
		if err != nil {
			return nil, err
		}
		files[name] = string(content)
	}
	return files, nil
}

// history is what became of the WorkloadEntries.
type history struct {
	mu     sync.Mutex // guards everything below
	states []state
	last   map[string]state // by namespace and name
}

// state is a WorkloadEntry as it was from At on.
type state struct {
	At              time.Time
	Namespace, Name string
	UID             string // another one: it was removed and made again
	Gone            bool
	Healthy         string // status of the condition: "True", "False", or "" without one
	Why             string // its message
	Connected       bool   // istiod has its stream, as the annotations say
}

// follow watches until ctx ends.
func (h *history) follow(ctx context.Context, c *kube.Client) error {
	_, err := c.Wait(ctx, kube.Ref{APIVersion: "networking.istio.io/v1", Kind: "WorkloadEntry"}, func(now []kube.Object) bool {
		h.note(now)
		return false
	})
	return err
}

func (h *history) note(now []kube.Object) {
	h.mu.Lock()
	defer h.mu.Unlock()
	at := time.Now()
	present := map[string]state{}
	for _, o := range now {
		s := state{Namespace: o.String("metadata", "namespace"), Name: o.Name(), UID: o.String("metadata", "uid")}
		s.Healthy, s.Why = o.Condition("Healthy")
		annotations := o.Labels("metadata", "annotations")
		s.Connected = annotations["istio.io/workloadController"] != "" && annotations["istio.io/disconnectedAt"] == ""
		present[s.Namespace+"/"+s.Name] = s
	}
	for key, s := range present {
		if h.last[key] != s {
			s.At = at
			h.states = append(h.states, s)
		}
	}
	for key, s := range h.last {
		if _, there := present[key]; !there {
			s.At, s.Gone = at, true
			h.states = append(h.states, s)
		}
	}
	h.last = present
}

func (h *history) all() []state {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]state{}, h.states...)
}
