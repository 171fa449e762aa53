package sds

import (
	"maps"
	"slices"
	"sync"
)

// store holds the secrets as they are now, and who waits for changes.
type store struct {
	mu      sync.Mutex // guards everything below
	secrets map[string]secret
	wanted  map[string]int // names of files → streams that want them
	streams map[chan struct{}]bool
	asked   chan struct{} // buffered 1: the set of wanted names changed
}

func newStore() *store {
	return &store{secrets: map[string]secret{}, wanted: map[string]int{}, streams: map[chan struct{}]bool{}, asked: make(chan struct{}, 1)}
}

func (s *store) lookup(name string) (secret, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := s.secrets[name]
	return v, ok
}

// put replaces values and wakes every stream if one of them is another than before. What is not among them stays.
func (s *store) put(values map[string]secret) (changed []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, v := range values {
		if r, err := parseName(name); err != nil || r.isFile() && s.wanted[name] == 0 || s.secrets[name].version == v.version {
			continue // nobody wants that file any more, or nothing new
		}
		s.secrets[name] = v
		changed = append(changed, name)
	}
	if len(changed) > 0 {
		for wake := range s.streams {
			poke(wake)
		}
	}
	slices.Sort(changed)
	return changed
}

// join makes a stream known; wake tells it of changes until leave.
func (s *store) join() (wake chan struct{}) {
	wake = make(chan struct{}, 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.streams[wake] = true
	return wake
}

func (s *store) leave(wake chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.streams, wake)
}

// want counts the streams that want each name of a file. A file that nobody wants any more is forgotten.
func (s *store) want(added, dropped []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	changed := false
	for _, name := range added {
		if r, err := parseName(name); err == nil && r.isFile() {
			s.wanted[name]++
			changed = true
		}
	}
	for _, name := range dropped {
		if s.wanted[name] == 0 {
			continue
		}
		if s.wanted[name]--; s.wanted[name] == 0 {
			delete(s.wanted, name)
			delete(s.secrets, name)
		}
		changed = true
	}
	if changed {
		poke(s.asked)
	}
}

// files lists the wanted names of files, in order.
func (s *store) files() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.wanted))
}

func (s *store) count() (streams int, secrets map[string]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	secrets = make(map[string]string, len(s.secrets))
	for name, v := range s.secrets {
		secrets[name] = v.version
	}
	return len(s.streams), secrets
}

// poke leaves a word in a channel that holds one.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
