package child

import "testing"

func BenchmarkRun(b *testing.B) {
	c := shell("exit 0")
	for b.Loop() {
		if err := Run(b.Context(), c); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkKillMarked(b *testing.B) {
	mark := newMark()
	for b.Loop() {
		killMarked(mark)
	}
}
