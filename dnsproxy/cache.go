package dnsproxy

import (
	"encoding/binary"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

const (
	defaultCacheBytes = 4 << 20
	maxCachedAnswer   = 4096
	entryOverhead     = 256 // of the maps and structs, about

	// maxTTL bounds trust in an answer: a changed network must show within the hour at the latest.
	maxTTL = time.Hour
	// maxNegativeTTL is RFC 2308 section 5's advice, made shorter for machines whose services come and go.
	maxNegativeTTL = 5 * time.Minute
	// staleTTL is the life of an answer given beyond its own (RFC 8767 section 5).
	staleTTL = 30
	// failureRecheck is how long after a failure clients get a stale answer at once (RFC 8767 section 5).
	failureRecheck = 30 * time.Second

	// an answer asked for prefetchHits times is asked for anew when a tenth of its life is left
	prefetchHits  = 3
	prefetchShare = 10
	prefetchTTL   = 10 * time.Second // and only if its life is worth it
)

// cache holds answers of upstreams, ready to be written after a question. It keeps to a size in bytes by SIEVE: entries stay
// in the order they came; the hand goes from the oldest to the newest and evicts the first that has not been asked for since
// it last passed. A hit takes a read lock and moves nothing.
type cache struct {
	limit    int
	maxStale time.Duration

	mu      sync.RWMutex // guards everything below
	entries map[string]*cached
	bytes   int
	newest  *cached // ends of the list
	oldest  *cached
	hand    *cached
}

// cached is one answer. But for the atomics and the list it does not change.
type cached struct {
	key     string
	tail    []byte   // the message after its question, without OPT
	ttls    []uint16 // offsets of TTL fields in tail
	counts  [6]byte  // of answer, authority and additional section
	rcode   byte
	ad      bool
	stored  instant
	expires instant

	// the records that rotate: all of one size, type and owner, the last of the answer section
	rotateAt, rotateSize, rotateCount int

	hits        atomic.Uint32
	visited     atomic.Bool
	prefetching atomic.Bool
	failed      atomic.Int64 // the instant when it was last asked for anew in vain; 0: never

	newer, older *cached // guarded by cache.mu
}

// instant is a point in time: nanoseconds on the monotonic clock since the process began.
type instant int64

var processStart = time.Now()

func now() instant { return instant(time.Since(processStart)) }

func newCache(limit int, maxStale time.Duration) *cache {
	return &cache{limit: limit, maxStale: maxStale, entries: make(map[string]*cached)}
}

// Cache keys are a name's key, the type and the flags that change an answer.
const (
	keyCD = 1 << iota
	keyAD
	keyDO
)

// cacheKey appends to the question's own key what else makes it; nil if its answer is not for others: it asks without
// recursion, in another class, or with options. msg is the question; the key lies in q's scratch room.
func (q *query) cacheKey(msg []byte) []byte {
	if q.qclass != dns.ClassINET || msg[2]&flagRD == 0 || q.private {
		return nil
	}
	flags := byte(0)
	if msg[3]&flagCD != 0 {
		flags |= keyCD
	}
	if msg[3]&flagAD != 0 {
		flags |= keyAD
	}
	if q.do {
		flags |= keyDO
	}
	key := q.key[:q.n+4]
	key[q.n] = 0 // ends the name
	binary.BigEndian.PutUint16(key[q.n+1:], q.qtype)
	key[q.n+3] = flags
	return key
}

// get finds the answer for a key. fresh is false for one that has outlived its TTL but may still serve as a stale one.
func (c *cache) get(key []byte, at instant) (e *cached, fresh bool) {
	c.mu.RLock()
	e = c.entries[string(key)]
	c.mu.RUnlock()
	if e == nil || at >= e.expires+instant(c.maxStale) {
		return nil, false
	}
	if !e.visited.Load() {
		e.visited.Store(true)
	}
	return e, at < e.expires
}

// find is get for a question, which msg is and q holds parsed.
func (c *cache) find(q *query, msg []byte, at instant) (e *cached, fresh bool) {
	key := q.cacheKey(msg)
	if key == nil {
		return nil, false
	}
	return c.get(key, at)
}

// put keeps an upstream's answer, if it is one to keep.
func (c *cache) put(key string, answer []byte, at instant) {
	e := newCached(key, answer, at)
	if e == nil || c.limit <= 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if old := c.entries[key]; old != nil {
		e.visited.Store(old.visited.Load())
		c.removeLocked(old)
	}
	c.entries[key] = e
	c.bytes += e.size()
	if e.older = c.newest; e.older != nil {
		e.older.newer = e
	} else {
		c.oldest = e
	}
	c.newest = e
	for c.bytes > c.limit {
		c.evictLocked()
	}
}

func (e *cached) size() int { return entryOverhead + len(e.key) + len(e.tail) + 2*len(e.ttls) }

func (c *cache) evictLocked() {
	if c.hand == nil {
		c.hand = c.oldest
	}
	for c.hand.visited.Swap(false) {
		if c.hand = c.hand.newer; c.hand == nil {
			c.hand = c.oldest
		}
	}
	c.removeLocked(c.hand)
}

func (c *cache) removeLocked(e *cached) {
	if c.hand == e {
		c.hand = e.newer
	}
	if e.newer != nil {
		e.newer.older = e.older
	} else {
		c.newest = e.older
	}
	if e.older != nil {
		e.older.newer = e.newer
	} else {
		c.oldest = e.newer
	}
	delete(c.entries, e.key)
	c.bytes -= e.size()
}

// flush forgets everything: other resolvers may have other answers.
func (c *cache) flush() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.entries = make(map[string]*cached)
	c.bytes, c.newest, c.oldest, c.hand = 0, nil, nil, nil
}

// usage is the number of answers held and their size in bytes.
func (c *cache) usage() (entries, bytes int) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return len(c.entries), c.bytes
}

// newCached prepares an answer for the cache; nil if it must not be kept: truncated, an error, without a TTL to go by
// (RFC 2308 section 5: negative answers need their SOA), or of a life of zero.
func newCached(key string, msg []byte, at instant) *cached {
	rcode := msg[3] & rcodeMask
	l, ok := walk(msg)
	if !ok || len(msg) > maxCachedAnswer || msg[2]&flagTC != 0 || rcode != dns.RcodeSuccess && rcode != dns.RcodeNameError ||
		l.opt != 0 && l.optEnd != l.end || binary.BigEndian.Uint16(msg[4:]) != 1 || !sound(msg, l) {
		return nil
	}
	e := &cached{key: key, rcode: rcode, ad: msg[3]&flagAD != 0, stored: at, counts: [6]byte(msg[6:headerSize])}
	end := l.end
	if l.opt != 0 {
		end = l.opt
		binary.BigEndian.PutUint16(e.counts[4:], binary.BigEndian.Uint16(e.counts[4:])-1)
	}
	e.tail = append([]byte(nil), msg[l.question:end]...)
	ttl, negative := maxTTL, rcode == dns.RcodeNameError || binary.BigEndian.Uint16(e.counts[:]) == 0
	soa := false
	records(msg, l, func(r record) {
		if r.at >= end {
			return
		}
		e.ttls = append(e.ttls, uint16(r.ttlAt-l.question))
		ttl = min(ttl, time.Duration(r.ttl)*time.Second)
		if r.section == sectionAuthority && r.rrtype == dns.TypeSOA && r.end-20 >= r.data {
			soa = true
			minimum := binary.BigEndian.Uint32(msg[r.end-4:])
			ttl = min(ttl, time.Duration(minimum)*time.Second)
			// who gets the answer from us goes by this TTL alone
			field := e.tail[r.ttlAt-l.question:]
			binary.BigEndian.PutUint32(field, min(binary.BigEndian.Uint32(field), minimum))
		}
		e.rotates(msg, l, r)
	})
	if negative {
		if ttl = min(ttl, maxNegativeTTL); !soa {
			return nil
		}
	}
	if ttl <= 0 {
		return nil
	}
	e.expires = at + instant(ttl)
	return e
}

// rotates notes record r if it extends the run of address records that may be given in any order.
func (e *cached) rotates(msg []byte, l layout, r record) {
	if r.section != sectionAnswer {
		return
	}
	size := r.end - r.at
	if e.rotateCount > 0 && size == e.rotateSize && r.at-l.question == e.rotateAt+e.rotateCount*size &&
		string(msg[r.at:r.data]) == string(msg[e.rotateAt+l.question:e.rotateAt+l.question+r.data-r.at]) {
		e.rotateCount++
		return
	}
	e.rotateAt, e.rotateSize, e.rotateCount = r.at-l.question, size, 0
	if r.rrtype == dns.TypeA || r.rrtype == dns.TypeAAAA {
		e.rotateCount = 1
	}
}

// write makes the question in buf, parsed into q, its own answer and returns the length, like Table.write; 0 if the answer
// does not fit into limit octets.
func (e *cached) write(buf []byte, q *query, at instant, limit int, rotate uint32) int {
	length := q.end + len(e.tail)
	if q.edns {
		length += optSize
	}
	if length > limit {
		return 0
	}
	tail := buf[q.end : q.end+len(e.tail)]
	e.fill(tail, at, rotate)
	buf[2] = flagQR | buf[2]&flagRD
	buf[3] = flagRA | buf[3]&flagCD | e.rcode
	if e.ad {
		buf[3] |= flagAD
	}
	copy(buf[6:], e.counts[:])
	if q.edns {
		putOPT(buf[q.end+len(e.tail):], q.do)
		binary.BigEndian.PutUint16(buf[10:], binary.BigEndian.Uint16(buf[10:])+1)
	}
	return length
}

// fill writes the records with the time they have left. What is past its time has staleTTL.
func (e *cached) fill(tail []byte, at instant, rotate uint32) {
	copy(tail, e.tail)
	if e.rotateCount > 1 {
		run, from := tail[e.rotateAt:], e.tail[e.rotateAt:e.rotateAt+e.rotateCount*e.rotateSize]
		first := int(rotate%uint32(e.rotateCount)) * e.rotateSize
		copy(run[copy(run, from[first:]):], from[:first])
	}
	age := uint32(max(at-e.stored, 0) / instant(time.Second))
	stale := at >= e.expires
	for _, offset := range e.ttls {
		field := tail[offset:]
		ttl := binary.BigEndian.Uint32(field)
		switch {
		case stale:
			ttl = staleTTL
		case ttl > age:
			ttl = min(ttl-age, uint32(maxTTL/time.Second))
		default:
			ttl = 0
		}
		binary.BigEndian.PutUint32(field, ttl)
	}
}

// failedLately reports that there was no newer answer to be had a short while ago: who asks need not wait for another try.
func (e *cached) failedLately(at instant) bool {
	failed := instant(e.failed.Load())
	return failed != 0 && at-failed < instant(failureRecheck)
}

// message is the answer as an upstream could have given it to query.
func (e *cached) message(query []byte, at instant) []byte {
	end := skipName(query, headerSize) + 4
	msg := make([]byte, end+len(e.tail))
	copy(msg, query[:end])
	e.fill(msg[end:], at, rotation())
	msg[2] = flagQR | query[2]&flagRD
	msg[3] = flagRA | query[3]&flagCD | e.rcode
	if e.ad {
		msg[3] |= flagAD
	}
	copy(msg[6:], e.counts[:])
	return msg
}

// wantsPrefetch reports, once per life, that a popular answer is about to end.
func (e *cached) wantsPrefetch(at instant) bool {
	life := e.expires - e.stored
	if e.hits.Add(1) < prefetchHits || life < instant(prefetchTTL) || e.expires-at > life/prefetchShare {
		return false
	}
	return !e.prefetching.Swap(true)
}
