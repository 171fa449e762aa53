package agent

import (
	"strings"
	"testing"
	"time"

	"wingman/bootstrap/identity"
)

func TestWhatOfAnIdentityIsDegraded(t *testing.T) {
	end := time.Date(2026, 11, 24, 6, 0, 0, 0, time.UTC)
	tests := []struct {
		name string
		id   identity.State
		want string
	}{
		{"all is well", identity.State{Serial: "1", NotAfter: end, Health: identity.Fine}, ""},
		{"a quarter is left: a warning of its own", identity.State{Serial: "1", NotAfter: end, Health: identity.Warning}, ""},
		{"a tenth is left, and a request hangs", identity.State{Serial: "1", NotAfter: end, Health: identity.Degraded}, "identity: the certificate is not renewed and ends at 2026-11-24T06:00:00Z"},
		{"a tenth is left, and it is known why", identity.State{Serial: "1", NotAfter: end, Health: identity.Degraded, LastError: "no CA"}, "identity: no CA"},
		{"no certificate yet, nothing failed yet", identity.State{Health: identity.Degraded}, ""},
		{"copied, and refused", identity.State{LastError: "no CA", Copied: "of another machine"}, "identity: no CA; identity: of another machine"},
		{"the clock is wrong", identity.State{Clock: "2 h behind"}, "identity: 2 h behind"},
		{"certificates live too short", identity.State{LifeProblem: "for 5 s"}, "identity: for 5 s"},
		{"the root file cannot be used", identity.State{RootProblem: "no PEM"}, "identity: no PEM"},
		{"the store cannot be written", identity.State{StoreProblem: "disk full"}, "identity: disk full"},
		{"the output folder does not follow", identity.State{OutputProblem: "of root"}, "identity: of root"},
		{"one group of two has no copies", identity.State{Groups: []identity.GroupState{{Group: "a"}, {Group: "b", Problem: "no group b"}}}, "identity: no group b"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := strings.Join(identityTroubles(tt.id), "; "); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
