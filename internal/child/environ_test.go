package child

import (
	"slices"
	"testing"
)

func TestEnviron(t *testing.T) {
	own := []string{"HOME=/root", "NOTIFY_SOCKET=/run/n", "LISTEN_FDS=2", "LISTEN_FDNAMES=a", "PATH=/opt/bin", "JOURNAL_STREAM=1:2", "LISTEN_FDS_OF_MINE=1", "odd"}
	given := slices.Clone(own)
	if got, want := Environ(own), []string{"HOME=/root", "PATH=/opt/bin", "LISTEN_FDS_OF_MINE=1", "odd"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if !slices.Equal(own, given) {
		t.Errorf("what was given is %q now", own)
	}
	if got := Environ(nil); len(got) != 0 {
		t.Errorf("of nothing %q", got)
	}
}
