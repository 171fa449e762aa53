package memory

import (
	"slices"
	"testing"
	"time"
)

func TestPace(t *testing.T) {
	const kB, MB = 1 << 10, 1 << 20
	tests := []struct {
		name      string
		allocated []uint64 // in each LookEvery
		want      []int    // looks after which memory is given back
	}{
		{"a quiet daemon, once a minute", slices.Repeat([]uint64{20 * kB}, 25), []int{0, 12, 24}},
		{"a burst, when it is over", []uint64{1 * MB, 30 * MB, 40 * MB, 20 * kB, 20 * kB, 20 * kB}, []int{0, 3}},
		{"a second burst, as the first", []uint64{1 * MB, 30 * MB, 20 * kB, 20 * kB, 10 * MB, 20 * kB, 20 * kB}, []int{0, 2, 5}},
		{"a change now and then is none", []uint64{1 * MB, 2 * MB, 20 * kB, 20 * kB, 2 * MB, 20 * kB, 20 * kB}, []int{0}},
		{"work without end, once a minute", slices.Repeat([]uint64{30 * MB}, 14), []int{0, 12}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var p Pace
			var got []int
			total, now := uint64(0), time.Unix(1e9, 0)
			for look, n := range tt.allocated {
				total += n
				if p.Due(now, total) {
					got = append(got, look)
				}
				now = now.Add(LookEvery)
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("given back after looks %v, want %v", got, tt.want)
			}
		})
	}
}

func TestAllocated(t *testing.T) {
	before := Allocated()
	sink = make([]byte, 1<<20)
	if got := Allocated() - before; got < 1<<20 {
		t.Errorf("%d bytes were allocated, want a MiB at least", got)
	}
}

var sink []byte
