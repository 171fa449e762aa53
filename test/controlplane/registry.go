package controlplane

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Group is a WorkloadGroup, as far as registration reads it.
type Group struct {
	Namespace, Name string
	// ServiceAccount and Network are those of the template. The caller's identity must have that account, if it is set;
	// a network in the node wins over this one.
	ServiceAccount, Network string
	// Labels are spec.metadata.labels; they win over TemplateLabels (spec.template.labels), and the node's over both.
	Labels, TemplateLabels map[string]string
}

// Entry is the WorkloadEntry of one VM.
type Entry struct {
	Name           string            `json:"name"`
	Namespace      string            `json:"namespace"`
	Group          string            `json:"group"`
	Node           string            `json:"node"` // id of the node that made it
	Address        string            `json:"address"`
	Network        string            `json:"network,omitempty"`
	ServiceAccount string            `json:"serviceAccount,omitempty"`
	Locality       string            `json:"locality,omitempty"`
	Labels         map[string]string `json:"labels,omitempty"`
	// HealthChecked means that the node had a readinessProbe when it made the entry: then Condition counts.
	HealthChecked bool       `json:"healthChecked"`
	Condition     *Condition `json:"condition,omitempty"` // type Healthy; nil before the first report
	Connected     bool       `json:"connected"`
	ConnectedAt   time.Time  `json:"connectedAt,omitzero"`
	LeftAt        time.Time  `json:"leftAt,omitzero"` // when its last stream closed; zero while one is open
}

// Condition is status.conditions[type=Healthy].
type Condition struct {
	Status  string    `json:"status"` // "True" or "False"
	Message string    `json:"message,omitempty"`
	At      time.Time `json:"at"`
}

// Serving reports whether the mesh sends traffic to the entry: an entry that is health checked and has no verdict yet
// gets none. Istio: pilot/pkg/serviceregistry/serviceentry/conversion.go.
func (e Entry) Serving() bool {
	return !e.HealthChecked || e.Condition != nil && e.Condition.Status == "True"
}

// entry is an Entry with what only the registry knows.
type entry struct {
	Entry
	streams  map[uint64]bool
	instance int // which Start of the server controls it
	timer    *time.Timer
}

func (e *entry) snapshot() Entry {
	out := e.Entry
	out.Labels = maps.Clone(e.Labels)
	if e.Condition != nil {
		c := *e.Condition
		out.Condition = &c
	}
	out.Connected = len(e.streams) > 0
	return out
}

// AddGroup creates or replaces a WorkloadGroup.
func (s *Server) AddGroup(g Group) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.groups[objectKey{g.Namespace, g.Name}] = g
	s.wakeLocked()
}

// RemoveGroup deletes a WorkloadGroup; entries made from it stay.
func (s *Server) RemoveGroup(namespace, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.groups, objectKey{namespace, name})
	s.wakeLocked()
}

// Entries returns the WorkloadEntries, sorted by namespace and name.
func (s *Server) Entries() []Entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.entriesLocked()
}

func (s *Server) entriesLocked() []Entry {
	keys := slices.SortedFunc(maps.Keys(s.entries), func(a, b objectKey) int {
		switch {
		case a.String() < b.String():
			return -1
		case a.String() > b.String():
			return 1
		}
		return 0
	})
	out := make([]Entry, 0, len(keys))
	for _, k := range keys {
		out = append(out, s.entries[k].snapshot())
	}
	return out
}

// WaitEntry returns the first entry for which match is true, as soon as there is one.
func (s *Server) WaitEntry(ctx context.Context, match func(Entry) bool) (Entry, error) {
	e, err := await(ctx, s, func() (Entry, bool) {
		for _, e := range s.entriesLocked() {
			if match(e) {
				return e, true
			}
		}
		return Entry{}, false
	})
	if err != nil {
		return e, fmt.Errorf("wait for an entry, there are %+v: %w", s.Entries(), err)
	}
	return e, nil
}

// WaitEntries blocks until match is true of all entries together.
func (s *Server) WaitEntries(ctx context.Context, match func([]Entry) bool) error {
	_, err := await(ctx, s, func() (struct{}, bool) { return struct{}{}, match(s.entriesLocked()) })
	return err
}

// WaitNoEntry blocks until no entry has that name.
func (s *Server) WaitNoEntry(ctx context.Context, namespace, name string) error {
	_, err := await(ctx, s, func() (struct{}, bool) {
		_, there := s.entries[objectKey{namespace, name}]
		return struct{}{}, !there
	})
	if err != nil {
		return fmt.Errorf("wait for entry %s/%s to go: %w", namespace, name, err)
	}
	return nil
}

// connectLocked registers a stream's node: the entry is made from the group, or an entry that is there is taken over.
func (s *Server) connectLocked(st *stream) error {
	name := st.node.entryName()
	if name == "" {
		return nil
	}
	key := objectKey{st.node.namespace, name}
	e := s.entries[key]
	if e != nil {
		if err := mayControl(st.caller, e.Entry); err != nil {
			return err
		}
	} else {
		g, ok := s.groups[objectKey{st.node.namespace, st.node.group}]
		if !ok {
			return status.Errorf(codes.FailedPrecondition, "auto-registration WorkloadEntry of %v failed: cannot find WorkloadGroup %s/%s",
				st.node.id, st.node.namespace, st.node.group)
		}
		made := st.node.entry(g)
		if err := mayControl(st.caller, made); err != nil {
			return err
		}
		e = &entry{Entry: made, streams: map[uint64]bool{}}
		s.entries[key] = e
	}
	kind := EntryConnected
	if e.ConnectedAt.IsZero() {
		kind = EntryCreated
	}
	if e.timer != nil {
		e.timer.Stop()
		e.timer = nil
	}
	e.streams[st.id] = true
	e.instance = s.instance
	e.ConnectedAt, e.LeftAt = time.Now(), time.Time{}
	st.entry = key
	s.noteLocked(Event{Kind: kind, Stream: st.id, Node: st.node.id, Entry: key.String(), Identity: st.caller.identity})
	return nil
}

// disconnectLocked ends a stream's hold on its entry. The last one starts the grace period, unless the whole control
// plane was stopped: a dead istiod removes nothing.
func (s *Server) disconnectLocked(st *stream) {
	e := s.entries[st.entry]
	if st.entry.name == "" || e == nil || !e.streams[st.id] {
		return
	}
	delete(e.streams, st.id)
	if len(e.streams) > 0 || !s.running {
		s.wakeLocked()
		return
	}
	key, instance := st.entry, s.instance
	e.LeftAt = time.Now()
	e.timer = time.AfterFunc(s.cfg.Grace, func() { s.removeEntry(key, e, instance) })
	s.noteLocked(Event{Kind: EntryLeft, Stream: st.id, Node: st.node.id, Entry: key.String()})
}

// removeEntry runs when a grace period ends; whoever came back in time has made it pointless.
func (s *Server) removeEntry(key objectKey, e *entry, instance int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.entries[key] != e || len(e.streams) > 0 || e.LeftAt.IsZero() || !s.running || s.instance != instance {
		return
	}
	delete(s.entries, key)
	s.noteLocked(Event{Kind: EntryRemoved, Node: e.Node, Entry: key.String()})
}

// reportLocked writes a health verdict into the stream's entry. Each report replaces the condition, also an equal one.
// Istio: pilot/pkg/autoregistration/internal/health/controller.go.
func (s *Server) reportLocked(st *stream, healthy bool, message string) {
	ev := Event{Kind: HealthReported, Stream: st.id, Node: st.node.id, Delta: st.delta, Healthy: healthy, Detail: message, Entry: st.entry.String()}
	e := s.entries[st.entry]
	if e == nil || e.instance != s.instance {
		ev.Kind, ev.Detail, ev.Entry = Violation, "health report of a node without an entry", ""
		s.noteLocked(ev)
		return
	}
	e.Condition = &Condition{Status: "False", Message: message, At: time.Now()}
	if healthy {
		e.Condition = &Condition{Status: "True", At: time.Now()}
	}
	s.noteLocked(ev)
}
