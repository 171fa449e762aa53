package iptables

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// childVar makes the test binary act as a second process: "apply NAME BACKEND STEP" applies a fixture and dies by SIGKILL at
// a step, "" for never.
const childVar = "WINGMAN_IPTABLES_TEST_CHILD"

func TestMain(m *testing.M) {
	if args := os.Getenv(childVar); args != "" {
		if err := child(strings.Split(args, " ")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func child(args []string) error {
	name, backend, dieAt := args[1], args[2], strings.Join(args[3:], " ")
	a, err := NewApplier(ApplierConfig{})
	if err != nil {
		return err
	}
	a.host.step = func(step string) {
		if step == dieAt {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		}
	}
	if args[0] == "remove" {
		return a.Remove(context.Background())
	}
	rules, err := Plan(childConfig(name, backend))
	if err != nil {
		return err
	}
	return a.Apply(context.Background(), rules)
}

// childConfig is what child processes apply: everything that has more than one step.
func childConfig(mode, backend string) (Config, Facts) {
	cfg, facts := vmDefault(backend)
	cfg.DualStack = true
	if mode == "tproxy" {
		cfg.Mode = ModeTProxy
	}
	return cfg, facts
}

// startChild runs the test binary as a second process in the namespace of the calling thread.
func startChild(t *testing.T, change func(*exec.Cmd), args ...string) error {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childVar+"="+strings.Join(args, " "))
	if change != nil {
		change(cmd)
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}
