package machine

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"wingman/test/mesh/proc"
)

func TestMain(m *testing.M) { Main(m) }

func start(t *testing.T, cfg Config) *Machine {
	t.Helper()
	Require(t)
	if cfg.Logs == "" {
		cfg.Logs = t.TempDir()
	}
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Errorf("close machine: %v", err)
		}
	})
	return m
}

func run(t *testing.T, m *Machine, path string, args ...string) string {
	t.Helper()
	out, err := m.Run(t.Context(), path, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestAMachineHasItsOwnNameFilesAndUsers(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "tool")
	if err := os.WriteFile(outside, []byte("#!/bin/sh\necho brought in\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	m := start(t, Config{Name: "forum-vm", Addr: netip.MustParsePrefix("10.99.0.2/24"), Bind: map[string]string{"/usr/local/bin/tool": outside}})
	for _, c := range []struct {
		name string
		argv []string
		want string
	}{
		{"its host name", []string{"/bin/hostname"}, "forum-vm\n"},
		{"the agent's user", []string{"/usr/bin/id", "istio-proxy"}, "uid=995(istio-proxy) gid=995(istio-proxy) groups=995(istio-proxy)\n"},
		{"a resolver", []string{"/bin/cat", "/etc/resolv.conf"}, "nameserver 10.99.0.1\n"},
		{"nothing in the folders of an agent", []string{"/bin/sh", "-c", "ls -A /run /var/lib /root"}, "/root:\n\n/run:\n\n/var/lib:\n"},
		{"no network devices of the host", []string{"/bin/ls", "/sys/class/net"}, "eth0\nlo\n"},
		{"what was brought in", []string{"/usr/local/bin/tool"}, "brought in\n"},
		{"programs that it cannot change", []string{"/bin/sh", "-c", "touch /usr/bin/x 2>/dev/null || echo read-only"}, "read-only\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := run(t, m, c.argv[0], c.argv[1:]...); got != c.want {
				t.Errorf("%v said %q, want %q", c.argv, got, c.want)
			}
		})
	}
	if err := m.WriteFile("/var/lib/istio/envoy/cluster.env", "A=1\n", 0o600, ProxyID); err != nil {
		t.Fatal(err)
	}
	if got := run(t, m, "/bin/sh", "-c", "cd /var/lib/istio/envoy; cat cluster.env; stat -c '%a %U' cluster.env"); got != "A=1\n600 istio-proxy\n" {
		t.Errorf("file written from outside is %q inside", got)
	}
	if _, err := os.Stat("/var/lib/istio/envoy/cluster.env"); err == nil {
		t.Error("a file of the machine is on the host")
	}
}

func TestMachinesReachTheTestAndEachOther(t *testing.T) {
	a := start(t, Config{Name: "a", Addr: netip.MustParsePrefix("10.99.0.2/24")})
	b := start(t, Config{Name: "b", Addr: netip.MustParsePrefix("10.99.1.2/24")})

	l, err := b.Listen("10.99.1.2:80")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		if c, err := l.Accept(); err == nil {
			fmt.Fprint(c, "hello ", c.RemoteAddr().(interface{ AddrPort() netip.AddrPort }).AddrPort().Addr())
			c.Close()
		}
	}()
	c, err := a.Dial(t.Context(), "tcp", "10.99.1.2:80")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got, err := io.ReadAll(c); err != nil || string(got) != "hello 10.99.0.2" {
		t.Errorf("machine b said %q, %v, want a greeting for a's own address", got, err)
	}
}

func TestAProgramRunsAsTheProxysUserWithTwoCapabilities(t *testing.T) {
	m := start(t, Config{Name: "forum-vm", Addr: netip.MustParsePrefix("10.99.0.2/24")})
	p, err := m.Start(proc.Spec{
		Path: "/bin/sh", Args: []string{"-c", "id -u; grep -E 'Cap(Eff|Amb)' /proc/self/status"}, Env: []string{"PATH=/usr/bin:/bin"},
		Log: filepath.Join(t.TempDir(), "log"), Credential: &syscall.Credential{Uid: ProxyID, Gid: ProxyID}, Caps: ProxyCaps,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Err(); err != nil {
		t.Fatal(err)
	}
	if got, want := p.Tail(10), "995\nCapEff:\t0000000000003000\nCapAmb:\t0000000000003000"; got != want {
		t.Errorf("the program said %q, want %q", got, want)
	}
}

func TestClosingAMachineEndsEveryProcessInIt(t *testing.T) {
	m := start(t, Config{Name: "forum-vm", Addr: netip.MustParsePrefix("10.99.0.2/24")})
	// setsid leaves the process group of what was started, as a daemon does.
	pid := strings.TrimSpace(run(t, m, "/bin/sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & echo $!"))
	id, err := strconv.Atoi(pid)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(id, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000); n != 1 {
		t.Errorf("process %s still runs 10 s after its machine was closed (poll: %v)", pid, err)
	}
}
