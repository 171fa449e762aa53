package join

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"wingman/agent/enrol"
	"wingman/agent/status"
	"wingman/test/controlplane"
	"wingman/test/files"
)

// istioctl moves the machine's five files to a folder, as istioctl writes them, and returns it.
func (m *machine) istioctl() (dir string) {
	m.t.Helper()
	dir = m.t.TempDir()
	for from, to := range map[string]string{
		files.ClusterEnv: "cluster.env", files.MeshConfig: "mesh.yaml", files.Hosts: "hosts", files.Token: "istio-token", files.RootCert: "root-cert.pem",
	} {
		if err := os.WriteFile(filepath.Join(dir, to), []byte(m.read(from)), 0o600); err != nil {
			m.t.Fatal(err)
		}
		m.remove(from)
	}
	return dir
}

// tree is everything below the root: kind, mode and content by path.
func (m *machine) tree() map[string]string {
	m.t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(m.root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		what := info.Mode().String()
		if info.Mode().IsRegular() {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			what += " " + string(b)
		}
		all[path] = what
		return nil
	})
	if err != nil {
		m.t.Fatal(err)
	}
	return all
}

func (m *machine) sameTree(when string, want map[string]string) {
	m.t.Helper()
	got := m.tree()
	for _, path := range slices.Sorted(maps.Keys(got)) {
		if want[path] != got[path] {
			m.t.Errorf("%s there is %s %.60q, want %.60q", when, path, got[path], want[path])
		}
	}
	for path := range want {
		if _, ok := got[path]; !ok {
			m.t.Errorf("%s %s is gone", when, path)
		}
	}
}

// signalled passes signals to this process on to the machine's daemon, which is a goroutine here.
func (m *machine) signalled() {
	m.t.Helper()
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGTERM)
	ctx, cancel := context.WithCancel(context.Background())
	m.t.Cleanup(func() { signal.Stop(signals); cancel() })
	go func() {
		for {
			select {
			case s := <-signals:
				if s == syscall.SIGTERM {
					m.cancel()
					continue
				}
				select {
				case m.sighup <- s:
				case <-ctx.Done():
				}
			case <-ctx.Done():
				return
			}
		}
	}()
}

// The whole way there and back, where nobody manages units: what leave leaves is what there was before the join, twice.
func TestLeaveUndoesJoin(t *testing.T) {
	m := newMachine(t, newIstiod(t, controlplane.Config{}))
	dir := m.istioctl()
	for _, name := range []string{files.ClusterEnv, files.MeshConfig, files.Token, files.RootCert} {
		m.remove(filepath.Dir(name))
	}
	m.write(files.MeshConfig, "") // Istio's package makes an empty one
	if err := os.Mkdir(m.path("run"), 0o755); err != nil {
		t.Fatal(err)
	}
	m.signalled()
	bare := m.tree()
	var said []string
	o := enrol.Options{Root: m.root, Timeout: patience, Say: func(s string) { said = append(said, s) }}
	if err := enrol.Leave(t.Context(), o); err != nil || !strings.Contains(fmt.Sprint(said), "nothing to undo") {
		t.Errorf("leave before a join: %v, %q", err, said)
	}
	m.sameTree("after a leave without a join", bare)

	for round := range 2 {
		if _, err := enrol.Join(t.Context(), dir, o); !errors.Is(err, enrol.ErrNoDaemon) {
			t.Fatalf("join without a daemon: %v, want that nobody runs one", err)
		}
		if info, err := os.Stat(m.path(files.Token)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("token: %v %v, want mode 0600", info, err)
		}
		m.start()
		m.until("up", func(status.Report) bool { return true })
		r, err := enrol.Join(t.Context(), dir, o)
		if err != nil || !joined(r) {
			t.Fatalf("round %d: join: %v, report %+v", round, err, r)
		}
		m.entry("there", func(e controlplane.Entry) bool { return e.Connected })
		m.mustResolve("webapp.istioinaction", "10.96.97.98")
		if err := enrol.Leave(t.Context(), o); err != nil {
			t.Fatalf("round %d: leave: %v", round, err)
		}
		if err := m.ended(); err != nil {
			t.Errorf("the daemon ended with %v", err)
		}
		m.sameTree(fmt.Sprintf("after leave %d", round), bare)
		told := false
		for _, e := range m.istiod.Events() {
			told = told || e.Kind == controlplane.HealthReported && !e.Healthy
		}
		if !told {
			t.Error("istiod was not told that the machine is unhealthy")
		}
	}
}

func TestJoinRefusesBeforeItWrites(t *testing.T) {
	m := newMachine(t, newIstiod(t, controlplane.Config{}))
	settings := m.read(files.Wingman)
	dir := m.istioctl()
	bare := m.tree()
	o := enrol.Options{Root: m.root, Timeout: patience, Say: func(string) {}}
	for _, tc := range []struct {
		name, file, content string
		want                []string
	}{
		{"two broken files", "cluster.env", "POD_NAMESPACE='x\n", []string{"cluster.env"}},
		{"somebody else's token", "istio-token", "garbage", []string{"istio-token", "kubectl create token"}},
		{"a root that is none", "root-cert.pem", "hello\n", []string{"root-cert.pem", "no certificate"}},
		{"no mesh.yaml", "mesh.yaml", "", []string{"mesh"}},
		{"no istiod", "wingman", strings.ReplaceAll(settings, m.istiod.Addr(), "127.0.0.1:1"), []string{"istiod cannot be reached at 127.0.0.1:1", "nothing serves there"}},
		{"no address of istiod", "wingman", strings.ReplaceAll(settings, m.istiod.Addr(), "istiod.nowhere.invalid:15012"), []string{"istiod.nowhere.invalid", "istioctl's hosts file"}},
		{"another istiod", "wingman", strings.ReplaceAll(settings, "san: "+m.istiod.ServerName(), "san: istiod.other.svc"), []string{"istiod.other.svc", "ISTIOD_SAN"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var path string
			switch tc.file {
			case "wingman":
				path = m.path(files.Wingman)
			default:
				path = filepath.Join(dir, tc.file)
			}
			good, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(tc.content), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err = enrol.Join(t.Context(), dir, o)
			for _, want := range append(tc.want, "nothing was changed") {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("error %v, want %q in it", err, want)
				}
			}
			if err := os.WriteFile(path, good, 0o600); err != nil {
				t.Fatal(err)
			}
			m.sameTree("after a refused join", bare)
		})
	}
}

// A member stays what it is: other files of the same workload are taken, those of another are not.
func TestJoinOfAMember(t *testing.T) {
	m := newMachine(t, newIstiod(t, controlplane.Config{}))
	dir := m.istioctl()
	var said []string
	o := enrol.Options{Root: m.root, Timeout: patience, Say: func(s string) { said = append(said, s) }}
	if _, err := enrol.Join(t.Context(), dir, o); !errors.Is(err, enrol.ErrNoDaemon) {
		t.Fatal(err)
	}
	m.start()
	m.signalled()
	m.until("joined", joined)

	mesh, err := os.ReadFile(filepath.Join(dir, "mesh.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, content string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("mesh.yaml", string(mesh)+"# another\n")
	m.write(files.MeshConfig, string(mesh)+"# by hand\n")
	if r, err := enrol.Join(t.Context(), dir, o); err != nil || !joined(r) {
		t.Fatalf("join with another mesh.yaml: %v %+v", err, r)
	}
	if got := m.read(files.MeshConfig + ".before-join"); got != string(mesh)+"# by hand\n" {
		t.Errorf("the backup holds %q, want what was written by hand", got)
	}
	if !strings.Contains(fmt.Sprint(said), files.MeshConfig+".before-join") {
		t.Errorf("the backup is not said: %q", said)
	}
	env, err := os.ReadFile(filepath.Join(dir, "cluster.env"))
	if err != nil {
		t.Fatal(err)
	}
	write("cluster.env", strings.ReplaceAll(string(env), files.ServiceAccount, "other-sa"))
	if err := os.Remove(filepath.Join(dir, "istio-token")); err != nil { // it would be somebody else's
		t.Fatal(err)
	}
	if _, err := enrol.Join(t.Context(), dir, o); err == nil || !strings.Contains(err.Error(), "leave first") {
		t.Errorf("join as another workload: %v, want a word on leave", err)
	}
}

// What istiod says is said.
func TestJoinSaysWhatKeepsIt(t *testing.T) {
	istiod := controlplane.Run(t, controlplane.Config{}) // it knows no WorkloadGroup
	m := newMachine(t, istiod)
	dir := m.istioctl()
	var said []string
	o := enrol.Options{Root: m.root, Timeout: 6 * time.Second, Say: func(s string) { said = append(said, s) }}
	if _, err := enrol.Join(t.Context(), dir, o); !errors.Is(err, enrol.ErrNoDaemon) {
		t.Fatal(err)
	}
	m.start()
	m.signalled()
	m.until("refused", func(r status.Report) bool { return r.XDS != nil && r.XDS.Rejected })
	_, err := enrol.Join(t.Context(), dir, o)
	if err == nil || !strings.Contains(err.Error(), "WorkloadGroup") || !strings.Contains(err.Error(), "wingman leave") {
		t.Errorf("join without a WorkloadGroup: %v, want it named, and the way back", err)
	}
}

// A machine whose token comes from a program needs no istio-token, not even for the join.
func TestJoinWithoutATokenFile(t *testing.T) {
	istiod := newIstiod(t, controlplane.Config{})
	fresh, err := istiod.MintToken(controlplane.TokenOptions{Namespace: files.Namespace, ServiceAccount: files.ServiceAccount})
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "get-token")
	script := "#!/bin/sh\necho '{\"apiVersion\":\"client.authentication.k8s.io/v1\",\"kind\":\"ExecCredential\",\"status\":{\"token\":\"" + fresh + "\"}}'\n"
	if err := os.WriteFile(program, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	m := newMachine(t, istiod, "identity: {credentials: [exec], exec: {command: ["+program+"]}}")
	dir := m.istioctl()
	if err := os.Remove(filepath.Join(dir, "istio-token")); err != nil {
		t.Fatal(err)
	}
	m.signalled()
	var said []string
	o := enrol.Options{Root: m.root, Timeout: patience, Say: func(s string) { said = append(said, s) }}
	if _, err := enrol.Join(t.Context(), dir, o); !errors.Is(err, enrol.ErrNoDaemon) {
		t.Fatalf("join without a daemon: %v, want that nobody runs one", err)
	}
	m.start()
	m.until("up", func(status.Report) bool { return true })
	r, err := enrol.Join(t.Context(), dir, o)
	if err != nil || !joined(r) {
		t.Fatalf("join: %v, report %+v", err, r)
	}
	for _, s := range said {
		if strings.Contains(s, "istio-token") {
			t.Errorf("join says %q on a machine that needs no such file", s)
		}
	}
	if r.Identity.Source != "exec" {
		t.Errorf("the certificate came by %q, want exec", r.Identity.Source)
	}
}
