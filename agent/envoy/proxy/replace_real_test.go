package proxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/protobuf/encoding/protojson"

	"wingman/agent/envoy"
	"wingman/agent/envoy/envoytest"
)

// passOn has both of Envoy's ports hand requests to an application, which answers /TIME after that time.
func passOn(t testing.TB, ads *envoytest.ADS) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	app := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d, err := time.ParseDuration(strings.TrimPrefix(r.URL.Path, "/"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		select {
		case <-time.After(d):
		case <-r.Context().Done():
		}
	})}
	go app.Serve(l)
	t.Cleanup(func() { app.Close() })
	var cluster clusterv3.Cluster
	text := fmt.Sprintf(`{"name": "app", "type": "STATIC", "connect_timeout": "5s", "load_assignment": {"cluster_name": "app", "endpoints": [{"lb_endpoints": [
		{"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": %d}}}}]}]}}`, l.Addr().(*net.TCPAddr).Port)
	if err := protojson.Unmarshal([]byte(text), &cluster); err != nil {
		t.Fatal(err)
	}
	ads.Set(envoytest.TypeCluster, envoytest.Resource{Name: "app", Message: &cluster})
	var listeners []envoytest.Resource
	for name, port := range map[string]int{"virtualInbound": 15006, "virtualOutbound": 15001} {
		direction := strings.ToUpper(strings.TrimPrefix(name, "virtual"))
		text := fmt.Sprintf(`{"name": %q, "traffic_direction": %q, "address": {"socket_address": {"address": "0.0.0.0", "port_value": %d}},
			"filter_chains": [{"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": {
				"@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
				"stat_prefix": %q, "route_config": {"virtual_hosts": [{"name": "x", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "app", "timeout": "60s"}}]}]},
				"http_filters": [{"name": "envoy.filters.http.router", "typed_config": {
					"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}]}}]}]}`, name, direction, port, name)
		var l listenerv3.Listener
		if err := protojson.Unmarshal([]byte(text), &l); err != nil {
			t.Fatal(err)
		}
		listeners = append(listeners, envoytest.Resource{Name: name, Message: &l})
	}
	ads.Set(envoytest.TypeListener, listeners...)
}

// A class of requests is one kind of clients.
type class struct {
	name    string
	port    int
	path    string
	clients int           // at a time
	every   time.Duration // between two requests of a client
	kept    bool          // each client keeps its connection, as long as Envoy lets it

	mu      sync.Mutex // guards everything below
	sent    int
	lost    []lost
	slowest time.Duration // of those that were answered
}

type lost struct {
	began, ended time.Time
	err          error
}

// usualClasses are what a machine has: new connections and kept ones, both ways, and requests that take their time.
func usualClasses() []*class {
	return []*class{
		{name: "new connections in", port: 15006, path: "/0s", clients: 4, every: 20 * time.Millisecond},
		{name: "new connections out", port: 15001, path: "/0s", clients: 4, every: 20 * time.Millisecond},
		{name: "kept connections in", port: 15006, path: "/0s", clients: 10, every: 50 * time.Millisecond, kept: true},
		{name: "kept connections out", port: 15001, path: "/0s", clients: 10, every: 50 * time.Millisecond, kept: true},
		{name: "requests of 1 s", port: 15006, path: "/1s", clients: 10},
		{name: "requests of 5 s", port: 15006, path: "/5s", clients: 10},
	}
}

// run sends until ctx ends. A request that is under way then is waited for.
func (c *class) run(ctx context.Context) {
	var all sync.WaitGroup
	defer all.Wait()
	for range c.clients {
		all.Go(func() {
			// Requests that a client may not send twice: an answer that is lost is lost.
			client := http.Client{Timeout: 15 * time.Second, Transport: &http.Transport{DisableKeepAlives: !c.kept}}
			defer client.CloseIdleConnections()
			for ctx.Err() == nil {
				began := time.Now()
				res, err := client.Post(fmt.Sprintf("http://127.0.0.1:%d%s", c.port, c.path), "text/plain", io.NopCloser(strings.NewReader("once")))
				if err == nil {
					if io.Copy(io.Discard, res.Body); res.StatusCode != http.StatusOK {
						err = errors.New(res.Status)
					}
					res.Body.Close()
				}
				c.mu.Lock()
				if c.sent++; err != nil {
					c.lost = append(c.lost, lost{began, time.Now(), err})
				} else {
					c.slowest = max(c.slowest, time.Since(began))
				}
				c.mu.Unlock()
				select {
				case <-time.After(c.every):
				case <-ctx.Done():
				}
			}
		})
	}
}

// underLoad has an event happen while all classes send, and says what each lost.
func underLoad(t *testing.T, what string, event func()) []*class {
	t.Helper()
	classes := usualClasses()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var all sync.WaitGroup
	for _, c := range classes {
		all.Go(func() { c.run(ctx) })
	}
	answered := func() int {
		n := 0
		for _, c := range classes {
			c.mu.Lock()
			n += c.sent
			c.mu.Unlock()
		}
		return n
	}
	rises := func(by int) {
		from := answered()
		envoytest.Await(t, "requests flow", func(context.Context) error {
			if n := answered() - from; n < by {
				return fmt.Errorf("%d of %d", n, by)
			}
			return nil
		})
	}
	rises(500)
	began := time.Now()
	event()
	took := time.Since(began)
	rises(500)
	cancel()
	all.Wait()
	t.Logf("%s, which took %.1f s:", what, took.Seconds())
	for _, c := range classes {
		first := ""
		if len(c.lost) > 0 {
			first = fmt.Sprintf("; first begun %.2f s after the beginning, lost %.2f s after it: %v", c.lost[0].began.Sub(began).Seconds(), c.lost[0].ended.Sub(began).Seconds(), c.lost[0].err)
		}
		t.Logf("  %-22s %5d sent, %3d lost, slowest answer %.2f s%s", c.name, c.sent, len(c.lost), c.slowest.Seconds(), first)
	}
	return classes
}

// resident is the resident memory of a process, in MB.
func resident(t testing.TB, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(b))[1])
	if err != nil {
		t.Fatal(err)
	}
	return pages * os.Getpagesize() >> 20
}

// Another Envoy takes the place of the one that runs, and only requests that take longer than a handover are lost.
func TestTheRealEnvoyIsReplacedUnderLoad(t *testing.T) {
	p := startProxied(t, "", "")
	passOn(t, p.ads) // before Envoy asks, or with its next stream
	s := p.await("live", live)
	if s.Version == "" {
		s = p.await("its version", func(s State) bool { return s.Version != "" })
	}
	if _, err := Replace(t.Context(), p.runDir, ""); err != nil { // the listeners of startProxied may have come first
		t.Fatal(err)
	}
	before := p.await("live", live)
	for _, c := range underLoad(t, "replaced by wingman envoy replace", func() {
		said, err := Replace(t.Context(), p.runDir, "")
		if err != nil {
			t.Error(err)
		}
		t.Logf("%s, %d MB resident", said, resident(t, p.await("live", live).PID))
	}) {
		if c.path != "/5s" && len(c.lost) > 0 {
			t.Errorf("%s: %d of %d lost, want none", c.name, len(c.lost), c.sent)
		}
	}
	if now := p.await("live", live); now.PID == before.PID || now.Starts != before.Starts+1 || now.Refused != "" || now.Outdated != "" {
		t.Errorf("before: %+v\nnow: %+v", before, now)
	}
	if strings.Contains(p.logs.String(), "level=ERROR") || strings.Contains(p.logs.String(), "Envoy ended") {
		t.Error("the log complains")
	}
}

// What the same costs with Envoy's own hot restart: figures for docs/packaging.md.
func TestTheRealEnvoysHotRestartUnderLoad(t *testing.T) {
	program := envoytest.Program(t)
	root := newRoot(t, "envoy: {path: "+program+"}\n")
	cfg := load(t, root)
	f, err := Make(t.Context(), cfg, "forum-vm")
	if err != nil {
		t.Fatal(err)
	}
	file := envoy.BootstrapPath(cfg)
	if _, err := envoy.Write(file, f, 0); err != nil {
		t.Fatal(err)
	}
	facts, err := envoy.FactsOf(f.JSON)
	if err != nil {
		t.Fatal(err)
	}
	ads := envoytest.NewADS(t, envoy.XDSSocket(cfg))
	passOn(t, ads)
	const baseID, drainSeconds, shutdownSeconds = 77, 5, 7
	start := func(epoch int) *exec.Cmd {
		t.Helper()
		args := []string{"--config-path", file, "--restart-epoch", strconv.Itoa(epoch), "--base-id", strconv.Itoa(baseID),
			"--drain-time-s", strconv.Itoa(drainSeconds), "--parent-shutdown-time-s", strconv.Itoa(shutdownSeconds)}
		for i, a := range arguments(cfg.Envoy, true) {
			if i > 2 { // all but hot restart's and the drain time
				args = append(args, a)
			}
		}
		cmd := exec.Command(program, args...)
		log, err := os.Create(filepath.Join(root, fmt.Sprintf("envoy-%d.log", epoch)))
		if err != nil {
			t.Fatal(err)
		}
		defer log.Close()
		cmd.Stdout, cmd.Stderr = log, log
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Signal(syscall.SIGKILL)
			_ = cmd.Wait()
			if t.Failed() {
				b, _ := os.ReadFile(log.Name())
				t.Logf("epoch %d said:\n%.5000s", epoch, b)
			}
			os.Remove(fmt.Sprintf("/dev/shm/envoy_shared_memory_%d0", baseID))
		})
		return cmd
	}
	admin := envoy.NewAdmin(facts.Admin, facts.OwnPorts()...)
	awaitLive := func() {
		envoytest.Await(t, "live", func(ctx context.Context) error {
			ok, word, err := admin.Ready(ctx)
			if err == nil && !ok {
				err = errors.New(word)
			}
			return err
		})
	}
	first := start(0)
	awaitLive()
	envoytest.Await(t, "served", func(ctx context.Context) error {
		c, err := net.Dial("tcp", "127.0.0.1:15006")
		if err != nil {
			return err
		}
		defer c.Close()
		fmt.Fprint(c, "GET /0s HTTP/1.1\r\nHost: x\r\n\r\n")
		_, err = http.ReadResponse(bufio.NewReader(c), nil)
		return err
	})
	underLoad(t, "replaced by hot restart", func() {
		second := start(1)
		awaitLive()
		was := resident(t, first.Process.Pid)
		_ = first.Wait() // its parent-shutdown-time
		t.Logf("two at a time: %d and %d MB resident", was, resident(t, second.Process.Pid))
	})
}
