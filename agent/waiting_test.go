package agent

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wingman/bootstrap"
)

func TestWhatFilesAreGoodFor(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	missing := func(file string) bootstrap.Problem {
		return bootstrap.Problem{Severity: bootstrap.Error, File: file, Found: "no file", Expected: "one"}
	}
	broken := bootstrap.Problem{Severity: bootstrap.Error, File: "/c", Line: 3, Key: "K", Found: `"x"`, Expected: "a port"}
	warning := missing("/w")
	warning.Severity = bootstrap.Warning
	for _, tt := range []struct {
		name     string
		problems bootstrap.Problems
		age      time.Duration // since the last change
		why      string        // begins with it; empty: good
	}{
		{"whole, and long since", nil, time.Hour, ""},
		{"whole, with a warning", bootstrap.Problems{warning}, time.Hour, ""},
		{"dated in the future", nil, -time.Hour, ""},
		{"just written", nil, filesSettled / 2, "waiting for the files to be complete"},
		{"settled", nil, filesSettled, ""},
		{"one is missing", bootstrap.Problems{missing("/a")}, time.Hour, "waiting for /a, which istioctl"},
		{"three are missing", bootstrap.Problems{missing("/a"), missing("/b"), missing("/c")}, time.Hour, "waiting for /a, /b and /c, which istioctl"},
		{"one is broken", bootstrap.Problems{broken}, time.Hour, "waiting for files that can be used: /c:3"},
		{"what is missing is said first", bootstrap.Problems{broken, missing("/a")}, time.Hour, "waiting for /a, which"},
	} {
		p := prospectOf(tt.problems, now.Add(-tt.age), now)
		if p.good != (tt.why == "") || !strings.HasPrefix(p.why, tt.why) {
			t.Errorf("%s: good %v, %q; want %q", tt.name, p.good, p.why, tt.why)
		}
	}
}

// Under systemd the daemon waits and says for what; elsewhere it ends and says so.
func TestADaemonWithoutFilesWaitsUnderSystemdAlone(t *testing.T) {
	root := t.TempDir()
	nobody := func(string) string { return "" }
	if ok, err := awaitFiles(t.Context(), Options{Root: root, Getenv: nobody, Stderr: os.Stderr}); !ok || err != nil {
		t.Errorf("without systemd: %v, %v; want to go on to the error at once", ok, err)
	}
	socket := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	told := make(chan string, 100)
	go func() {
		for buf := make([]byte, 4096); ; {
			n, err := l.Read(buf)
			if err != nil {
				return
			}
			told <- string(buf[:n])
		}
	}()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	type end struct {
		ok  bool
		err error
	}
	ended := make(chan end, 1)
	go func() {
		ok, err := awaitFiles(ctx, Options{Root: root, Stderr: os.Stderr, Getenv: func(name string) string {
			if name == "NOTIFY_SOCKET" {
				return socket
			}
			return ""
		}})
		ended <- end{ok, err}
	}()
	await := func(word string) {
		t.Helper()
		late := time.After(30 * time.Second)
		for {
			select {
			case line := <-told:
				if strings.Contains(line, word) {
					return
				}
			case e := <-ended:
				t.Fatalf("the wait ended (%+v) before systemd was told %q", e, word)
			case <-late:
				t.Fatalf("systemd was not told %q", word)
			}
		}
	}
	await("READY=1")
	await("cluster.env")
	r, err := Client(root).Status(t.Context())
	if err != nil || r.Phase != phaseWaiting || len(r.NotReady) != 1 || !strings.Contains(r.NotReady[0], "cluster.env") || r.Ready {
		t.Errorf("status: %+v, %v", r, err)
	}
	if _, err := Client(root).Drain(t.Context(), ""); err == nil || !strings.Contains(err.Error(), "waits for the files") {
		t.Errorf("a drain meanwhile: %v, want what it waits for", err)
	}
	write := func(name, content string) {
		t.Helper()
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("var/lib/istio/envoy/cluster.env", "ISTIO_META_CLUSTER_ID='Kubernetes'\n")
	await("config/mesh")
	cancel()
	if e := <-ended; e.ok || e.err != nil {
		t.Errorf("asked to end: %+v, want neither a start nor an error", e)
	}
	if _, err := os.Stat(filepath.Join(root, "run/wingman/admin.sock")); err == nil {
		t.Error("the admin socket is left")
	}
}

// Who writes the files may not be done when the agent starts: what comes after they were read, and before they are watched, is read too.
func TestAFileThatCameWhileTheAgentStartedIsRead(t *testing.T) {
	root := t.TempDir()
	read := fingerprint(settingsFiles(root, nil))
	sidecar := bootstrap.DefaultPaths(root).SidecarEnv
	if err := os.MkdirAll(filepath.Dir(sidecar), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(sidecar, []byte("ISTIO_SERVICE_CIDR=10.0.0.0/8\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	logs, err := newLogs(bootstrap.Log{Level: "info"}, os.Stderr, func(string) string { return "" })
	if err != nil {
		t.Fatal(err)
	}
	a := &Agent{opts: Options{Root: root}, logs: logs, cfg: &bootstrap.Config{Paths: bootstrap.DefaultPaths(root)}, filesChanged: make(chan struct{}, 1), filesRead: read}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.followFiles(ctx) }()
	select {
	case <-a.filesChanged:
	case <-time.After(30 * time.Second):
		t.Error("nobody was told to read the files again")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
