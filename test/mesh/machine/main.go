package machine

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Environment variables by which Main tells one run of the test binary from another.
const (
	meshVar    = "WINGMAN_MESH"         // 1: the tests of this module run
	roleVar    = "WINGMAN_MESH_PROCESS" // unset, roleTests or roleMachine
	scratchVar = "WINGMAN_MESH_SCRATCH" // the folder of Scratch
)

const (
	roleTests   = "tests"   // inside the namespaces that Main made
	roleMachine = "machine" // holds one machine's namespaces; see hold.go
)

// Main is the body of TestMain in packages that use machines. It does not return.
//
// With WINGMAN_MESH=1 it runs prepare, with a folder that lives as long as the tests, while the network of the host is still in
// reach: the place to fetch and build what the tests need. Then it starts the test binary again, as root of namespaces of its own (network, mounts, processes), and
// the tests run there: well-known ports are free, 127.0.0.1 is the control plane's, and when the binary ends, however it
// ends, the kernel ends every process and interface of the tests with it. Without WINGMAN_MESH=1 the tests run in
// place, and those that need a mesh skip themselves by Require.
func Main(m *testing.M, prepare ...func(dir string) error) {
	switch os.Getenv(roleVar) {
	case roleMachine:
		if err := hold(); err != nil {
			fmt.Fprintln(os.Stderr, "machine:", err)
			os.Exit(1)
		}
		os.Exit(0)
	case roleTests:
		if err := settle(); err != nil {
			fmt.Fprintln(os.Stderr, "prepare the namespaces of the tests:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	if os.Getenv(meshVar) != "1" {
		os.Exit(m.Run())
	}
	code, err := again(prepare)
	if err != nil {
		fmt.Fprintln(os.Stderr, "run the tests on a real mesh:", err)
		os.Exit(1)
	}
	os.Exit(code)
}

// Scratch makes a folder for what outlives the processes of a test: logs, first of all. Its path is short, for the sockets in it
// (a socket's path has 108 bytes). A run of the test binary without failures removes it at its end; a test that fails says
// where it is.
func Scratch(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp(os.Getenv(scratchVar), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the logs of what ran are kept in %s", dir)
		}
	})
	return dir
}

// Require skips the test unless WINGMAN_MESH=1 asks for the real mesh; then whatever is missing must fail the test.
func Require(t testing.TB) {
	t.Helper()
	if os.Getenv(meshVar) != "1" {
		t.Skip("the real mesh takes minutes to build and root to run: set WINGMAN_MESH=1 (make test-mesh)")
	}
	if os.Getenv(roleVar) != roleTests {
		t.Fatal("this package's TestMain must be machine.Main")
	}
}

// again runs this test binary with the same arguments in new namespaces and returns its exit status.
func again(prepare []func(dir string) error) (exitCode int, err error) {
	scratch, err := os.MkdirTemp("", "mesh-")
	if err != nil {
		return 0, err
	}
	defer func() {
		if exitCode == 0 {
			err = errors.Join(err, os.RemoveAll(scratch))
		} else {
			_ = os.Remove(scratch) // which fails when it holds something: that stays for a person to look at
		}
	}()
	for _, f := range prepare {
		if err := f(scratch); err != nil {
			return 0, err
		}
	}
	runtime.LockOSThread() // the child dies with this thread, which is the process's first and stays
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), roleVar+"="+roleTests, scratchVar+"="+scratch)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID,
		Pdeathsig:  syscall.SIGKILL,
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT)
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("make namespaces, which takes root: %w", err)
	}
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s) // an error means that it has just ended
		}
	}()
	err = cmd.Wait()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return max(exit.ExitCode(), 1), nil // -1: killed by a signal
	}
	return 0, err
}

// settle makes the fresh namespaces habitable: loopback up, /proc of this PID namespace, packets forwarded between machines.
func settle() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keep mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := loopbackUp(); err != nil {
		return err
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil {
		return fmt.Errorf("forward between machines: %w", err)
	}
	return nil
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	return nil
}
