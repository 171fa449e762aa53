package envoy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3" // registers its messages
	"google.golang.org/protobuf/encoding/protojson"

	"wingman/agent/envoy/envoytest"
)

// The real Envoy's own word on every golden file.
func TestEnvoyAcceptsTheGoldenFiles(t *testing.T) {
	program := envoytest.Program(t)
	files, err := filepath.Glob("testdata/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			out, err := exec.Command(program, "--mode", "validate", "-c", file, "-l", "warning", "--skip-deprecated-logs").CombinedOutput()
			if err != nil {
				t.Fatalf("envoy refuses it: %v\n%s", err, out)
			}
			if said := strings.TrimSpace(string(out)); said != "configuration '"+file+"' OK" {
				t.Errorf("envoy has something to say:\n%s", said)
			}
		})
	}
}

// adminIn is the way to an Envoy that is started with a file.
func adminIn(t testing.TB, f File) *Admin {
	t.Helper()
	facts, err := FactsOf(f.JSON)
	if err != nil {
		t.Fatal(err)
	}
	return NewAdmin(facts.Admin, facts.OwnPorts()...)
}

// tcpListener is a listener that istiod might send: it accepts connections on a port and forwards them to the admin port.
func tcpListener(t testing.TB, name string, port int) envoytest.Resource {
	t.Helper()
	var l listenerv3.Listener
	text := fmt.Sprintf(`{"name": %q, "traffic_direction": "INBOUND", "address": {"socket_address": {"address": "127.0.0.1", "port_value": %d}},
		"filter_chains": [{"filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": {
			"@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": "x", "cluster": "prometheus_stats"}}]}]}`, name, port)
	if err := protojson.Unmarshal([]byte(text), &l); err != nil {
		t.Fatal(err)
	}
	return envoytest.Resource{Name: name, Message: &l}
}

// An Envoy with this file joins a control plane over the socket, serves what it is given, and answers on its own ports.
func TestEnvoyServes(t *testing.T) {
	program := envoytest.Program(t)
	for _, sidecar := range []string{"ISTIO_DELTA_XDS=true\n", "ISTIO_DELTA_XDS=false\n"} {
		t.Run(strings.TrimSpace(sidecar), func(t *testing.T) {
			dir := envoytest.Dir(t)
			in := inputOf(forum(t, sidecar, ""), "10.99.0.2")
			in.XDSSocket, in.SDSSocket = filepath.Join(dir, "xds"), filepath.Join(dir, "sds")
			f, err := Bootstrap(in)
			if err != nil {
				t.Fatal(err)
			}
			admin := adminIn(t, f)
			envoytest.Start(t, program, f.JSON)

			// No control plane yet: it must wait for one, not serve half of a configuration.
			envoytest.Await(t, "envoy answers", func(ctx context.Context) error {
				live, state, err := admin.Ready(ctx)
				if err == nil && (live || state != "PRE_INITIALIZING") {
					t.Fatalf("without a control plane it is %q", state)
				}
				return err
			})
			if o, err := admin.Overview(t.Context()); err != nil || o.Configured() {
				t.Errorf("without a control plane: %+v, %v", o, err)
			}
			ads := envoytest.NewADS(t, in.XDSSocket)
			ads.Set(envoytest.TypeListener, tcpListener(t, "virtualInbound", 15006))
			awaitLive(t, admin)
			o, err := admin.Overview(t.Context())
			if err != nil || !o.Configured() || o.Listeners != 3 || o.Clusters != 4 {
				t.Errorf("overview %+v (%v), want 3 listeners and 4 clusters, configured", o, err)
			}
			if nodes := ads.Nodes(); !slices.Equal(nodes, []string{in.Node.ID}) {
				t.Errorf("nodes that came: %q, want %q once", nodes, in.Node.ID)
			}
			if refused := ads.Refused(); len(refused) > 0 {
				t.Errorf("refused: %q", refused)
			}

			// The agent answers for readiness; Envoy only passes that on.
			agent := http.Server{Addr: "127.0.0.1:15020", Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				fmt.Fprint(w, "agent says ", r.URL.Path)
			})}
			done := make(chan error, 1)
			go func() { done <- agent.ListenAndServe() }()
			t.Cleanup(func() { agent.Close(); <-done })
			envoytest.Await(t, "readiness", func(ctx context.Context) error {
				if body := get(ctx, t, "http://127.0.0.1:15021/healthz/ready"); body != "agent says /healthz/ready" {
					return fmt.Errorf("answer %q", body)
				}
				return nil
			})
			metrics := get(t.Context(), t, "http://127.0.0.1:15090/stats/prometheus")
			for _, want := range []string{`cluster_name="xds-grpc"`, `listener_address="127.0.0.1_15006"`} {
				if !strings.Contains(metrics, want) {
					t.Errorf("metrics without %s:\n%s", want, metrics)
				}
			}
		})
	}
}

// What a drain waits for: connections to the workload's listeners, and no others.
func TestEnvoyCountsConnectionsAndDrains(t *testing.T) {
	program := envoytest.Program(t)
	dir := envoytest.Dir(t)
	in := inputOf(forum(t, "", ""), "10.99.0.2")
	in.XDSSocket, in.SDSSocket = filepath.Join(dir, "xds"), filepath.Join(dir, "sds")
	f, err := Bootstrap(in)
	if err != nil {
		t.Fatal(err)
	}
	ads := envoytest.NewADS(t, in.XDSSocket)
	ads.Set(envoytest.TypeListener, tcpListener(t, "virtualInbound", 15006))
	admin := adminIn(t, f)
	envoytest.Start(t, program, f.JSON, "--drain-time-s", "1")
	awaitLive(t, admin)

	awaitConnections := func(want int) {
		t.Helper()
		envoytest.Await(t, fmt.Sprintf("%d connections", want), func(ctx context.Context) error {
			n, known, err := admin.Connections(ctx)
			if err != nil || !known || n != want {
				return fmt.Errorf("%d connections, known %v, %v", n, known, err)
			}
			return nil
		})
	}
	awaitConnections(0)
	own := dial(t, "127.0.0.1:15021") // a probe that hangs on is no traffic
	first, second := dial(t, "127.0.0.1:15006"), dial(t, "127.0.0.1:15006")
	awaitConnections(2)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	awaitConnections(1)

	if err := admin.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := second.Write([]byte("GET /ready HTTP/1.0\r\n\r\n")); err != nil {
		t.Errorf("a connection from before the drain: %v", err)
	}
	envoytest.Await(t, "the inbound listener to close after the drain time", func(ctx context.Context) error {
		c, err := dialer.DialContext(ctx, "tcp", "127.0.0.1:15006")
		if err == nil {
			c.Close()
			return errors.New("it still accepts")
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			return err
		}
		return nil
	})
	if _, _, err := admin.Ready(t.Context()); err != nil {
		t.Errorf("envoy ended with the drain: %v", err)
	}
	if err := own.Close(); err != nil {
		t.Error(err)
	}
}

func awaitLive(t testing.TB, admin *Admin) {
	t.Helper()
	envoytest.Await(t, "envoy to be live", func(ctx context.Context) error {
		live, state, err := admin.Ready(ctx)
		if err == nil && !live {
			err = fmt.Errorf("it is %s", state)
		}
		return err
	})
}

func get(ctx context.Context, t testing.TB, url string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err.Error()
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

var dialer net.Dialer

func dial(t testing.TB, address string) net.Conn {
	t.Helper()
	c, err := dialer.DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}
