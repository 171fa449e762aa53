package stock

import "google.golang.org/protobuf/encoding/protowire"

// How long Envoy asks for a name that no resolver answers for. It holds every listener back until each cluster with a name has been answered for or
// given up, and istiod leaves it to Envoy's own numbers (5 s, 4 attempts): with a silent resolver that is a minute without any traffic. With
// these it is 7 s with one resolver and 3 s with three. What was not answered is asked for again soon, rather than at the next refresh.
const (
	lookupSeconds  = 1 // of the first attempt at each resolver; doubled with each round
	lookupAttempts = 3
	retrySeconds   = 1 // after a failure; grows to the next
	retryMost      = 10
)

// hasten and retry are what is appended to a CaresDnsResolverConfig and to the cluster around it.
var (
	hasten = append(embed(6, number(1, lookupSeconds)), embed(7, number(1, lookupAttempts))...)      // query_timeout_seconds, query_tries
	retry  = embed(44, append(embed(1, number(1, retrySeconds)), embed(2, number(1, retryMost))...)) // dns_failure_refresh_rate
)

// number is a field with a small number.
func number(num protowire.Number, n uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(nil, num, protowire.VarintType), n)
}

// bound appends to the message m, which ends at to, what bounds the patience with silent resolvers. A resolver with numbers of its own keeps them.
func (r *Rewriter) bound(m *message, to int) (grown int) {
	text := hasten
	switch {
	case r.facts&(asksNames|ownPatience) != asksNames:
		return 0
	case m == &cluster && r.facts&ownRetry != 0:
		return 0
	case m == &cluster:
		text = retry
	default:
		r.report.Bounded++
	}
	r.patches = append(r.patches, patch{at: to, end: to, text: text})
	return len(text)
}
