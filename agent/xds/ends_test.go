package xds_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"wingman/agent/xds"
	"wingman/test/controlplane"
)

// notes are what a client logs and counts.
type notes struct {
	t       *testing.T
	metrics *prometheus.Registry

	mu  sync.Mutex // guards everything below
	log bytes.Buffer
}

func (n *notes) Write(b []byte) (int, error) { n.mu.Lock(); defer n.mu.Unlock(); return n.log.Write(b) }

// keep makes the client of a configuration write here.
func (n *notes) keep(c *xds.Config) {
	c.Log, c.Metrics = slog.New(slog.NewTextHandler(n, nil)), n.metrics
}

// warnings are the lines at warn that hold a text.
func (n *notes) warnings(text string) (lines []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for line := range strings.Lines(n.log.String()) {
		if strings.Contains(line, "level=WARN") && strings.Contains(line, text) {
			lines = append(lines, line)
		}
	}
	return lines
}

// count is the value of a counter: "name" or "name kind".
func (n *notes) count(series string) float64 {
	n.t.Helper()
	name, kind, _ := strings.Cut(series, " ")
	families, err := n.metrics.Gather()
	if err != nil {
		n.t.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && (kind == "" || m.GetLabel()[0].GetValue() == kind) {
				sum += m.GetCounter().GetValue()
			}
		}
	}
	return sum
}

// ended reads what is left of a stream and returns how it ended.
func (e *envoy) ended() error {
	for {
		if _, err := e.stream.Recv(); err != nil {
			return err
		}
	}
}

// With an Envoy, its stream is the one that stands: what ends it is as much news as the end of the agent's own.
func TestTheEndOfEnvoysStreamIsNoted(t *testing.T) {
	for _, tc := range []struct {
		name     string
		end      func(*testing.T, *controlplane.Faults)
		kind     string
		rejected bool
		refusals int32 // that ask for a new certificate
		warnings int
	}{
		{"istiod says no", func(_ *testing.T, f *controlplane.Faults) { f.EndStreams(codes.PermissionDenied, "not here") }, "rejected", true, 0, 1},
		{"istiod does not know the certificate any more", func(_ *testing.T, f *controlplane.Faults) { f.EndStreams(codes.Unauthenticated, "who?") }, "rejected", true, 1, 1},
		{"istiod crashes", func(t *testing.T, f *controlplane.Faults) { f.EndStreams(codes.Internal, "panic") }, "broken", false, 0, 1},
		{"istiod asks to come again", func(_ *testing.T, f *controlplane.Faults) { f.EndStreams(codes.OK, "") }, "graceful", false, 0, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := &notes{t: t, metrics: prometheus.NewRegistry()}
			var refusals atomic.Int32
			v := newVM(t, newIstiod(t, controlplane.Config{}), true, func(c *xds.Config) {
				n.keep(c)
				c.OnRefused = func() { refusals.Add(1) }
			})
			clusters(v.istiod, "outbound|80||webapp")
			e := dialEnvoy(t, v.serveEnvoy()()) // Run would open a stream of the agent's own meanwhile
			e.begin()
			tc.end(t, v.istiod.Faults())
			e.ended()
			if got := n.count(xds.MetricEnds + " " + tc.kind); got != 1 || n.count(xds.MetricEnds) != 1 {
				t.Errorf("%v ends of kind %s, %v of any; want one", got, tc.kind, n.count(xds.MetricEnds))
			}
			if s := v.client.State(); s.Rejected != tc.rejected || s.Phase != xds.PhaseWaiting || (s.LastError == "") != (tc.warnings == 0) {
				t.Errorf("state %+v, want waiting, rejected %t, and the cause of what was no graceful end", s, tc.rejected)
			}
			if got := refusals.Load(); got != tc.refusals {
				t.Errorf("a new certificate was asked for %d times, want %d", got, tc.refusals)
			}
			if got := n.warnings("no stream to istiod"); len(got) != tc.warnings {
				t.Errorf("%d warnings, want %d:\n%s", len(got), tc.warnings, strings.Join(got, ""))
			}
		})
	}
}

func TestAnEnvoyThatLeavesIsNoEndOfIstiods(t *testing.T) {
	n := &notes{t: t, metrics: prometheus.NewRegistry()}
	v := newVM(t, newIstiod(t, controlplane.Config{}), true, n.keep)
	clusters(v.istiod, "outbound|80||webapp")
	e := dialEnvoy(t, v.serveEnvoy()())
	e.begin()
	e.cancel()
	v.wait(0, "istiod sees the end", kind(controlplane.StreamClosed))
	again := dialEnvoy(t, v.serveEnvoy()())
	again.begin()
	if got := n.count(xds.MetricEnds); got != 0 || len(n.warnings("")) > 0 {
		t.Errorf("%v ends were counted, and said: %q; want none: Envoy left", got, n.warnings(""))
	}
}

// Each refusal ends a stream of Envoy's, which is back at once: the waits must grow all the same, or istiod has a handshake of each such VM
// several times a second.
func TestARefusedEnvoyThatComesAtOnceWaitsItsTurn(t *testing.T) {
	v := newVM(t, newIstiod(t, controlplane.Config{}), true, nil)
	clusters(v.istiod, "outbound|80||webapp")
	v.istiod.Faults().RefuseStreams(codes.PermissionDenied, "not here")
	dial := v.serveEnvoy()
	request := &discoveryv3.DeltaDiscoveryRequest{Node: node("forum"), TypeUrl: controlplane.ClusterType}
	began := time.Now()
	e := dialEnvoy(t, dial())
	e.send(request)
	e.ended()
	e = dialEnvoy(t, dial())
	e.send(request)
	e.ended()
	if waited := time.Since(began); waited < 500*time.Millisecond {
		t.Errorf("istiod was asked again after %v, want the wait after a rejection, 0.5 to 1 s", waited)
	}

	// Something changes: nobody waits then.
	v.istiod.Faults().RefuseStreams(codes.OK, "")
	e = dialEnvoy(t, dial())
	v.client.Retry()
	e.send(request)
	e.recv()
}

func TestAnEnvoyThatDoesNotReadIsCutOffAndTheAgentGoesOn(t *testing.T) {
	n := &notes{t: t, metrics: prometheus.NewRegistry()}
	v := newVM(t, newIstiod(t, controlplane.Config{}), true, n.keep)
	v.client.LimitUnread(2 << 20)
	const size, most = 1 << 20, 16
	routes := map[string]*anypb.Any{}
	for i := range most {
		routes[fmt.Sprint("route-", i)] = &anypb.Any{TypeUrl: controlplane.RouteType, Value: make([]byte, size)}
	}
	v.istiod.SetResources(controlplane.RouteType, routes)
	clusters(v.istiod, "outbound|80||webapp")
	dial := v.serveEnvoy()
	v.run()
	v.wait(0, "a table", kind(controlplane.Acked))
	e := dialEnvoy(t, dial())
	e.begin()
	stream := v.oneStream("with Envoy").ID

	// From here on it does not read.
	ask := func(i int) {
		e.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: controlplane.RouteType, ResourceNamesSubscribe: []string{fmt.Sprint("route-", i)}})
	}
	ask(0)
	ask(1)
	before := len(v.istiod.Events())
	v.istiod.AddService("istioinaction", "catalog", "10.96.1.2")
	v.wait(before, "a table on the stream of an Envoy that does not read", func(ev controlplane.Event) bool {
		return ev.Kind == controlplane.Acked && ev.TypeURL == xds.TypeNameTable && ev.Stream == stream
	})
	before = len(v.istiod.Events())
	for i := 2; i < most; i++ {
		ask(i)
	}
	opened := v.wait(before, "a stream of the agent's own", kind(controlplane.StreamOpened))
	v.wait(before, "a table on it", func(ev controlplane.Event) bool {
		return ev.Kind == controlplane.Acked && ev.TypeURL == xds.TypeNameTable && ev.Stream == opened.Stream
	})
	if got := n.count(xds.MetricEnvoyStalls); got != 1 || n.count(xds.MetricEnds) != 0 {
		t.Errorf("%v stalls and %v ends of istiod's streams were counted, want 1 and 0", got, n.count(xds.MetricEnds))
	}
	if all := n.warnings(""); len(all) != 1 || len(n.warnings("Envoy does not read")) != 1 {
		t.Errorf("want one warning, of an Envoy that does not read, got:\n%s", strings.Join(all, ""))
	}
	if s := v.client.State(); s.LastError != "" || s.Envoy || s.Phase != xds.PhaseConnected {
		t.Errorf("state %+v, want connected by the agent's own stream, without an error of istiod's", s)
	}
	if err := e.ended(); status.Code(err) != codes.Unavailable {
		t.Errorf("Envoy's stream ended with %v, want Unavailable", err)
	}
}
