package envoytest

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"

	"wingman/test/netns"
)

// insideVar tells the test binary that it runs in a network of its own already.
const insideVar = "WINGMAN_ENVOYTEST_INSIDE"

// Main is the body of TestMain. It runs the test binary again in a network namespace of its own, with lo up, and ends with its
// result. Where that is not allowed, and in fuzz workers, whose pipes would be lost, the tests run in place; those that need the
// network say so by Network.
func Main(m *testing.M) {
	if os.Getenv(insideVar) != "" {
		if err := loopbackUp(); err != nil {
			fmt.Fprintln(os.Stderr, "prepare the network of the tests:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	for _, arg := range os.Args[1:] {
		if strings.HasPrefix(arg, "-test.fuzz") {
			os.Exit(m.Run())
		}
	}
	again := exec.Command("/proc/self/exe", os.Args[1:]...)
	again.Env = append(os.Environ(), insideVar+"=1")
	again.Stdin, again.Stdout, again.Stderr = os.Stdin, os.Stdout, os.Stderr
	again.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() != 0 {
		again.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		again.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		again.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	if err := again.Start(); err != nil {
		os.Exit(m.Run()) // Network skips what needs it
	}
	_ = again.Wait() // the exit code says it
	os.Exit(again.ProcessState.ExitCode())
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// Network skips a test that needs ports of its own where Main could not make a network.
func Network(t testing.TB) {
	t.Helper()
	if os.Getenv(insideVar) == "" {
		netns.Skip(t, "no network namespace of its own (run as root, or under unshare -rn)")
	}
}

// Program returns the real Envoy. The test is skipped when none is named, which with REQUIRE_ENVOY=1 is a failure, as is one that is not there.
func Program(t testing.TB) string {
	t.Helper()
	path := os.Getenv("WINGMAN_ENVOY")
	if path == "" {
		const why = "WINGMAN_ENVOY names no Envoy to try this with (make test-envoy)"
		if os.Getenv("REQUIRE_ENVOY") == "1" {
			t.Fatal(why)
		}
		t.Skip(why)
	}
	if _, err := exec.LookPath(path); err != nil {
		t.Fatalf("WINGMAN_ENVOY: %v", err)
	}
	Network(t)
	return path
}

// Dir is t.TempDir with a short path: that of a socket has 108 bytes.
func Dir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "wm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}
