package sds

import (
	"fmt"
	"slices"
	"strconv"
)

// Bounds of one stream.
const (
	maxNames = 1000 // wanted
	maxOpen  = 32   // responses that wait for an answer; older ones are forgotten
)

// request is what a client says, in either protocol.
type request struct {
	subscribe   []string
	unsubscribe []string
	only        bool              // subscribe is the whole of what the client wants (state of the world)
	have        map[string]string // versions that the client has from an earlier stream
	nonce       string            // of the response this answers; empty: none
	refusal     string            // why the client refused it; empty: it did not
}

// session is what one stream knows: what the client wants and what it was sent. It is pure; one goroutine uses it.
type session struct {
	wanted map[string]string // name → version sent last; empty: none yet
	gone   map[string]bool   // wanted names that were answered as removed
	sent   map[string]batch  // responses not answered yet, by nonce
	count  int
}

// batch is what one response carried.
type batch []string

func newSession() *session {
	return &session{wanted: map[string]string{}, gone: map[string]bool{}, sent: map[string]batch{}}
}

// apply takes a request in. refused names what the client did not take; added and dropped are the names whose subscription
// began and ended.
func (s *session) apply(r request) (refused, added, dropped []string, err error) {
	if answered, ok := s.sent[r.nonce]; ok {
		delete(s.sent, r.nonce)
		if r.refusal != "" {
			refused = answered
		}
	}
	drop := func(name string) {
		if _, ok := s.wanted[name]; ok {
			delete(s.wanted, name)
			delete(s.gone, name)
			dropped = append(dropped, name)
		}
	}
	if r.only {
		for name := range s.wanted {
			if !slices.Contains(r.subscribe, name) {
				drop(name)
			}
		}
	}
	for _, name := range r.unsubscribe {
		drop(name)
	}
	for _, name := range r.subscribe {
		_, known := s.wanted[name]
		if known && r.only {
			continue // an ACK repeats the names
		}
		if !known {
			added = append(added, name)
		}
		s.wanted[name] = r.have[name]
		delete(s.gone, name)
	}
	if len(s.wanted) > maxNames {
		return refused, added, dropped, fmt.Errorf("%d names on one stream: expected at most %d", len(s.wanted), maxNames)
	}
	return refused, added, dropped, nil
}

// named is a secret with its resource name.
type named struct {
	name string
	secret
}

// due returns what the client wants and has not been sent, in order, and the names it wants that can be nothing. It is for one
// response: it counts as sent under the nonce.
func (s *session) due(lookup func(name string) (secret, bool)) (nonce string, changed []named, impossible []string) {
	var names batch
	for name, version := range s.wanted {
		if _, err := parseName(name); err != nil {
			if !s.gone[name] {
				impossible = append(impossible, name)
			}
			continue
		}
		if now, ok := lookup(name); ok && now.version != version {
			changed = append(changed, named{name, now})
			names = append(names, name)
		}
	}
	if len(changed) == 0 && len(impossible) == 0 {
		return "", nil, nil
	}
	slices.SortFunc(changed, func(a, b named) int { return slices.Compare([]byte(a.name), []byte(b.name)) })
	slices.Sort(impossible)
	for _, c := range changed {
		s.wanted[c.name] = c.version
	}
	for _, name := range impossible {
		s.gone[name] = true
	}
	s.count++
	nonce = strconv.Itoa(s.count)
	s.sent[nonce] = names
	delete(s.sent, strconv.Itoa(s.count-maxOpen))
	return nonce, changed, impossible
}
