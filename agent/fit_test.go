package agent

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

// captured is a message of the real istiod or the real Envoy, from the package that does the fitting.
func captured(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("envoy", "stock", "testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const (
	listenerType = "type.googleapis.com/envoy.config.listener.v3.Listener"
	clusterType  = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	endpointType = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
)

func TestWhatEnvoyLacksIsSaidOnceAStreamAndWhatIsTakenOutCounted(t *testing.T) {
	var log bytes.Buffer
	f := newFitting(slog.New(slog.NewTextHandler(&log, nil)), prometheus.NewRegistry())
	request, push := captured(t, "envoy-1.40.0.request.binpb"), captured(t, "listener.v3.Listener.delta.binpb")
	for stream := 1; stream <= 2; stream++ {
		log.Reset()
		fit := f.fit(request, true)
		if fit == nil {
			t.Fatal("the unmodified Envoy is taken for one that has Istio's extensions")
		}
		said := log.String()
		if strings.Count(said, "\n") != 1 || !strings.Contains(said, "level=INFO") || !strings.Contains(said, "istio.alpn istio.metadata_exchange istio.peer_metadata istio.stats") {
			t.Errorf("stream %d: want one line that names all that is missing, got:\n%s", stream, said)
		}
		if fit.Wants(endpointType) || !fit.Wants(listenerType) {
			t.Error("endpoints hold nothing to take out, listeners do")
		}
		for _, typ := range []string{listenerType, listenerType, clusterType} { // of each type other extensions are taken out
			push := push
			if typ == clusterType {
				push = captured(t, "cluster.v3.Cluster.delta.binpb")
			}
			if out := fit.Fit(typ, mem.BufferSlice{mem.SliceBuffer(push)}).Materialize(); bytes.Contains(out, []byte("stats.PluginConfig")) {
				t.Errorf("a push of %d bytes became one of %d", len(push), len(out))
			}
		}
		if log.String() != said {
			t.Errorf("stream %d: pushes are no news at info:\n%s", stream, &log)
		}
	}
	var m dto.Metric
	if err := f.removed.WithLabelValues("istio.stats").Write(&m); err != nil || m.GetCounter().GetValue() == 0 {
		t.Errorf("%s is %v, %v; want a count", metricEnvoyRemoved, &m, err)
	}
}

func TestWhatCannotBeReadIsLeftToEnvoy(t *testing.T) {
	var log bytes.Buffer
	f := newFitting(slog.New(slog.NewTextHandler(&log, nil)), prometheus.NewRegistry())
	fit := f.fit(captured(t, "envoy-1.40.0.request.binpb"), true)
	broken := captured(t, "listener.v3.Listener.delta.binpb")
	broken = broken[:len(broken)-1]
	out := fit.Fit(listenerType, mem.BufferSlice{mem.SliceBuffer(broken)}).Materialize()
	if !bytes.HasSuffix(out, broken[len(broken)-40:]) || !strings.Contains(log.String(), "level=WARN") {
		t.Errorf("of a broken push %d of %d bytes are left, want its end as it was; log:\n%s", len(out), len(broken), &log)
	}
	if f.fit([]byte{0xff}, true) != nil {
		t.Error("a request that cannot be read has its pushes fitted")
	}
}

func TestPushesForIstiosBuildAreNotTouched(t *testing.T) {
	var r discoveryv3.DeltaDiscoveryRequest
	if err := proto.Unmarshal(captured(t, "envoy-1.40.0.request.binpb"), &r); err != nil {
		t.Fatal(err)
	}
	r.Node.Extensions = nil // says nothing: nothing is missing
	request, err := proto.Marshal(&r)
	if err != nil {
		t.Fatal(err)
	}
	if newFitting(slog.New(slog.DiscardHandler), prometheus.NewRegistry()).fit(request, true) != nil {
		t.Error("an Envoy that lacks nothing has its pushes read")
	}
}
