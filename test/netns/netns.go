// Package netns gives a test a network namespace of its own.
//
// New moves the calling test into a fresh namespace whose loopback is up and gives the thread back when the test ends;
// Create makes one beside it (the other end of a cable), entered with Do. Namespaces live as long as the test: nothing is
// mounted under /run, so a killed test leaves nothing behind. While a test that failed is still there, the line that
// enters its namespace is in its log.
//
// The skip rule of this repository lives here too: what a machine cannot offer (privileges, a tool, a kernel table) skips
// the test with a sentence, and fails it where CI=true or REQUIRE_NETNS=1 says that the machine must offer it.
package netns

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// NS is one network namespace, open until the test that made it ends.
type NS struct {
	file *os.File // keeps the namespace alive, whatever thread is in it
}

// New moves the calling goroutine, and with it the test, into a fresh network namespace with lo up.
//
// The goroutine stays locked to its thread until the test's cleanup. Other goroutines of the test do not follow: they use
// Do. Processes started by the calling goroutine are born in the namespace.
func New(t testing.TB) *NS {
	t.Helper()
	runtime.LockOSThread()
	home, err := os.Open(threadNS())
	if err != nil {
		runtime.UnlockOSThread()
		t.Fatalf("open this thread's network namespace: %v", err)
	}
	ns, err := unshare()
	if err != nil {
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		home.Close()
		Skip(t, fmt.Sprintf("no network namespace of its own (run as root, or under unshare -rn): %v", err))
	}
	t.Cleanup(func() {
		defer home.Close()
		if t.Failed() {
			t.Logf("the namespace was: nsenter --net=%s", ns.Path())
		}
		ns.file.Close()
		if err := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); err != nil {
			// Still locked: the thread, which nobody else may use now, dies with its goroutine.
			t.Errorf("go back to the former network namespace: %v", err)
			return
		}
		runtime.UnlockOSThread()
	})
	return ns
}

// Create makes a fresh network namespace with lo up and stays outside.
func Create(t testing.TB) *NS {
	t.Helper()
	type made struct {
		ns  *NS
		err error
	}
	done := make(chan made)
	go func() {
		runtime.LockOSThread() // never unlocked: the runtime ends the thread, which is in the wrong namespace
		ns, err := unshare()
		done <- made{ns, err}
	}()
	m := <-done
	if m.err != nil {
		Skip(t, fmt.Sprintf("no network namespace of its own (run as root, or under unshare -rn): %v", m.err))
	}
	t.Cleanup(func() { m.ns.file.Close() })
	return m.ns
}

// Do runs f inside the namespace, on a thread of its own, and waits for it.
//
// What f opens (sockets, processes) stays in the namespace; what f starts with go does not.
func (ns *NS) Do(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked, as in Create
		if err := unix.Setns(int(ns.file.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

// Path names the namespace for nsenter --net= and for netlink calls of this process.
func (ns *NS) Path() string {
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.file.Fd())
}

// Fd is the descriptor of the namespace, owned by ns; for netlink.LinkSetNsFd.
func (ns *NS) Fd() int { return int(ns.file.Fd()) }

// Tool returns the full path of a program the test needs, or skips the test by the skip rule.
func Tool(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err == nil {
		return path
	}
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/local/sbin"} {
		path := dir + "/" + name
		if info, err := os.Stat(path); err == nil && info.Mode()&0o111 != 0 {
			return path
		}
	}
	Skip(t, name+" is not installed")
	return ""
}

// Skip ends the test because the machine lacks something: skipped, or failed where CI=true or REQUIRE_NETNS=1.
func Skip(t testing.TB, sentence string) {
	t.Helper()
	if Required() {
		t.Fatalf("%s (CI or REQUIRE_NETNS is set: this machine must offer it)", sentence)
	}
	t.Skip(sentence)
}

// Required reports whether this machine must run every kernel test: CI=true or REQUIRE_NETNS=1.
func Required() bool {
	return os.Getenv("CI") == "true" || os.Getenv("REQUIRE_NETNS") == "1"
}

// unshare moves the current thread, which must be locked, into a fresh network namespace and brings lo up there.
func unshare() (*NS, error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("unshare: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return nil, fmt.Errorf("find lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return nil, fmt.Errorf("bring lo up: %w", err)
	}
	file, err := os.Open(threadNS())
	if err != nil {
		return nil, fmt.Errorf("open the new network namespace: %w", err)
	}
	return &NS{file: file}, nil
}

func threadNS() string { return fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()) }
