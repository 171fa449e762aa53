package proxy

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"wingman/agent/envoy"
	"wingman/agent/envoy/envoytest"
)

// Variables that make the test binary something else than tests.
const (
	fakeVar      = "WINGMAN_FAKE_ENVOY"     // an Envoy with these habits, separated by commas: see fakeEnvoy
	habitsSuffix = ".habits"                // of the file beside a program that has other ones
	superviseVar = "WINGMAN_TEST_SUPERVISE" // a supervisor of the station in that folder
)

func TestMain(m *testing.M) {
	if habits, ok := os.LookupEnv(fakeVar); ok {
		if own, err := os.ReadFile(os.Args[0] + habitsSuffix); err == nil {
			habits = string(own)
		}
		fakeEnvoy(strings.Split(habits, ","))
	}
	if dir := os.Getenv(superviseVar); dir != "" {
		superviseElsewhere(dir)
	}
	envoytest.Main(m)
}

// fakeEnvoy does on cue what Envoys do. Its habits: "exits" with a last word, "deaf" (no admin port ever), "cold" (never live by
// itself), "stubborn" (ends for SIGKILL alone), "no-version" (runs for nobody), "invalid" (refuses its
// bootstrap file), "refuses" (takes two listeners of istiod less than others). Its admin port takes cues below /fake/.
func fakeEnvoy(habits []string) {
	has := func(habit string) bool { return slices.Contains(habits, habit) }
	switch {
	case slices.Contains(os.Args, "--version") && has("no-version"):
		fmt.Fprintln(os.Stderr, "error: no such instruction")
		os.Exit(132)
	case slices.Contains(os.Args, "validate") && has("invalid"):
		fmt.Fprintln(os.Stderr, "critical\tmain\tunknown field")
		os.Exit(1)
	case slices.Contains(os.Args, "--version"), slices.Contains(os.Args, "validate"):
		os.Exit(0)
	}
	fmt.Fprintln(os.Stderr, "info\tmain\tfake envoy begins")
	if has("exits") {
		fmt.Fprintln(os.Stderr, "critical\tmain\terror initializing configuration '/x': no such thing")
		os.Exit(1)
	}
	if has("stubborn") {
		signal.Ignore(syscall.SIGTERM, syscall.SIGABRT)
	} else {
		term := make(chan os.Signal, 1)
		signal.Notify(term, syscall.SIGTERM)
		go func() { <-term; os.Exit(0) }()
		abort := make(chan os.Signal, 1)
		signal.Notify(abort, syscall.SIGABRT)
		go func() {
			<-abort
			fmt.Fprintln(os.Stderr, "critical\tbacktrace\tCaught Aborted, suspect faulting address 0x1")
			os.Exit(134)
		}()
	}
	if has("deaf") {
		select {}
	}
	args := os.Args
	file, err := os.ReadFile(args[slices.Index(args, "--config-path")+1])
	if err != nil {
		panic(err)
	}
	facts, err := envoy.FactsOf(file)
	if err != nil {
		panic(err)
	}
	f := &fake{refuses: has("refuses"), state: "LIVE", hangs: make(chan struct{})}
	if has("cold") {
		f.state = "PRE_INITIALIZING"
	}
	panic(http.ListenAndServe(facts.Admin.String(), f))
}

type fake struct {
	mu          sync.Mutex // guards everything below
	refuses     bool
	state       string
	connections string // of listener 15006; empty: not counted
	calls       []string
	hanging     bool
	hangs       chan struct{} // never closed
}

// note is what a fake tells of itself.
type note struct {
	Calls []string
	Args  []string
	Env   []string
	Files uint64 // limit of open files
	UID   int
	Dir   string
	Lock  string // what descriptor 3 is
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.hanging {
		f.mu.Unlock()
		<-f.hangs
	}
	switch r.URL.Path {
	case "/ready":
		if f.state != "LIVE" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		fmt.Fprintln(w, f.state)
	case "/server_info":
		fmt.Fprintln(w, `{"version": "0123456789abcdef/1.40.0/Clean/RELEASE/BoringSSL"}`)
	case "/stats":
		listeners, rejected := 3, 0
		if f.refuses {
			listeners, rejected = 1, 1
		}
		fmt.Fprintf(w, "listener_manager.workers_started: 1\nlistener_manager.total_listeners_active: %d\nlistener_manager.lds.update_rejected: %d\n", listeners, rejected)
		fmt.Fprint(w, "http.admin.downstream_rq_active: 1\nlistener_manager.lds.update_success: 1\ncluster_manager.cds.update_success: 1\n")
		if f.connections != "" {
			fmt.Fprintf(w, "listener.admin.downstream_cx_active: 1\nlistener.0.0.0.0_15006.downstream_cx_active: %s\n", f.connections)
		}
	case "/healthcheck/fail", "/drain_listeners":
		f.calls = append(f.calls, r.Method+" "+r.URL.String())
	case "/fake/crash":
		fmt.Fprintln(os.Stderr, "critical\tbacktrace\tCaught Segmentation fault")
		os.Exit(139)
	case "/fake/hang":
		f.hanging = true
	case "/fake/state":
		f.state = r.FormValue("is")
	case "/fake/connections":
		f.connections = r.FormValue("n")
	case "/fake/log":
		fmt.Fprint(os.Stderr, r.FormValue("text"))
	case "/fake/print": // as a file access log does: by name
		out, err := os.OpenFile("/dev/stdout", os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprint(out, r.FormValue("text"))
		out.Close()
	case "/fake/note":
		var limit syscall.Rlimit
		_ = syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit)
		dir, _ := os.Getwd()
		lock, _ := os.Readlink("/proc/self/fd/3")
		_ = json.NewEncoder(w).Encode(note{Calls: f.calls, Args: os.Args[1:], Env: os.Environ(), Files: limit.Cur, UID: os.Geteuid(), Dir: dir, Lock: lock})
	default:
		http.NotFound(w, r)
	}
}
