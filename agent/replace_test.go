package agent

import (
	"strings"
	"testing"

	"wingman/agent/status"
	"wingman/agent/xds"
)

func TestEnvoyIsReplacedOnlyWhereTheNextOneGetsItsConfiguration(t *testing.T) {
	connected, away := &xds.State{Phase: xds.PhaseConnected}, &xds.State{Phase: xds.PhaseWaiting}
	tests := []struct {
		name string
		r    status.Report
		want string // part of the refusal; empty: none
	}{
		{"a member with its stream", status.Report{XDS: connected}, ""},
		{"istiod is away", status.Report{XDS: away}, "istiod is away"},
		{"before the first address is known", status.Report{}, "istiod is away"},
		{"between two WorkloadEntries, while the stream still stands", status.Report{XDS: connected, Rejoining: true}, "another WorkloadEntry"},
	}
	for _, tt := range tests {
		if err := lacks(tt.r); (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
}

func TestWithoutASupervisorNoEnvoyIsReplaced(t *testing.T) {
	if said, err := ReplaceEnvoy(t.Context(), t.TempDir(), ""); err == nil || !strings.Contains(err.Error(), "no wingman proxy runs") {
		t.Errorf("said %q, %v", said, err)
	}
}
