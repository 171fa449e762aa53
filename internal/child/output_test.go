package child

import (
	"bytes"
	"testing"
)

func FuzzOutput(f *testing.F) {
	f.Add([]byte("one two three"), 4, 5)
	f.Add([]byte(""), 1, 1)
	f.Add([]byte("0123456789"), 3, 64)
	f.Fuzz(func(t *testing.T, text []byte, piece, most int) {
		piece, most = 1+abs(piece)%64, 1+abs(most)%64
		first, last := Beginning(most), End(most)
		for rest := text; len(rest) > 0; {
			p := rest[:min(piece, len(rest))]
			rest = rest[len(p):]
			for _, o := range []*Output{first, last} {
				if n, err := o.Write(p); n != len(p) || err != nil {
					t.Fatalf("wrote %d of %d, %v", n, len(p), err)
				}
			}
		}
		if want := text[:min(most, len(text))]; !bytes.Equal(first.Bytes(), want) {
			t.Errorf("beginning of %q by %d: %q, want %q", text, piece, first.Bytes(), want)
		}
		if want := text[max(0, len(text)-most):]; !bytes.Equal(last.Bytes(), want) {
			t.Errorf("end of %q by %d: %q, want %q", text, piece, last.Bytes(), want)
		}
	})
}

func abs(n int) int {
	if n < 0 {
		return -(n + 1)
	}
	return n
}
