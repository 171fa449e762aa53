package memory

import (
	"runtime/metrics"
	"time"
)

// Pace says when memory is to be given back: soon after a burst of work, such as a push of ten thousand services, whose garbage would else stay
// resident until the heap has filled up again; and now and then. The zero value is due at once.
type Pace struct {
	given time.Time // when it last was
	by    uint64    // bytes allocated by then
	at    uint64    // and by the last look
}

const (
	// LookEvery is how often Due is to be asked.
	LookEvery = 5 * time.Second

	every      = time.Minute
	burstBytes = 8 << 20   // allocated since memory was last given back, that is: more than the heap of a quiet daemon
	quietBytes = 512 << 10 // between two looks, at most, when a burst is over
)

// Due reports whether memory is to be given back now. allocated is Allocated().
func (p *Pace) Due(now time.Time, allocated uint64) bool {
	over := allocated-p.by >= burstBytes && allocated-p.at <= quietBytes
	p.at = allocated
	if !over && now.Sub(p.given) < every {
		return false
	}
	p.given, p.by = now, allocated
	return true
}

// Allocated is how many bytes of heap the program has asked for since it began.
func Allocated() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}
