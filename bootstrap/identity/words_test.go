package identity

import (
	"testing"
	"time"
)

func TestSpan(t *testing.T) {
	for _, tt := range []struct {
		d    time.Duration
		want string
	}{
		{0, "0 s"}, {900 * time.Millisecond, "0 s"}, {45 * time.Second, "45 s"}, {-45 * time.Second, "45 s"},
		{2*time.Minute + 5*time.Second, "2 min 5 s"}, {time.Hour, "1 h"}, {2*time.Hour + 3*time.Minute + 59*time.Second, "2 h 3 min"},
		{24 * time.Hour, "1 d"}, {50 * time.Hour, "2 d 2 h"}, {24*time.Hour + 5*time.Minute, "1 d"},
	} {
		if got := span(tt.d); got != tt.want {
			t.Errorf("span(%v) = %q, want %q", tt.d, got, tt.want)
		}
	}
}

func TestParseSPIFFEID(t *testing.T) {
	if got, err := parseSPIFFEID(testID); err != nil || got != (workload{"cluster.local", "forum-services", "forum-sa"}) {
		t.Errorf("got %+v, %v", got, err)
	}
	for _, bad := range []string{
		"", "spiffe://", "https://cluster.local/ns/a/sa/b", "spiffe://cluster.local/ns/a/sa/", "spiffe://cluster.local/ns//sa/b",
		"spiffe://cluster.local/sa/a/ns/b", "spiffe://cluster.local/ns/a/sa/b/c", "spiffe://cluster.local/ns/a b/sa/c", "spiffe://td\n/ns/a/sa/b",
	} {
		if got, err := parseSPIFFEID(bad); err == nil {
			t.Errorf("%q passed as %+v", bad, got)
		}
	}
}
