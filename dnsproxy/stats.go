package dnsproxy

import (
	"slices"
	"time"
)

// Stats is a server's state for people, in the JSON of `wingman status`.
type Stats struct {
	TableVersion string            `json:"tableVersion"`
	TableNames   int               `json:"tableNames"`
	TableLeftOut int               `json:"tableLeftOut,omitempty"` // names that are not in it, or not whole: see LeftOut
	TableSince   time.Time         `json:"tableSince,omitzero"`
	Queries      uint64            `json:"queries"` // answered
	BySource     map[string]uint64 `json:"bySource"`
	Waiting      int               `json:"waiting"` // clients waiting for upstream now
	CacheEntries int               `json:"cacheEntries"`
	CacheBytes   int               `json:"cacheBytes"`
	Upstreams    []UpstreamStats   `json:"upstreams"`
}

// UpstreamStats is what is known of one upstream resolver.
type UpstreamStats struct {
	Address   string        `json:"address"`
	Suffix    string        `json:"suffix,omitempty"` // of split DNS; empty for the default
	Healthy   bool          `json:"healthy"`
	Looping   bool          `json:"looping,omitempty"`  // leads back to this agent and is not asked
	Latency   time.Duration `json:"latencyNanoseconds"` // smoothed; 0 before the first answer
	LastError string        `json:"lastError,omitempty"`
}

// Stats returns a snapshot.
func (s *Server) Stats() Stats {
	now := s.table.Load()
	st := Stats{TableVersion: now.Version(), TableNames: now.Len(), TableLeftOut: len(now.LeftOut("")), TableSince: now.since, BySource: map[string]uint64{}}
	s.metrics.each(func(_, _, _, from string, n uint64) {
		st.Queries += n
		st.BySource[from] += n
	})
	st.CacheEntries, st.CacheBytes = s.cache.usage()
	f := s.forward
	f.mu.Lock()
	defer f.mu.Unlock()
	st.Waiting = f.waiting
	for _, r := range f.routes {
		for _, u := range slices.Concat(r.servers, r.backup) {
			us := UpstreamStats{Address: u.label, Healthy: !u.down() && !u.looping, Looping: u.looping, Latency: u.srtt, LastError: u.lastError}
			if len(r.suffix) > 0 {
				us.Suffix = nameOf(r.suffix)
			}
			st.Upstreams = append(st.Upstreams, us)
		}
	}
	return st
}
