package iptables

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
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
	dieAt := strings.Join(args[min(3, len(args)):], " ")
	a, err := NewApplier(ApplierConfig{})
	if err != nil {
		return err
	}
	a.host.step = func(step string) {
		if step == dieAt {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		}
	}
	switch args[0] {
	case "remove":
		return a.Remove(context.Background())
	case "status":
		_, err := a.Status(context.Background(), Rules{})
		return err
	case "guardian":
		d, err := time.ParseDuration(args[1])
		if err != nil {
			return err
		}
		return a.Guardian(context.Background(), d, os.Stdout)
	case "try":
		rules, err := Plan(childConfig(args[1], args[2]))
		if err != nil {
			return err
		}
		return a.Try(context.Background(), rules, guardianCommand(args[3]))
	}
	rules, err := Plan(childConfig(args[1], args[2]))
	if err != nil {
		return err
	}
	return a.Apply(context.Background(), rules)
}

// guardianCommand runs Guardian in the test binary.
func guardianCommand(d string) []string {
	return []string{"env", childVar + "=guardian " + d, testBinary()}
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
	cmd.Env = append(os.Environ(), childVar+"="+strings.Join(args, " "), "GORACE=atexit_sleep_ms=0")
	if change != nil {
		change(cmd)
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

func testBinary() string {
	self, err := os.Executable()
	if err != nil {
		return "/proc/self/exe"
	}
	return self
}
