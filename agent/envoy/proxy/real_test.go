package proxy

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3" // registers its messages
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/encoding/protojson"

	"wingman/agent/envoy"
	"wingman/agent/envoy/envoytest"
	"wingman/test/syncbuffer"
)

// inbound is a listener as istiod sends it to a mesh with accessLogFile: /dev/stdout; it answers by itself.
func inbound(t testing.TB) envoytest.Resource {
	t.Helper()
	const text = `{"name": "virtualInbound", "traffic_direction": "INBOUND", "address": {"socket_address": {"address": "0.0.0.0", "port_value": 15006}},
		"filter_chains": [{"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": {
			"@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
			"stat_prefix": "inbound",
			"access_log": [{"name": "envoy.access_loggers.file", "typed_config": {
				"@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog", "path": "/dev/stdout",
				"log_format": {"text_format_source": {"inline_string": "served %REQ(:PATH)%\n"}}}}],
			"route_config": {"virtual_hosts": [{"name": "x", "domains": ["*"], "routes": [
				{"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": "hello"}}}]}]},
			"http_filters": [{"name": "envoy.filters.http.router", "typed_config": {
				"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}]}}]}]}`
	var l listenerv3.Listener
	if err := protojson.Unmarshal([]byte(text), &l); err != nil {
		t.Fatal(err)
	}
	return envoytest.Resource{Name: "virtualInbound", Message: &l}
}

// proxied is `wingman proxy` with the real Envoy, and a control plane in the agent's place.
type proxied struct {
	t      testing.TB
	root   string
	runDir string
	ads    *envoytest.ADS
	stop   func()
	done   chan error
	out    *syncbuffer.Buffer // access logs
	logs   *syncbuffer.Buffer
}

func startProxied(t testing.TB, ofEnvoy, settings string) *proxied {
	t.Helper()
	program := envoytest.Program(t)
	p := &proxied{t: t, root: newRoot(t, "envoy: {path: "+program+ofEnvoy+"}\n"+settings), done: make(chan error, 1), out: &syncbuffer.Buffer{}, logs: &syncbuffer.Buffer{}}
	cfg := load(t, p.root)
	p.runDir = RunDir(cfg)
	// The agent's part: its file and its socket. Envoy runs as another user where this is root.
	f, err := Make(t.Context(), cfg, "forum-vm")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := envoy.Write(envoy.BootstrapPath(cfg), f, 0); err != nil {
		t.Fatal(err)
	}
	p.ads = envoytest.NewADS(t, envoy.XDSSocket(cfg))
	p.ads.Set(envoytest.TypeListener, inbound(t))
	if cfg.Capture.UserKnown {
		if err := os.Chmod(p.root, 0o755); err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{envoy.BootstrapPath(cfg), envoy.XDSSocket(cfg)} {
			if err := os.Chown(path, int(cfg.Capture.ProxyUID), int(cfg.Capture.ProxyGID)); err != nil {
				t.Fatal(err)
			}
		}
	}
	o := Options{Root: p.root, Getenv: func(string) string { return "" }, Stdout: p.stream(p.out), Stderr: p.stream(p.logs)}
	ctx, cancel := context.WithCancel(context.Background())
	p.stop = cancel
	go func() { p.done <- Run(ctx, o) }()
	t.Cleanup(func() {
		cancel()
		if err := <-p.done; err != nil {
			t.Errorf("run: %v", err)
		}
		o.Stdout.Close()
		o.Stderr.Close()
		if t.Failed() {
			t.Logf("it said:\n%s", p.logs)
		}
	})
	return p
}

// stream is a file whose content ends up in b.
func (p *proxied) stream(b *syncbuffer.Buffer) *os.File {
	p.t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		p.t.Fatal(err)
	}
	go func() { // ends with w
		defer r.Close()
		for lines := bufio.NewScanner(r); lines.Scan(); {
			fmt.Fprintln(b, lines.Text())
		}
	}()
	return w
}

// await waits for a state in which ok finds nothing wrong.
func (p *proxied) await(what string, ok func(State) bool) (s State) {
	p.t.Helper()
	envoytest.Await(p.t, what, func(context.Context) error {
		var err error
		if s, err = ReadState(p.runDir); err == nil && !ok(s) {
			err = fmt.Errorf("it is %+v", s)
		}
		return err
	})
	return s
}

// served asks the inbound listener.
func (p *proxied) served(path string) error {
	client := http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Get("http://127.0.0.1:15006" + path)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return errors.New(res.Status)
	}
	return nil
}

func (p *proxied) awaitServed(path string) {
	p.t.Helper()
	envoytest.Await(p.t, path+" served", func(context.Context) error { return p.served(path) })
}

func live(s State) bool { return s.Phase == PhaseLive }

func TestTheRealEnvoyIsKeptRunning(t *testing.T) {
	p := startProxied(t, "", "")
	s := p.await("live", live)
	p.awaitServed("/first")
	awaitOutput(t, p.out, "served /first\n")
	if refused := p.ads.Refused(); len(refused) > 0 {
		t.Fatalf("refused: %q", refused)
	}

	for i := range 3 { // in a row, without a minute between
		if err := syscall.Kill(s.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		pid := s.PID
		s = p.await("another one, live", func(s State) bool { return live(s) && s.PID != pid })
		p.awaitServed(fmt.Sprintf("/after-%d", i))
		awaitOutput(t, p.out, fmt.Sprintf("served /after-%d\n", i))
	}
	if refused := p.ads.Refused(); len(refused) > 0 {
		t.Errorf("refused: %q", refused)
	}
}

// Connections that begin while Envoy is away wait for the next one.
func TestTheRealEnvoysNextServesThoseWhoWaited(t *testing.T) {
	p := startProxied(t, "", "")
	s := p.await("live", live)
	p.awaitServed("/first")
	if err := syscall.Kill(s.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	p.await("away", func(now State) bool { return now.PID != s.PID })
	client := http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	results := make(chan error)
	for range 50 {
		go func() {
			res, err := client.Get("http://127.0.0.1:15006/waited")
			if err == nil {
				res.Body.Close()
			}
			results <- err
		}()
	}
	for range 50 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	p.await("live again", live)
	if refused := p.ads.Refused(); len(refused) > 0 {
		t.Errorf("Envoy could not listen beside what held its ports: %q", refused)
	}
}

func TestTheRealEnvoyIsEndedWhenItHangs(t *testing.T) {
	p := startProxied(t, ", hangTimeout: "+(2*testHang).String(), "")
	s := p.await("live", live)
	if err := syscall.Kill(s.PID, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	awaitOutput(t, p.logs, "Envoy does not answer") // the phase itself may be over before anybody looks
	p.await("another one, live", func(now State) bool { return live(now) && now.PID != s.PID })
	p.awaitServed("/again")
}

func TestTheRealEnvoyDrains(t *testing.T) {
	p := startProxied(t, "", "")
	p.await("live", live)
	busy, err := net.Dial("tcp", "127.0.0.1:15006")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	fmt.Fprint(busy, "GET /busy HTTP/1.1\r\nHost: x\r\n\r\n")
	res, err := http.ReadResponse(bufio.NewReader(busy), nil)
	if err != nil || res.Close {
		t.Fatalf("before the drain: %v, %v", res, err)
	}
	p.stop()
	p.await("draining", func(s State) bool { return s.Phase == PhaseDraining })
	// Peers are told to go, and may say what they have to say until then.
	envoytest.Await(t, "a peer is told to go", func(context.Context) error {
		c, err := net.Dial("tcp", "127.0.0.1:15006")
		if err != nil {
			return err
		}
		defer c.Close()
		fmt.Fprint(c, "GET /late HTTP/1.1\r\nHost: x\r\n\r\n")
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err == nil && !res.Close {
			err = errors.New("the connection may stay")
		}
		return err
	})
	if err := busy.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-p.done; err != nil {
		t.Errorf("run: %v", err)
	}
	p.done <- nil
	awaitOutput(t, p.logs, "no connection is left")
	awaitOutput(t, p.logs, "exit status 0")
	if err := p.served("/gone"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("after the end: %v", err)
	}
}

// A stranger on 15001 is named; Envoy does not start beside it, and starts when it has gone.
func TestTheRealEnvoyWaitsForItsPorts(t *testing.T) {
	envoytest.Program(t)
	l, err := net.Listen("tcp", "0.0.0.0:15001")
	if err != nil {
		t.Fatal(err)
	}
	p := startProxied(t, "", "")
	s := p.await("a cause", func(s State) bool { return s.Cause != "" })
	if s.Phase != PhaseWaiting || s.Starts != 0 || !strings.HasPrefix(s.Cause, "port 15001, Envoy's for outbound traffic, is held by ") || !strings.Contains(s.Cause, fmt.Sprintf("(pid %d)", os.Getpid())) {
		t.Errorf("%+v", s)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	p.await("live", live)
}

// What Envoy itself says of a bad bootstrap file reaches the state, where the agent shows it.
func TestTheRealEnvoysLastWords(t *testing.T) {
	p := startProxied(t, "", "status: {prometheusPort: 15091}\n")
	p.await("live", live)
	cfg := load(t, p.root)
	var file map[string]any
	b, err := os.ReadFile(envoy.BootstrapPath(cfg))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &file); err != nil {
		t.Fatal(err)
	}
	file["no_such_field_but_static_ones_are_allowed"] = 1
	file["admin"].(map[string]any)["profile_path"] = 7
	if b, err = json.Marshal(file); err != nil {
		t.Fatal(err)
	}
	put(t, p.root, "run/wingman/envoy/bootstrap.json", string(b))
	if cfg.Capture.UserKnown {
		if err := os.Chown(envoy.BootstrapPath(cfg), int(cfg.Capture.ProxyUID), -1); err != nil {
			t.Fatal(err)
		}
	}
	s, err := ReadState(p.runDir)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(s.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s = p.await("its last words", func(s State) bool { return strings.Contains(s.Cause, "it said") })
	if !strings.Contains(s.Cause, "profile_path") && !strings.Contains(s.Cause, filepath.Base(envoy.BootstrapPath(cfg))) {
		t.Errorf("cause %q", s.Cause)
	}
	t.Log(s.Cause)
}
