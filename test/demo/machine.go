package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// machine is the VM: one thread of this process that stands in network, mount and host name namespaces of its own, and
// the processes that are started from it.
type machine struct {
	root string // the daemon's --root; its etc is the machine's /etc
	bin  string // programs that every user may run: wingman, and this one as demo

	work chan func() // run by the thread
	once sync.Once
	gone chan struct{}
}

// newMachine boots a VM below place, an empty folder that gets a tmpfs: programs are copied there, so that users other
// than root can run them, and the machine's files written. The cable comes later: see plug.
func newMachine(place, wingman string) (*machine, error) {
	if err := privateMounts(place); err != nil {
		return nil, err
	}
	m := &machine{
		root: filepath.Join(place, "vm"), bin: filepath.Join(place, "bin"),
		work: make(chan func()), gone: make(chan struct{}),
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	if err := os.Mkdir(m.bin, 0o755); err != nil {
		return nil, err
	}
	for from, to := range map[string]string{wingman: "wingman", self: "demo"} {
		if err := copyProgram(from, filepath.Join(m.bin, to)); err != nil {
			return nil, err
		}
	}
	go m.thread()
	return m, nil
}

// thread runs work until stop. It is never given back to the runtime: the goroutine's end is the thread's, and with it
// the kernel kills every process that was started from it.
func (m *machine) thread() {
	runtime.LockOSThread()
	defer close(m.gone)
	for f := range m.work {
		f()
	}
}

// do runs f on the machine and returns its error.
func (m *machine) do(f func() error) error {
	result := make(chan error, 1)
	select {
	case m.work <- func() { result <- f() }:
		return <-result
	case <-m.gone:
		return errors.New("the machine is off")
	}
}

// off ends the machine and everything on it.
func (m *machine) off() {
	m.once.Do(func() { close(m.work) })
	<-m.gone
}

// boot gives the thread its namespaces, a host name, and its own /etc and /run.
func (m *machine) boot() error {
	return m.do(func() error {
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWUTS); err != nil {
			return fmt.Errorf("namespaces for the machine: %w", err)
		}
		if err := unix.Sethostname([]byte("forum-vm")); err != nil {
			return fmt.Errorf("host name: %w", err)
		}
		// A lock file of iptables-legacy, as packaging makes it; the tmpfs hides the host's.
		if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
			return fmt.Errorf("/run of the machine: %w", err)
		}
		if err := writeFile("/run/xtables.lock", nil, 0o660, 0, proxyUID); err != nil {
			return err
		}
		if err := unix.Mount(filepath.Join(m.root, "etc"), "/etc", "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("/etc of the machine: %w", err)
		}
		return nil
	})
}

// plug lays the cable between this process's namespace and the machine, and gives the machine its address and route.
func (m *machine) plug() error {
	var ns *os.File
	if err := m.do(func() (err error) {
		ns, err = os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
		return err
	}); err != nil {
		return err
	}
	defer ns.Close()
	if err := layCable(int(ns.Fd())); err != nil {
		return err
	}
	return m.do(func() error {
		for _, link := range []string{"lo", "eth0"} {
			if err := setUp(link); err != nil {
				return err
			}
		}
		if err := addAddr("eth0", machineAddr+prefix); err != nil {
			return err
		}
		gw, err := netlink.ParseAddr(worldAddr + "/32")
		if err != nil {
			return err
		}
		if err := netlink.RouteAdd(&netlink.Route{Gw: gw.IP}); err != nil {
			return fmt.Errorf("default route: %w", err)
		}
		return nil
	})
}

// process is a program on the machine.
type process struct {
	cmd   *exec.Cmd
	ended chan struct{} // closed once it has ended
	err   error         // of Wait; valid after ended
}

// start runs a program of m.bin as a user of the machine. caps are its ambient capabilities; log gets its stdout and stderr.
func (m *machine) start(uid uint32, caps []uintptr, log *os.File, program string, args ...string) (*process, error) {
	cmd := exec.Command(filepath.Join(m.bin, program), args...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: uid, Gid: uid}, AmbientCaps: caps, Pdeathsig: syscall.SIGKILL,
	}
	p := &process{cmd: cmd, ended: make(chan struct{})}
	if err := m.do(cmd.Start); err != nil {
		return nil, err
	}
	go func() {
		defer close(p.ended)
		p.err = cmd.Wait()
	}()
	return p, nil
}

// startDaemon runs wingman as its unit does: user istio-proxy, two ambient capabilities, no others.
func (m *machine) startDaemon(log *os.File) (*process, error) {
	return m.start(proxyUID, []uintptr{unix.CAP_NET_ADMIN, unix.CAP_NET_RAW}, log, "wingman", "run", "--root", m.root)
}

// checkPrivileges reads from the kernel what the daemon may do.
func (p *process) checkPrivileges() (string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return "", err
	}
	got := map[string]string{}
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(line, ":")
		got[key] = strings.Join(strings.Fields(value), " ")
	}
	caps := fmt.Sprintf("%016x", 1<<unix.CAP_NET_ADMIN|1<<unix.CAP_NET_RAW)
	uids := strings.TrimSpace(strings.Repeat(strconv.Itoa(proxyUID)+" ", 4))
	if got["CapEff"] != caps || got["CapPrm"] != caps || got["Uid"] != uids {
		return "", fmt.Errorf("process %d has uids %q and capabilities %s/%s, want %q and %s",
			p.cmd.Process.Pid, got["Uid"], got["CapEff"], got["CapPrm"], uids, caps)
	}
	return fmt.Sprintf("process %d, uid %d (istio-proxy), capabilities NET_ADMIN and NET_RAW, no others", p.cmd.Process.Pid, proxyUID), nil
}

// end sends a signal and waits until the process has ended; it reports the process's own error.
func (p *process) end(ctx context.Context, sig syscall.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil {
		return err
	}
	select {
	case <-p.ended:
		return p.err
	case <-ctx.Done():
		return fmt.Errorf("process %d does not end on %s: %w", p.cmd.Process.Pid, sig, context.Cause(ctx))
	}
}

// output runs a program as a user to its end and returns what it prints.
func (m *machine) output(ctx context.Context, uid uint32, path string, args ...string) (string, error) {
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}, Pdeathsig: syscall.SIGKILL}
	if err := m.do(cmd.Start); err != nil {
		return "", err
	}
	if err := cmd.Wait(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w: %s", filepath.Base(path), strings.Join(args, " "), err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}

// ask has a user of the machine resolve names, going on for millis if that is not zero.
func (m *machine) ask(ctx context.Context, uid uint32, millis int, names ...string) ([]answer, error) {
	out, err := m.output(ctx, uid, filepath.Join(m.bin, "demo"), append([]string{roleAsk, strconv.Itoa(millis)}, names...)...)
	if err != nil {
		return nil, err
	}
	answers := make([]answer, 0, len(names))
	for line := range strings.Lines(out) {
		var a answer
		if err := json.Unmarshal([]byte(line), &a); err != nil {
			return nil, fmt.Errorf("answer %q: %w", line, err)
		}
		answers = append(answers, a)
	}
	if len(answers) != len(names) {
		return nil, fmt.Errorf("%d answers to %d questions", len(answers), len(names))
	}
	return answers, nil
}

// rules reads the machine's IPv4 rules from the kernel. Where both kinds of iptables are installed, it asks both: which one
// the daemon uses is its own affair.
func (m *machine) rules(ctx context.Context) (ruleset, error) {
	var (
		all  ruleset
		errs []error
		read bool
	)
	for _, program := range []string{"iptables-nft-save", "iptables-legacy-save", "iptables-save"} {
		path, err := exec.LookPath(program)
		if err != nil || program == "iptables-save" && read {
			continue
		}
		out, err := m.output(ctx, 0, path, "-c")
		if err != nil { // a kernel may lack one of the two
			errs = append(errs, err)
			continue
		}
		set, err := parseRules(out)
		if err != nil {
			return ruleset{}, err
		}
		read = true
		all.rules, all.chains = append(all.rules, set.rules...), append(all.chains, set.chains...)
	}
	if !read {
		return ruleset{}, fmt.Errorf("read the kernel's rules: %w", errors.Join(errs...))
	}
	return all, nil
}
