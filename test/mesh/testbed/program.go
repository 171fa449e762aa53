package testbed

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"testing"

	"wingman/test/mesh/machine"
)

// envoyProgram is where Istio's package has Envoy.
const envoyProgram = "/usr/local/bin/envoy"

// InstallEnvoy puts Envoy's program on a machine that was made without, as a package does: it is there whole, all at once.
func (v *VM) InstallEnvoy(t testing.TB) {
	t.Helper()
	from, err := os.Open(v.bed.set.Envoy)
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	err = v.Visit(func() error {
		to, err := os.OpenFile(envoyProgram+".new", os.O_CREATE|os.O_WRONLY, 0o755)
		if err != nil {
			return err
		}
		if _, err := io.Copy(to, from); err != nil {
			to.Close()
			return err
		}
		if err := to.Close(); err != nil {
			return err
		}
		return os.Rename(envoyProgram+".new", envoyProgram)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// RemoveEnvoy takes away what InstallEnvoy put there. An Envoy that runs goes on.
func (v *VM) RemoveEnvoy(t testing.TB) {
	t.Helper()
	if err := v.Visit(func() error { return os.Remove(envoyProgram) }); err != nil {
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

// KillNow ends whatever Envoy runs now, also one that does not serve yet, by SIGKILL. It reports whether there was one.
func (e *Envoy) KillNow(t testing.TB) bool {
	t.Helper()
	return e.vm.Visit(func() error {
		s, err := e.state()
		if err != nil {
			return err
		}
		if s.PID == 0 {
			return errors.New("no Envoy runs")
		}
		return syscall.Kill(s.PID, syscall.SIGKILL)
	}) == nil
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

// Signal sends a signal to Envoy, not to its supervisor: SIGSTOP makes it hang, SIGCONT go on.
func (e *Envoy) Signal(t testing.TB, pid int, s syscall.Signal) {
	t.Helper()
	if err := e.vm.Visit(func() error { return syscall.Kill(pid, s) }); err != nil {
		t.Fatal(err)
	}
}

// WriteSettings replaces the agent's own settings, which it reads at its start and by SIGHUP.
func (v *VM) WriteSettings(t testing.TB, yaml string) {
	t.Helper()
	if err := v.WriteFile("/etc/wingman/wingman.yaml", yaml, 0o644, machine.ProxyID); err != nil {
		t.Fatal(err)
	}
}

// Reload has the agent read its settings again.
func (v *VM) Reload(t testing.TB) {
	t.Helper()
	if err := v.proc.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
}
