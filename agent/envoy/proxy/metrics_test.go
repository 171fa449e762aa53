package proxy

import (
	"fmt"
	"log/slog"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

func TestMetricsOfAnotherProcess(t *testing.T) {
	dir := t.TempDir()
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(NewCollector(dir))
	scrape := func() (lines []string) {
		t.Helper()
		families, err := r.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			for _, m := range f.Metric {
				labels := ""
				for _, l := range m.Label {
					labels += " " + l.GetValue()
				}
				lines = append(lines, fmt.Sprint(f.GetName(), labels, " ", m.GetGauge().GetValue()+m.GetCounter().GetValue()))
			}
		}
		return lines
	}
	if got, want := scrape(), []string{metricLive + " 0", metricUp + " 0"}; !slices.Equal(got, want) {
		t.Errorf("without a supervisor: got %q, want %q", got, want)
	}
	l, err := takeLock(t.Context(), dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	writeState(dir, State{Phase: PhaseLive, Since: time.Unix(1000, 0), Supervisor: os.Getpid(), PID: 7, Starts: 3}, slog.New(slog.DiscardHandler))
	want := []string{metricLive + " 1", metricStarts + " 3", metricSince + " live 1000", metricUp + " 1"}
	if got := scrape(); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
