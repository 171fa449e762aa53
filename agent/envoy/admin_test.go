package envoy

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// adminOf returns a client of a scripted admin port.
func adminOf(t *testing.T, h http.HandlerFunc) *Admin {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return NewAdmin(netip.MustParseAddrPort(s.Listener.Addr().String()), 15021, 15090)
}

func TestConnections(t *testing.T) {
	tests := []struct {
		name  string
		stats string
		want  int
		known bool
	}{
		{"nothing is counted", "", 0, false},
		{"only Envoy's own listeners", "listener.admin.downstream_cx_active: 1\nlistener.0.0.0.0_15021.downstream_cx_active: 4\n", 0, true},
		{"the workload's, workers not counted again", "listener.0.0.0.0_15006.downstream_cx_active: 3\nlistener.0.0.0.0_15006.worker_0.downstream_cx_active: 3\nlistener.0.0.0.0_15001.downstream_cx_active: 2\n", 5, true},
		{"the admin port's worker", "listener.admin.main_thread.downstream_cx_active: 1\n", 0, true},
		{"IPv6, written with underscores", "listener.[__]_15021.downstream_cx_active: 1\nlistener.[__]_15006.downstream_cx_active: 2\n", 2, true},
		{"between Envoy's own listeners", "listener.envoy_internal_connect_originate.downstream_cx_active: 7\n", 0, true},
		{"lines that are none", "listener.x.downstream_cx_active: many\n: 3\nlistener.y.downstream_cx_active: -1\n", 0, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			admin := adminOf(t, func(w http.ResponseWriter, r *http.Request) {
				if r.Method != http.MethodGet || r.URL.Path != "/stats" || !r.URL.Query().Has("usedonly") {
					t.Errorf("asked for %s %s", r.Method, r.URL)
				}
				w.Write([]byte(tt.stats))
			})
			n, known, err := admin.Connections(t.Context())
			if err != nil || n != tt.want || known != tt.known {
				t.Errorf("stats %q: %d connections, known %v, %v; want %d, %v", tt.stats, n, known, err, tt.want, tt.known)
			}
		})
	}
}

func TestReadyIsEnvoysWord(t *testing.T) {
	for _, tt := range []struct {
		status int
		body   string
		live   bool
	}{{200, "LIVE\n", true}, {503, "PRE_INITIALIZING\n", false}, {503, "DRAINING\n", false}} {
		admin := adminOf(t, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(tt.status)
			w.Write([]byte(tt.body))
		})
		live, state, err := admin.Ready(t.Context())
		if err != nil || live != tt.live || state != strings.TrimSpace(tt.body) {
			t.Errorf("%d %q: live %v, state %q, %v", tt.status, tt.body, live, state, err)
		}
	}
}

func TestOverview(t *testing.T) {
	admin := adminOf(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Write([]byte("cluster_manager.active_clusters: 12\ncluster_manager.cds.update_rejected: 1\ncluster_manager.cds.update_success: 2\n" +
			"listener_manager.lds.update_success: 3\nlistener_manager.total_listeners_active: 5\nlistener_manager.workers_started: 1\nother: 9\n"))
	})
	got, err := admin.Overview(t.Context())
	want := Overview{WorkersStarted: true, Listeners: 5, Clusters: 12, CDSAccepted: 2, CDSRejected: 1, LDSAccepted: 3}
	if err != nil || cmp.Diff(want, got) != "" || !got.Configured() {
		t.Errorf("overview %+v, %v; want %+v, configured", got, err, want)
	}
}

func TestAdminErrorsSayWhatWasAsked(t *testing.T) {
	admin := adminOf(t, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no such thing", http.StatusNotFound) })
	if err := admin.Drain(t.Context()); err == nil || !strings.Contains(err.Error(), "/healthcheck/fail with 404 Not Found: no such thing") {
		t.Errorf("drain: %v", err)
	}
	if _, _, err := admin.Connections(t.Context()); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("connections: %v", err)
	}
}

func FuzzStats(f *testing.F) {
	f.Add([]byte("listener.0.0.0.0_15006.downstream_cx_active: 3\n"))
	f.Add([]byte("listener.0.0.0.0_15006.downstream_cx_length_ms: P0(nan,1.0) P25(nan,1.025)\n"))
	f.Add([]byte("a: 99999999999999999999\nb:1\n: \n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		_ = parseStats(bytes.NewReader(b), func(name string, value int) {
			if value < 0 {
				t.Errorf("%q counts %d", name, value)
			}
			(&Admin{own: []string{"_1"}}).isTraffic(name)
		})
	})
}
