// Package machine makes virtual machines for tests out of namespaces.
//
// A machine has a host name, a network with one cable to the test's side, and a root file system of its own: the host's
// programs read-only, everything else (/etc, /var, /run, /tmp) empty but for what every Linux has, so that an agent finds
// its files at their classic places. It shares the kernel, and the process table of the test. There is a user istio-proxy
// (995, as Istio's package has it) and no service manager.
//
// The test's side of every cable is one network namespace, the one that Main puts the tests in: there the control plane
// listens, and from there machines reach each other by routing. Machine N of a test is 10.99.N.2 behind 10.99.N.1.
//
// Goroutines: two Launchers (package proc) for each machine, one on a thread inside it; one goroutine for each Visit.
package machine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"wingman/test/mesh/proc"
)

// ProxyID is the uid and gid of the user istio-proxy.
const ProxyID = 995

// ProxyCaps are the ambient capabilities of the agent's unit.
var ProxyCaps = []uintptr{unix.CAP_NET_ADMIN, unix.CAP_NET_RAW}

// Config describes a machine.
type Config struct {
	Name string // host name
	// Addr is the machine's address with its network's length; the network's first address is the test's side, and the
	// machine's default route and resolver.
	Addr netip.Prefix
	// Bind brings files and folders of the test's file system in: path in the machine → path outside.
	Bind map[string]string
	// Logs is the folder for the logs of programs, outside the machine.
	Logs string
}

// Machine is one virtual machine, from New to Close.
type Machine struct {
	cfg            Config
	holder         *exec.Cmd
	stdin          io.Closer // its end tells the holder to go
	*proc.Launcher           // on a thread inside the machine
	outer          *proc.Launcher
}

// New starts a machine and connects it. The caller's process must run under Main.
func New(cfg Config) (*Machine, error) {
	m := &Machine{cfg: cfg}
	if err := m.boot(); err != nil {
		return nil, errors.Join(fmt.Errorf("start machine %s: %w", cfg.Name, err), m.Close())
	}
	return m, nil
}

func (m *Machine) boot() (err error) {
	if m.outer, err = proc.NewLauncher(nil); err != nil {
		return err
	}
	root := filepath.Join(m.cfg.Logs, m.cfg.Name+".root")
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	if err := m.startHolder(root); err != nil {
		return err
	}
	if m.Launcher, err = proc.NewLauncher(func() error { return enter(m.holder.Process.Pid) }); err != nil {
		return fmt.Errorf("enter its namespaces: %w", err)
	}
	if err := m.connect(); err != nil {
		return fmt.Errorf("connect its network: %w", err)
	}
	for path, content := range m.identity() {
		if err := m.WriteFile(path, content, 0o644, 0); err != nil {
			return err
		}
	}
	return m.MakeDir("/home/istio-proxy", 0o755, ProxyID)
}

// startHolder starts the process that the namespaces belong to and waits until it has furnished them.
func (m *Machine) startHolder(root string) error {
	binds, err := json.Marshal(m.cfg.Bind)
	if err != nil {
		return err
	}
	m.holder = exec.Command("/proc/self/exe")
	m.holder.Env = append(os.Environ(), roleVar+"="+roleMachine, rootVar+"="+root, nameVar+"="+m.cfg.Name, bindVar+"="+string(binds),
		"GORACE=atexit_sleep_ms=0") // the race detector sleeps a second before it lets a process end
	m.holder.Stderr = os.Stderr
	m.holder.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Setpgid:    true, // an interrupt at the terminal is for the tests, which then end their machines
		Pdeathsig:  syscall.SIGKILL,
	}
	stdout, err := m.holder.StdoutPipe()
	if err != nil {
		return err
	}
	if m.stdin, err = m.holder.StdinPipe(); err != nil {
		return err
	}
	if err := m.outer.Do(m.holder.Start); err != nil {
		m.holder = nil
		return err
	}
	said := make([]byte, len(ready))
	if _, err := io.ReadFull(stdout, said); err != nil {
		return fmt.Errorf("its holder ended early: %w", err)
	}
	return nil
}

// enter moves the calling thread, which must be locked, into the namespaces of a process.
func enter(pid int) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil { // setns(2) refuses mounts to threads that share their root
		return fmt.Errorf("unshare root: %w", err)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("pidfd_open: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Setns(fd, unix.CLONE_NEWNET|unix.CLONE_NEWNS|unix.CLONE_NEWUTS|unix.CLONE_NEWIPC); err != nil {
		return fmt.Errorf("setns: %w", err)
	}
	return nil
}

// identity are the files that tell a machine who it is.
func (m *Machine) identity() map[string]string {
	return map[string]string{
		"/etc/hostname":    m.cfg.Name + "\n",
		"/etc/hosts":       "127.0.0.1 localhost\n::1 localhost\n127.0.1.1 " + m.cfg.Name + "\n",
		"/etc/resolv.conf": "nameserver " + m.Gateway().String() + "\n",
		"/etc/passwd": "root:x:0:0:root:/root:/bin/sh\n" +
			fmt.Sprintf("istio-proxy:x:%d:%d::/home/istio-proxy:/usr/sbin/nologin\n", ProxyID, ProxyID) +
			"nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
		"/etc/group": fmt.Sprintf("root:x:0:\nistio-proxy:x:%d:\nnogroup:x:65534:\n", ProxyID),
	}
}

// Close ends every process in the machine and the machine. It may be called more than once.
func (m *Machine) Close() error {
	if m.holder == nil {
		return nil
	}
	m.KillAll()
	disconnect(m.cfg.Name)
	if m.Launcher != nil {
		m.Launcher.Close()
	}
	m.stdin.Close()
	err := m.holder.Wait()
	m.outer.Close()
	m.holder = nil
	return err
}

// KillAll ends every process in the machine with SIGKILL, as a power cut would, and leaves the machine running.
func (m *Machine) KillAll() {
	home, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", m.holder.Process.Pid))
	if err != nil {
		return // the holder is gone, and with it the machine's processes' thread
	}
	names, _ := filepath.Glob("/proc/[0-9]*/ns/net")
	for _, name := range names {
		pid, err := strconv.Atoi(strings.Split(name, "/")[2])
		if err != nil || pid == m.holder.Process.Pid || pid == os.Getpid() {
			continue
		}
		if ns, err := os.Readlink(name); err == nil && ns == home {
			_ = unix.Kill(pid, unix.SIGKILL) // it may have ended by itself
		}
	}
}

// Name is the machine's host name.
func (m *Machine) Name() string { return m.cfg.Name }

// IP is the machine's address.
func (m *Machine) IP() netip.Addr { return m.cfg.Addr.Addr() }

// Gateway is the address of the test's side of the cable, as the machine sees it.
func (m *Machine) Gateway() netip.Addr { return m.cfg.Addr.Masked().Addr().Next() }

// WriteFile writes a file of the machine for an owner (uid and gid; 0 is root), and makes the folders that it needs.
func (m *Machine) WriteFile(name, content string, mode os.FileMode, owner int) error {
	err := m.Visit(func() error {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(name, []byte(content), mode); err != nil {
			return err
		}
		return os.Chown(name, owner, owner)
	})
	if err != nil {
		return fmt.Errorf("write to machine %s: %w", m.cfg.Name, err)
	}
	return nil
}

// MakeDir makes a folder of the machine for an owner.
func (m *Machine) MakeDir(name string, mode os.FileMode, owner int) error {
	err := m.Visit(func() error {
		if err := os.MkdirAll(name, mode); err != nil {
			return err
		}
		return os.Chown(name, owner, owner)
	})
	if err != nil {
		return fmt.Errorf("make folder in machine %s: %w", m.cfg.Name, err)
	}
	return nil
}

// Run runs a program in the machine as root and returns its standard output; a failure's error has what it said.
func (m *Machine) Run(ctx context.Context, path string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"}
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := m.Do(cmd.Start)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return stdout.String(), fmt.Errorf("in machine %s: %s %s: %w: %s", m.cfg.Name, path, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// Listen opens a TCP listener in the machine. address is an IP address and a port.
func (m *Machine) Listen(address string) (l net.Listener, err error) {
	err = m.Visit(func() error {
		l, err = net.Listen("tcp", address)
		return err
	})
	return l, err
}

// Dial connects from within the machine. address is an IP address and a port, or a socket's path: a name would be looked
// up by threads that are elsewhere.
func (m *Machine) Dial(ctx context.Context, network, address string) (c net.Conn, err error) {
	err = m.Visit(func() error {
		c, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return c, err
}

// Visit runs f on a thread in the machine that ends with it, so that f may block. f sees the machine's files, and sockets that
// it opens stay in the machine. Programs are not to be started from it: they would end with the thread.
func (m *Machine) Visit(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread is of no use elsewhere
		if err := enter(m.holder.Process.Pid); err != nil {
			done <- fmt.Errorf("enter machine %s: %w", m.cfg.Name, err)
			return
		}
		done <- f()
	}()
	return <-done
}
