package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"wingman/agent/envoy"
	"wingman/agent/envoy/envoytest"
	"wingman/test/freeport"
	"wingman/test/syncbuffer"
)

// station is a supervisor with a fake Envoy.
type station struct {
	t      testing.TB
	dir    string
	habits string
	admin  netip.AddrPort
	cfg    Config
	s      *Supervisor
	stop   func() // asks the supervisor to stop
	done   chan error
	out    *syncbuffer.Buffer // Envoy's standard output
	logs   *syncbuffer.Buffer

	mu     sync.Mutex // guards everything below
	states []State
	seen   int           // index of the state that await returned last
	news   chan struct{} // closed at the next state
}

// newStation prepares a station whose Envoy has the given habits.
func newStation(t testing.TB, habits ...string) *station {
	t.Helper()
	st := &station{t: t, dir: envoytest.Dir(t), out: &syncbuffer.Buffer{}, logs: &syncbuffer.Buffer{}, news: make(chan struct{}), done: make(chan error, 1)}
	st.admin = freeport.Addr()
	st.write("bootstrap.json", fmt.Sprintf(`{"admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": %d}}}}`, st.admin.Port()))
	st.habits = strings.Join(habits, ",")
	st.cfg = st.config()
	st.cfg.Stdout = st.out
	st.cfg.Log = slog.New(slog.NewTextHandler(st.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	st.cfg.OnState = func(s State) {
		st.mu.Lock()
		defer st.mu.Unlock()
		st.states = append(st.states, s)
		close(st.news)
		st.news = make(chan struct{})
	}
	return st
}

// config is what two supervisors of the same folder have in common.
func (st *station) config() Config {
	return Config{
		Program:   func() (string, error) { return "/proc/self/exe", nil },
		Bootstrap: func(context.Context) (string, error) { return filepath.Join(st.dir, "bootstrap.json"), nil },
		Args:      func(envoy.Facts) ([]string, error) { return nil, nil },
		Ports: func(f envoy.Facts) []Port {
			return []Port{{Addr: f.Admin, Purpose: "its admin interface", Setting: "envoy.adminPort"}}
		},
		Dir:    st.dir,
		RunDir: filepath.Join(st.dir, "run"),
		Env:    append(os.Environ(), fakeVar+"="+st.habits, "NOTIFY_SOCKET=/nowhere"),
	}
}

func (st *station) write(name, content string) {
	st.t.Helper()
	if err := os.WriteFile(filepath.Join(st.dir, name), []byte(content), 0o600); err != nil {
		st.t.Fatal(err)
	}
}

// run starts the supervisor; change may set its numbers before.
func (st *station) run(change ...func(*Supervisor)) *station {
	st.t.Helper()
	var err error
	if st.s, err = New(st.cfg); err != nil {
		st.t.Fatal(err)
	}
	for _, c := range change {
		c(st.s)
	}
	ctx, cancel := context.WithCancel(context.Background())
	st.stop = cancel
	go func() { st.done <- st.s.Run(ctx) }()
	st.t.Cleanup(func() {
		cancel()
		st.wait()
		if st.t.Failed() {
			st.t.Logf("the supervisor said:\n%s", st.logs)
		}
	})
	return st
}

// wait waits for the supervisor's end.
func (st *station) wait() {
	st.t.Helper()
	select {
	case err := <-st.done:
		st.done <- err
		if err != nil {
			st.t.Errorf("the supervisor ended: %v", err)
		}
	case <-time.After(envoytest.Patience):
		st.t.Fatalf("the supervisor does not end; it is %+v", st.s.State())
	}
}

// await waits until the supervisor has told a state that ok likes, from the one that the last await returned on: none is missed, however short it was.
func (st *station) await(what string, ok func(State) bool) State {
	st.t.Helper()
	limit := time.After(envoytest.Patience)
	for {
		st.mu.Lock()
		news := st.news
		for i, s := range st.states[st.seen:] {
			if ok(s) {
				st.seen += i
				st.mu.Unlock()
				return s
			}
		}
		st.mu.Unlock()
		select {
		case <-news:
		case err := <-st.done:
			st.done <- err
			st.t.Fatalf("%s: the supervisor ended: %v", what, err)
		case <-limit:
			st.t.Fatalf("%s: it is %+v", what, st.s.State())
		}
	}
}

func (st *station) awaitLive() State {
	st.t.Helper()
	return st.await("live", func(s State) bool { return s.Phase == PhaseLive })
}

// phases lists those that the supervisor has been in, in order.
func (st *station) phases() string {
	st.mu.Lock()
	defer st.mu.Unlock()
	var out []string
	for _, s := range st.states {
		if p := string(s.Phase); len(out) == 0 || out[len(out)-1] != p {
			out = append(out, p)
		}
	}
	return strings.Join(out, " ")
}

// cue makes the fake Envoy do something. One that ends or hangs of it does not answer.
func (st *station) cue(path string, query ...string) {
	st.t.Helper()
	q := url.Values{}
	for i := 0; i+1 < len(query); i += 2 {
		q.Set(query[i], query[i+1])
	}
	res, err := http.Get("http://" + st.admin.String() + "/fake/" + path + "?" + q.Encode())
	if err != nil {
		if path != "crash" {
			st.t.Fatalf("cue %s: %v", path, err)
		}
		return
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(res.Body)
		st.t.Fatalf("cue %s: %s %s", path, res.Status, b)
	}
}

// note asks the fake Envoy what it knows of itself.
func (st *station) note() (n note) {
	st.t.Helper()
	res, err := http.Get("http://" + st.admin.String() + "/fake/note")
	if err != nil {
		st.t.Fatal(err)
	}
	defer res.Body.Close()
	if err := json.NewDecoder(res.Body).Decode(&n); err != nil {
		st.t.Fatal(err)
	}
	return n
}

// awaitOutput waits until a buffer holds a text.
func awaitOutput(t testing.TB, b *syncbuffer.Buffer, text string) {
	t.Helper()
	envoytest.Await(t, fmt.Sprintf("output %q", text), func(context.Context) error {
		if !strings.Contains(b.String(), text) {
			return fmt.Errorf("there is %q", b)
		}
		return nil
	})
}

// awaitEnd waits until a process that is no child of ours is gone.
func awaitEnd(t testing.TB, what string, p process) {
	t.Helper()
	envoytest.Await(t, what, func(context.Context) error {
		if p.alive() {
			return errors.New("it lives")
		}
		return nil
	})
}

func mustProcess(t testing.TB, pid int) process {
	t.Helper()
	p, err := processOf(pid)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func kill(t testing.TB, pid int, sig syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(pid, sig); err != nil {
		t.Fatal(err)
	}
}
