package testbed

import (
	"fmt"
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

// Kill ends Envoy by SIGKILL, and leaves its supervisor alone. The agent says which process it is.
func (e *Envoy) Kill(t testing.TB) {
	t.Helper()
	s, err := e.vm.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if s.Envoy.PID == 0 {
		t.Fatalf("there is no Envoy to kill: %+v", s.Envoy)
	}
	if err := e.vm.Visit(func() error { return syscall.Kill(s.Envoy.PID, syscall.SIGKILL) }); err != nil {
		t.Fatal(err)
	}
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
	body, err := get(t, m, "127.0.0.1:15000", "", page)
	if err != nil {
		t.Fatal(err)
	}
	return body
}
