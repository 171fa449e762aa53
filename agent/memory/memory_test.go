package memory

import (
	"reflect"
	"strings"
	"testing"
)

func TestReadOnlyParts(t *testing.T) {
	const maps = `00400000-00b70000 r-xp 00000000 fe:00 42 /usr/bin/wingman
00b70000-013d4000 r--p 00770000 fe:00 42 /usr/bin/wingman
013d4000-0144e000 rw-p 00fd4000 fe:00 42 /usr/bin/wingman
0144e000-03496000 rw-p 00000000 00:00 0
7f0000000000-7f0000001000 r-xp 00000000 fe:00 43 /usr/lib/libc.so.6
garbage
`
	want := []part{{0x400000, 0xb70000}, {0xb70000, 0x13d4000}}
	if got := readOnlyParts(strings.NewReader(maps), "/usr/bin/wingman"); !reflect.DeepEqual(got, want) {
		t.Errorf("readOnlyParts = %#x, want %#x: what was written to must never be given back", got, want)
	}
}

// The process goes on as before.
func TestGiveBack(t *testing.T) {
	for range 3 {
		if err := GiveBack(); err != nil {
			t.Fatal(err)
		}
	}
}
