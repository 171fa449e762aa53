package sds

import (
	"maps"
	"slices"
)

// Report is what a Server knows of itself.
type Report struct {
	Streams int            `json:"streams"` // Envoy opens one for each secret
	Secrets []SecretReport `json:"secrets"` // sorted by name
	// LastRefusal is why Envoy did not take a secret, the last time it did not.
	LastRefusal string `json:"last_refusal,omitempty"`
}

// SecretReport is one secret.
type SecretReport struct {
	Name    string `json:"name"`
	Version string `json:"version,omitempty"` // of the content that is served; empty: none yet
	Problem string `json:"problem,omitempty"` // what is wrong with its files; what is served then is older
}

// Report returns a snapshot.
func (s *Server) Report() Report {
	streams, versions := s.store.count()
	s.mu.Lock()
	defer s.mu.Unlock()
	names := map[string]bool{}
	for name := range versions {
		names[name] = true
	}
	for name := range s.troubles {
		names[name] = true
	}
	r := Report{Streams: streams, Secrets: []SecretReport{}, LastRefusal: s.lastRefusal}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		r.Secrets = append(r.Secrets, SecretReport{Name: name, Version: versions[name], Problem: s.troubles[name]})
	}
	return r
}
