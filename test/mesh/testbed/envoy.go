package testbed

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"wingman/test/mesh/machine"
	"wingman/test/mesh/proc"
)

// Envoy is the real Envoy on a machine, under `wingman proxy`.
type Envoy struct {
	vm   *VM
	proc *proc.Process // the supervisor
	log  string        // the supervisor's and Envoy's, over all runs, with Envoy's access logs
}

// StartProxy runs `wingman proxy` as wingman-proxy.service would: user istio-proxy, no capability. The machine must have Envoy. It returns at once.
func (v *VM) StartProxy(t testing.TB) *Envoy {
	t.Helper()
	e := &Envoy{vm: v, log: filepath.Join(v.bed.logs, v.spec.Host+".envoy.log")}
	if err := v.MakeDir("/run/wingman-proxy", 0o755, machine.ProxyID); err != nil {
		t.Fatal(err)
	}
	e.Start(t)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("wingman proxy on %s said:\n%s", v.spec.Host, e.proc.Tail(60))
		}
	})
	return e
}

// Start starts the supervisor again after Stop.
func (e *Envoy) Start(t testing.TB) {
	t.Helper()
	p, err := e.vm.Start(proc.Spec{
		Path: "/usr/local/bin/wingman", Args: []string{"proxy"},
		Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/home/istio-proxy"},
		Dir: "/", Log: e.log,
		Credential: &syscall.Credential{Uid: machine.ProxyID, Gid: machine.ProxyID},
	})
	if err != nil {
		t.Fatal(err)
	}
	e.proc = p
}

// Stop ends the supervisor by SIGTERM, and Envoy with it.
func (e *Envoy) Stop(t testing.TB) {
	t.Helper()
	ctx, cancel := step(t)
	defer cancel()
	if err := e.proc.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if err := e.proc.Err(); err != nil {
		t.Fatalf("stop wingman proxy on %s: %v", e.vm.spec.Host, err)
	}
}

// Kill waits until an Envoy runs, be it one that does not serve yet, and ends it by SIGKILL. Its supervisor is left alone.
func (e *Envoy) Kill(t testing.TB) {
	t.Helper()
	Await(t, "an Envoy runs on "+e.vm.Name(), func() error {
		return e.vm.Visit(func() error {
			s, err := e.state()
			if err != nil {
				return err
			}
			if s.PID == 0 {
				return fmt.Errorf("none: the supervisor is %s", s.Phase)
			}
			return syscall.Kill(s.PID, syscall.SIGKILL)
		})
	})
}

// Signal sends a signal to Envoy, not to its supervisor: SIGSTOP makes it hang, SIGCONT go on.
func (e *Envoy) Signal(t testing.TB, pid int, s syscall.Signal) {
	t.Helper()
	if err := e.vm.Visit(func() error { return syscall.Kill(pid, s) }); err != nil {
		t.Fatal(err)
	}
}

// PID waits until the supervisor says that an Envoy serves, and returns its process id. The agent's status is up to a second behind.
func (e *Envoy) PID(t testing.TB) (pid int) {
	t.Helper()
	Await(t, "an Envoy serves on "+e.vm.Name(), func() error {
		return e.vm.Visit(func() error {
			state, err := e.state()
			if err != nil {
				return err
			}
			if state.Phase != "live" {
				return fmt.Errorf("it is %s", state.Phase)
			}
			pid = state.PID
			return syscall.Kill(pid, 0) // the supervisor may have to notice its end yet
		})
	})
	return pid
}

// supervised is what the supervisor says of itself.
type supervised struct {
	Phase string
	PID   int
}

// state reads the supervisor's file; it must run on the machine.
func (e *Envoy) state() (s supervised, err error) {
	b, err := os.ReadFile("/run/wingman-proxy/state.json")
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal(b, &s)
}

// Await waits until the agent says that Envoy serves.
func (e *Envoy) Await(t testing.TB) {
	t.Helper()
	e.vm.AwaitStatus(t, "Envoy serves", func(s Status) error {
		if !s.Envoy.Live {
			return fmt.Errorf("it does not: %+v", s.Envoy)
		}
		return nil
	})
}

// Name is the machine's host name.
func (e *Envoy) Name() string { return e.vm.Name() }

// Log is the file that has what supervisor and Envoy said, access logs included.
func (e *Envoy) Log() string { return e.log }

// Process is the supervisor's.
func (e *Envoy) Process() *proc.Process { return e.proc }

// Admin reads a page of Envoy's admin port, such as /config_dump or /stats?filter=ssl.handshake.
func (e *Envoy) Admin(t testing.TB, page string) string {
	t.Helper()
	return adminPage(t, e.vm.Machine, page)
}

func adminPage(t testing.TB, m *machine.Machine, page string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout) // a dump may have a hundred megabytes
	defer cancel()
	r, err := request(ctx, m.Dial, "127.0.0.1:15000", "", page)
	if err != nil {
		t.Fatal(err)
	}
	if r.Status != http.StatusOK {
		t.Fatalf("Envoy's %s on %s: status %d: %s", page, m.Name(), r.Status, r.Body)
	}
	return r.Body
}
