package dnsproxy

import (
	"encoding/binary"
	"slices"
	"sync/atomic"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
)

// Metric names. Labels come from the small sets below; a queried name is never one.
const (
	metricQueries        = "wingman_dnsproxy_queries_total"
	metricDropped        = "wingman_dnsproxy_dropped_total"
	metricOverload       = "wingman_dnsproxy_overload_total"
	metricUpstreamTime   = "wingman_dnsproxy_upstream_duration_seconds"
	metricUpstreamFails  = "wingman_dnsproxy_upstream_failures_total"
	metricConnections    = "wingman_dnsproxy_upstream_connections_total"
	metricUpstreamBogus  = "wingman_dnsproxy_upstream_bogus_total"
	metricUpstreamUp     = "wingman_dnsproxy_upstream_healthy"
	metricWait           = "wingman_dnsproxy_wait_seconds"
	metricCacheEntries   = "wingman_dnsproxy_cache_entries"
	metricCacheBytes     = "wingman_dnsproxy_cache_bytes"
	metricTableNames     = "wingman_dnsproxy_table_names"
	metricTableLeftOut   = "wingman_dnsproxy_table_left_out"
	metricTableTimestamp = "wingman_dnsproxy_table_timestamp_seconds"
)

// transport is how a question came.
type transport uint8

const (
	overUDP transport = iota
	overTCP
	transports
)

func (t transport) String() string { return [...]string{"udp", "tcp"}[t] }

// source is where an answer comes from.
type source uint8

const (
	fromMesh source = iota
	fromCache
	fromStale
	fromUpstream
	fromLocal   // answered here without any table: localhost
	fromRefused // malformed, not supported, over the limit
	sources
)

func (s source) String() string {
	return [...]string{"mesh", "cache", "stale", "upstream", "local", "refused"}[s]
}

// countedTypes and countedRcodes are label values; index 0 is what is none of them.
var (
	countedTypes = [...]uint16{0, dns.TypeA, dns.TypeAAAA, dns.TypePTR, dns.TypeSRV, dns.TypeTXT, dns.TypeMX, dns.TypeHTTPS,
		dns.TypeSOA, dns.TypeNS, dns.TypeCNAME, dns.TypeANY}
	countedRcodes = [...]int{-1, dns.RcodeSuccess, dns.RcodeFormatError, dns.RcodeServerFailure, dns.RcodeNameError,
		dns.RcodeNotImplemented, dns.RcodeRefused, dns.RcodeBadVers}
)

// typeIndex maps a query type to its place in countedTypes.
var typeIndex = func() (index [256]uint8) {
	for i, t := range countedTypes {
		index[t] = uint8(i)
	}
	return index
}()

// counters counts answers. Adding takes no lock.
type counters struct {
	answers [transports][len(countedTypes)][len(countedRcodes)][sources]atomic.Uint64
	dropped atomic.Uint64
}

// add counts one answer; msg is its wire form.
func (c *counters) add(via transport, qtype uint16, msg []byte, from source) {
	typ := uint8(0)
	if qtype < uint16(len(typeIndex)) {
		typ = typeIndex[qtype]
	}
	rcode := 0
	switch r := int(msg[3] & rcodeMask); {
	case r <= dns.RcodeRefused && from != fromRefused && from != fromUpstream: // no others have an extended one
		rcode = r + 1
	default:
		rcode = 1 + slices.Index(countedRcodes[1:], extendedRcode(msg))
	}
	c.answers[via][typ][rcode][from].Add(1)
}

// extendedRcode is the response code of msg with the octet of it that an OPT has (RFC 6891 section 6.1.3).
func extendedRcode(msg []byte) int {
	rcode := int(msg[3] & rcodeMask)
	if l, ok := walk(msg); ok && l.opt != 0 {
		rcode |= int(msg[l.opt+5]) << 4
	}
	return rcode
}

// questionType is the type asked for in msg, 0 if there is none.
func questionType(msg []byte) uint16 {
	if len(msg) < headerSize || binary.BigEndian.Uint16(msg[4:]) == 0 {
		return 0
	}
	if at := skipName(msg, headerSize); at != 0 && at+4 <= len(msg) {
		return binary.BigEndian.Uint16(msg[at:])
	}
	return 0
}

// waitBuckets are upper bounds in seconds.
var waitBuckets = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5}

// metrics is what the server shows to Prometheus.
type metrics struct {
	counters
	stats       func() Stats // for what is a state
	overload    prometheus.Counter
	took        *prometheus.HistogramVec // by upstream
	failures    *prometheus.CounterVec   // by upstream and reason
	connections *prometheus.CounterVec   // by upstream
	waits       [sources]prometheus.Observer
	waited      *prometheus.HistogramVec // by source; its observers are waits
	bogus       prometheus.Counter

	queries, drops, names, leftOut, since, entries, bytes, healthy *prometheus.Desc
}

func newMetrics(stats func() Stats) *metrics {
	m := &metrics{
		stats: stats,
		waited: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: metricWait,
			Help:    "Time that clients waited for answers that had to be asked for, by source. Answers at once are not in it.",
			Buckets: waitBuckets}, []string{"source"}),
		overload: prometheus.NewCounter(prometheus.CounterOpts{Name: metricOverload,
			Help: "Questions answered SERVFAIL because too many were waiting for upstream."}),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: metricUpstreamTime,
			Help:    "Time from asking an upstream to its answer. Istio: dns_upstream_request_duration_seconds.",
			Buckets: waitBuckets}, []string{"upstream"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{Name: metricUpstreamFails,
			Help: "Questions an upstream did not answer usefully, by reason. Istio: dns_upstream_failures_total."}, []string{"upstream", "reason"}),
		connections: prometheus.NewCounterVec(prometheus.CounterOpts{Name: metricConnections,
			Help: "TCP connections opened to an upstream, each for many questions."}, []string{"upstream"}),
		bogus: prometheus.NewCounter(prometheus.CounterOpts{Name: metricUpstreamBogus,
			Help: "Messages from upstream addresses that answered no question of ours: late, wrong id, another question, garbage."}),
		queries: prometheus.NewDesc(metricQueries,
			"Answers by transport, query type, response code and source. Istio: dns_requests_total.", []string{"transport", "type", "rcode", "source"}, nil),
		drops:   prometheus.NewDesc(metricDropped, "Packets without an answer: responses, or too short for a header.", nil, nil),
		names:   prometheus.NewDesc(metricTableNames, "Names in the table, short forms not counted.", nil, nil),
		leftOut: prometheus.NewDesc(metricTableLeftOut, "Names that istiod sent and that are not in the table, or not whole, because DNS cannot carry them.", nil, nil),
		since:   prometheus.NewDesc(metricTableTimestamp, "When the table in use came, in Unix time. Absent without a table.", nil, nil),
		entries: prometheus.NewDesc(metricCacheEntries, "Upstream answers in the cache, stale ones included.", nil, nil),
		bytes:   prometheus.NewDesc(metricCacheBytes, "Memory of the cache.", nil, nil),
		healthy: prometheus.NewDesc(metricUpstreamUp, "1 while an upstream answers and does not lead back to this agent.", []string{"upstream"}, nil),
	}
	for _, from := range []source{fromMesh, fromStale, fromUpstream, fromRefused} { // what ends a wait
		m.waits[from] = m.waited.WithLabelValues(from.String())
	}
	return m
}

// Describe is the prometheus.Collector's.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.queries, m.drops, m.names, m.leftOut, m.since, m.entries, m.bytes, m.healthy} {
		ch <- d
	}
	m.overload.Describe(ch)
	m.bogus.Describe(ch)
	m.took.Describe(ch)
	m.waited.Describe(ch)
	m.failures.Describe(ch)
	m.connections.Describe(ch)
}

// Collect is the prometheus.Collector's.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	m.each(func(via, qtype, rcode, from string, n uint64) {
		ch <- prometheus.MustNewConstMetric(m.queries, prometheus.CounterValue, float64(n), via, qtype, rcode, from)
	})
	ch <- prometheus.MustNewConstMetric(m.drops, prometheus.CounterValue, float64(m.dropped.Load()))
	now := m.stats()
	ch <- prometheus.MustNewConstMetric(m.names, prometheus.GaugeValue, float64(now.TableNames))
	ch <- prometheus.MustNewConstMetric(m.leftOut, prometheus.GaugeValue, float64(now.TableLeftOut))
	if !now.TableSince.IsZero() {
		ch <- prometheus.MustNewConstMetric(m.since, prometheus.GaugeValue, float64(now.TableSince.UnixMilli())/1000)
	}
	ch <- prometheus.MustNewConstMetric(m.entries, prometheus.GaugeValue, float64(now.CacheEntries))
	ch <- prometheus.MustNewConstMetric(m.bytes, prometheus.GaugeValue, float64(now.CacheBytes))
	shown := map[string]bool{} // a server may be on several routes
	for _, u := range now.Upstreams {
		if !shown[u.Address] {
			healthy := 0.0
			if u.Healthy {
				healthy = 1
			}
			ch <- prometheus.MustNewConstMetric(m.healthy, prometheus.GaugeValue, healthy, u.Address)
		}
		shown[u.Address] = true
	}
	m.overload.Collect(ch)
	m.bogus.Collect(ch)
	m.took.Collect(ch)
	m.waited.Collect(ch)
	m.failures.Collect(ch)
	m.connections.Collect(ch)
}

// each visits the counters that are not zero.
func (c *counters) each(visit func(via, qtype, rcode, from string, n uint64)) {
	for via := range c.answers {
		for typ := range c.answers[via] {
			for rcode := range c.answers[via][typ] {
				for from := range c.answers[via][typ][rcode] {
					if n := c.answers[via][typ][rcode][from].Load(); n > 0 {
						visit(transport(via).String(), typeLabel(typ), rcodeLabel(rcode), source(from).String(), n)
					}
				}
			}
		}
	}
}

func typeLabel(i int) string {
	if i == 0 {
		return "other"
	}
	return dns.TypeToString[countedTypes[i]]
}

func rcodeLabel(i int) string {
	if i == 0 {
		return "other"
	}
	if countedRcodes[i] == dns.RcodeBadVers {
		return "BADVERS" // miekg/dns has BADSIG for the number
	}
	return dns.RcodeToString[countedRcodes[i]]
}
