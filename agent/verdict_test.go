package agent

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"wingman/agent/xds"
	"wingman/bootstrap/identity"
	"wingman/health"
)

func TestWhatIstiodIsTold(t *testing.T) {
	good, bad := &health.Report{Healthy: true, Reason: "GET / succeeded"}, &health.Report{Reason: "connection refused"}
	for _, tc := range []struct {
		name  string
		v     verdict
		want  xds.Health
		known bool
	}{
		{"nothing yet", verdict{}, xds.Health{}, false},
		{"the workload serves", verdict{workload: good}, xds.Health{Healthy: true}, true},
		{"it does not", verdict{workload: bad}, xds.Health{Reason: "connection refused"}, true},
		{"Envoy does not serve", verdict{workload: good, unfit: "Envoy does not serve: it crashed"}, xds.Health{Reason: "Envoy does not serve: it crashed"}, true},
		{"the certificate has ended", verdict{workload: good, unidentified: "the certificate ended"}, xds.Health{Reason: "the certificate ended"}, true},
		{"drained, before the first probe", verdict{drained: "drained by hand"}, xds.Health{Reason: "drained by hand"}, true},
		{"all at once", verdict{workload: bad, unfit: "u", unidentified: "i", drained: "d", leaving: "l"}, xds.Health{Reason: "l"}, true},
	} {
		if got, known := tc.v.health(); got != tc.want || known != tc.known {
			t.Errorf("%s: %+v %t, want %+v %t", tc.name, got, known, tc.want, tc.known)
		}
	}
}

func TestACertificateThatEnded(t *testing.T) {
	end := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	c := &identity.Certificate{NotAfter: end}
	for _, tc := range []struct {
		name string
		c    *identity.Certificate
		now  time.Time
		want string
	}{
		{"none yet", nil, end, ""},
		{"a second before", c, end.Add(-time.Second), ""},
		{"at its end", c, end, "the certificate ended at 2026-11-23T12:00:00Z: istiod is away"},
	} {
		if got := unidentified(tc.c, "istiod is away", tc.now); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}

// The last verdicts are there after a restart, each change once, no more than fifty.
func TestVerdictsAreKept(t *testing.T) {
	dir, log := t.TempDir(), slog.New(slog.DiscardHandler)
	at := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	synctest.Test(t, func(t *testing.T) {
		v := newVerdicts(dir, log)
		g := newGroup(t.Context(), log)
		g.start(task{name: "verdicts", run: v.run})
		synctest.Wait()
		for i := range 120 {
			r := health.Report{Healthy: i%2 == 0, Reason: fmt.Sprint("reason ", i), At: at.Add(time.Duration(i) * time.Second)}
			v.add(r)
			v.add(r)
			if r.Healthy {
				v.add(health.Report{Healthy: true, Reason: "another reason for health", At: r.At})
			}
		}
		if err := g.stop(time.Minute); err != nil {
			t.Fatal(err)
		}
	})
	v := newVerdicts(dir, log)
	got := v.all()
	if len(got) != 50 || got[0].Reason != "reason 70" || got[49].Reason != "reason 119" || !got[49].At.Equal(at.Add(119*time.Second)) {
		t.Fatalf("after a restart there are %d verdicts: %+v", len(got), got)
	}
	v.add(got[49])
	if again := v.all(); len(again) != 50 {
		t.Errorf("the verdict of before once more makes %d", len(again))
	}
	v.add(health.Report{Reason: "another reason", At: at})
	if again := v.all(); len(again) != 50 || again[49].Reason != "another reason" {
		t.Errorf("another reason to be unhealthy is not kept: %+v", again[len(again)-1])
	}
	if err := os.WriteFile(filepath.Join(dir, verdictsFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	if v := newVerdicts(dir, slog.New(slog.NewTextHandler(&said, nil))); len(v.all()) != 0 || !strings.Contains(said.String(), "lost") {
		t.Errorf("a damaged file gives %d verdicts and %q", len(v.all()), said.String())
	}
}
