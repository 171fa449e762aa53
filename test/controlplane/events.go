package controlplane

import (
	"context"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
)

// EventKind says what happened.
type EventKind string

// What a Server records.
const (
	CertificateIssued  EventKind = "certificate issued"
	CertificateRefused EventKind = "certificate refused"
	StreamOpened       EventKind = "stream opened" // the first request was accepted
	StreamRefused      EventKind = "stream refused"
	StreamClosed       EventKind = "stream closed"
	RequestReceived    EventKind = "request received" // a subscription: neither ACK nor NACK nor health
	Pushed             EventKind = "pushed"
	Acked              EventKind = "acked"
	Nacked             EventKind = "nacked"
	StaleNonce         EventKind = "stale nonce"
	HealthReported     EventKind = "health reported"
	// Violation is a client's request that istiod answers with a crash or not at all: Detail says which.
	Violation      EventKind = "violation"
	EntryCreated   EventKind = "entry created"
	EntryConnected EventKind = "entry connected" // a further stream of an entry that was there
	EntryLeft      EventKind = "entry left"      // its last stream closed, the grace period runs
	EntryRemoved   EventKind = "entry removed"
)

// Event is one thing that happened. Fields that do not fit its kind are zero.
type Event struct {
	At       time.Time  `json:"at"`
	Kind     EventKind  `json:"kind"`
	Stream   uint64     `json:"stream,omitempty"` // counts streams from 1
	Node     string     `json:"node,omitempty"`   // node id
	Delta    bool       `json:"delta,omitempty"`
	TypeURL  string     `json:"typeUrl,omitempty"`
	Version  string     `json:"version,omitempty"`
	Nonce    string     `json:"nonce,omitempty"`
	Names    []string   `json:"names,omitempty"` // resource names subscribed
	Entry    string     `json:"entry,omitempty"` // namespace/name
	Healthy  bool       `json:"healthy,omitempty"`
	Identity string     `json:"identity,omitempty"`
	By       string     `json:"by,omitempty"` // ByCertificate or ByToken
	Serial   string     `json:"serial,omitempty"`
	NotAfter time.Time  `json:"notAfter,omitzero"`
	Code     codes.Code `json:"code,omitempty"`
	Detail   string     `json:"detail,omitempty"`
}

// String is one line for a failing test.
func (e Event) String() string {
	line := fmt.Sprintf("%s %s", e.At.Format("15:04:05.000"), e.Kind)
	for _, f := range []struct{ key, value string }{
		{"stream", fmt.Sprint(e.Stream)}, {"type", shortType(e.TypeURL)}, {"entry", e.Entry}, {"identity", e.Identity},
		{"by", e.By}, {"nonce", e.Nonce}, {"detail", e.Detail},
	} {
		if f.value != "" && f.value != "0" {
			line += " " + f.key + "=" + f.value
		}
	}
	if e.Code != codes.OK {
		line += " code=" + e.Code.String()
	}
	return line
}

// note records e with the time of now and wakes everyone who waits.
func (s *Server) note(e Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.noteLocked(e)
}

func (s *Server) noteLocked(e Event) {
	e.At = time.Now()
	s.events = append(s.events, e)
	s.wakeLocked()
	s.log.Info(string(e.Kind), "stream", e.Stream, "type", shortType(e.TypeURL), "entry", e.Entry, "identity", e.Identity,
		"code", e.Code, "detail", e.Detail)
}

// wakeLocked lets every await look again.
func (s *Server) wakeLocked() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// await calls look with s.mu held, now and after each change, until it reports true or ctx ends.
func await[T any](ctx context.Context, s *Server, look func() (T, bool)) (T, error) {
	for {
		s.mu.Lock()
		v, ok := look()
		changed := s.changed
		s.mu.Unlock()
		if ok {
			return v, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return v, context.Cause(ctx)
		}
	}
}

// Events returns everything that happened so far, oldest first.
func (s *Server) Events() []Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.events)
}

// WaitEvent returns the first event, from the start or yet to come, for which match is true.
func (s *Server) WaitEvent(ctx context.Context, match func(Event) bool) (Event, error) {
	return s.WaitEventAfter(ctx, 0, match)
}

// WaitEventAfter is WaitEvent without the first n events: take len(Events()) before the act whose effect is awaited.
func (s *Server) WaitEventAfter(ctx context.Context, n int, match func(Event) bool) (Event, error) {
	seen := n
	e, err := await(ctx, s, func() (Event, bool) {
		for ; seen < len(s.events); seen++ {
			if match(s.events[seen]) {
				return s.events[seen], true
			}
		}
		return Event{}, false
	})
	if err != nil {
		return e, fmt.Errorf("wait for an event, %d seen: %w", seen, err)
	}
	return e, nil
}
