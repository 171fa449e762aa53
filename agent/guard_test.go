package agent

import (
	"os"
	"strings"
	"testing"
	"time"
)

func TestParseGuard(t *testing.T) {
	at := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	for text, want := range map[string]guardNote{
		"2026-11-23T12:00:00Z the agent ended badly 5 times\n": {at, "the agent ended badly 5 times"},
		"2026-11-23T12:00:00Z":                                 {},
		"2026-11-23T12:00:00Z \n":                              {},
		"yesterday the agent ended\n":                          {},
		"":                                                     {},
		"2026-11-23T12:00:00Z a\nb\n":                          {},
		"\x00\xff 2026-11-23T12:00:00Z":                        {},
	} {
		if got := parseGuard(text); got != want {
			t.Errorf("%q: %+v, want %+v", text, got, want)
		}
	}
}

// The guard's own words are what the agent reads.
func TestTheGuardWritesWhatIsRead(t *testing.T) {
	script, err := os.ReadFile("../systemd/units/crash-guard")
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"notes=/run/wingman-guard\n", `"$notes/open.new"`, `date -u +%Y-%m-%dT%H:%M:%SZ`, `printf '%s %s\n'`} {
		if !strings.Contains(string(script), part) {
			t.Errorf("crash-guard has no %q any more: readGuard goes by it", part)
		}
	}
}
