package proxy

import (
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"

	"wingman/agent/envoy"
	"wingman/agent/envoy/envoytest"
	"wingman/bootstrap"
	"wingman/test/freeport"
)

func TestTheWorkersListenerIsThatOfReadiness(t *testing.T) {
	cfg := &bootstrap.Config{}
	cfg.Status.ReadinessPort = 15021
	for _, tt := range []struct{ listens, want string }{
		{"0.0.0.0:15021", "127.0.0.1:15021"},
		{"[::]:15021", "[::1]:15021"},
		{"10.0.0.1:15021", "10.0.0.1:15021"},
		{"0.0.0.0:15090", "invalid AddrPort"},
	} {
		facts := envoy.Facts{Listeners: []netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:9"), netip.MustParseAddrPort(tt.listens)}}
		if got := workerOf(cfg, facts); got.String() != tt.want {
			t.Errorf("listener %s: asked at %s, want %s", tt.listens, got, tt.want)
		}
	}
}

// silentServer takes connections and says nothing.
func silentServer(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0") // the kernel takes them; nobody accepts
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return netip.MustParseAddrPort(l.Addr().String())
}

// busyServer answers that nobody is behind it, as Envoy does while the agent is away, and tells of each question.
func busyServer(t *testing.T) (at netip.AddrPort, asked <-chan struct{}) {
	t.Helper()
	questions := make(chan struct{}, 100)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusServiceUnavailable)
		questions <- struct{}{}
	}))
	t.Cleanup(s.Close)
	return netip.MustParseAddrPort(s.Listener.Addr().String()), questions
}

func TestOnlySilenceIsFrozen(t *testing.T) {
	busy, _ := busyServer(t)
	for name, tt := range map[string]struct {
		worker netip.AddrPort
		want   bool
	}{
		"nobody answers":     {silentServer(t), true},
		"a worker answers":   {busy, false},
		"nobody listens":     {freeport.Addr(), false},
		"no worker is known": {netip.AddrPort{}, false},
	} {
		if got := frozen(t.Context(), tt.worker); got != tt.want {
			t.Errorf("%s: frozen %t, want %t", name, got, tt.want)
		}
	}
}

// A large push keeps the main thread busy: as long as workers serve, that is borne.
func TestAnEnvoyWhoseWorkersServeIsGivenTime(t *testing.T) {
	st, asked := hangs(t, func(t *testing.T) (netip.AddrPort, <-chan struct{}) { return busyServer(t) })
	for range deafAfter + 3 { // the first may come before Envoy listens, the last is not answered yet
		select {
		case <-asked:
		case <-time.After(envoytest.Patience):
			t.Fatal("no worker is asked")
		}
	}
	if s := st.s.State(); s.Phase != PhaseLive || s.Starts != 1 {
		t.Errorf("phase %s after %d starts, want live still (%s)", s.Phase, s.Starts, st.phases())
	}
}

func TestAnEnvoyThatIsFrozenIsEnded(t *testing.T) {
	st, _ := hangs(t, func(t *testing.T) (netip.AddrPort, <-chan struct{}) { return silentServer(t), nil })
	st.await("a word on the hang", func(s State) bool { return s.Phase == PhaseHanging })
	st.await("another one, live", func(s State) bool { return s.Phase == PhaseLive && s.Starts == 2 })
}

// hangs is a station whose Envoy's main thread has just stopped to answer, with workers that do or do not.
func hangs(t *testing.T, workers func(*testing.T) (netip.AddrPort, <-chan struct{})) (*station, <-chan struct{}) {
	t.Helper()
	st := newStation(t)
	worker, asked := workers(t)
	st.cfg.Worker = func(envoy.Facts) netip.AddrPort { return worker }
	st.cfg.HangTimeout = time.Hour
	st.run(func(s *Supervisor) { s.timings.freeze = 100 * time.Millisecond })
	st.awaitLive()
	st.cue("hang")
	return st, asked
}
