package iptables

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// sshServer is a real sshd on port 2222 of the VM, and how to reach it from outside.
type sshServer struct {
	client []string // ssh with its options, without a command
	// leave ends the server that listens; its sessions live on.
	leave func(t *testing.T)
}

// startSSHD starts sshd in the VM's namespace. It skips the test where sshd is not installed: unlike the tools of the kernel,
// the product does not need it.
func startSSHD(t *testing.T) *sshServer { return startSSHDOn(t, 2222, nil) }

// startSSHDOn is startSSHD on another port, by a command that may be changed before it starts.
func startSSHDOn(t *testing.T, port int, change func(*exec.Cmd)) *sshServer {
	t.Helper()
	var tools [3]string
	for i, name := range []string{"sshd", "ssh", "ssh-keygen"} {
		path, err := findCommand(name)
		if err != nil {
			t.Skipf("no SSH server to lock out: %v", err)
		}
		tools[i] = path
	}
	dir := t.TempDir()
	sh(t, tools[2], "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, "host"))
	sh(t, tools[2], "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, "user"))
	conf := fmt.Sprintf("Port %[2]d\nHostKey %[1]s/host\nAuthorizedKeysFile %[1]s/user.pub\nStrictModes no\nUsePAM no\nPermitRootLogin yes\nPidFile none\n", dir, port)
	if err := os.WriteFile(filepath.Join(dir, "sshd_config"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	// sshd wants /run/sshd, which is made in a mount namespace of its own.
	cmd := exec.Command("unshare", "-m", "sh", "-c", `mount -t tmpfs tmpfs /run && mkdir /run/sshd && exec "$1" -D -e -f "$2"`, "sh", tools[0], filepath.Join(dir, "sshd_config"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if change != nil {
		change(cmd)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
	})
	for deadline := time.Now().Add(patience); ; {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			c.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("sshd does not listen: %v", err)
		}
	}
	leave := func(t *testing.T) {
		t.Helper()
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
	}
	return &sshServer{leave: leave, client: []string{
		tools[1], "-F", "none", "-i", filepath.Join(dir, "user"), "-p", strconv.Itoa(port), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
		"-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "LogLevel=ERROR", "root@" + vmAddr,
	}}
}

// session is a live SSH session from outside in which a cat echoes.
type session struct {
	in  io.Writer
	out *bufio.Reader
	n   int

	asks chan chan error // for watch; nil without it
	over chan struct{}   // closed when watch has ended
	err  error           // why, to be read after that
}

func (s *sshServer) session(t *testing.T, w *world) *session {
	t.Helper()
	cmd := exec.Command(s.client[0], append(s.client[1:], "cat")...)
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	w.in(t, w.net, cmd.Start)
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return &session{in: in, out: bufio.NewReader(out)}
}

// alive sends a line and waits for its echo.
func (s *session) alive(t *testing.T, when string) {
	t.Helper()
	if s.asks != nil { // watch does it, between two of its own
		answer := make(chan error, 1)
		select {
		case s.asks <- answer:
			if err := <-answer; err != nil {
				t.Fatalf("the SSH session died %s: %v", when, err)
			}
		case <-s.over:
			t.Fatalf("the SSH session died %s or before: %v", when, s.err)
		}
		return
	}
	if err := s.echo(); err != nil {
		t.Fatalf("the SSH session died %s: %v", when, err)
	}
}

// watch keeps the session busy until the test ends: a line every 10 ms, so that nothing that happens happens in a pause.
func (s *session) watch(t *testing.T) {
	t.Helper()
	s.asks, s.over = make(chan chan error), make(chan struct{})
	end := make(chan struct{})
	var longest time.Duration
	go func() {
		defer close(s.over)
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for s.err == nil {
			var answer chan error
			select {
			case <-end:
				return
			case answer = <-s.asks:
			case <-tick.C:
			}
			start := time.Now()
			s.err = s.echo()
			longest = max(longest, time.Since(start))
			if answer != nil {
				answer <- s.err
			}
		}
	}()
	t.Cleanup(func() {
		close(end)
		<-s.over
		if s.err != nil {
			t.Errorf("the SSH session died: %v", s.err)
		}
		t.Logf("%d lines there and back, the slowest in %s", s.n, longest)
	})
}

// echo is one line there and back.
func (s *session) echo() error {
	s.n++
	line := fmt.Sprintf("line %d\n", s.n)
	echo := make(chan string, 1)
	go func() {
		got, err := s.out.ReadString('\n')
		if err != nil {
			got = err.Error()
		}
		echo <- got
	}()
	if _, err := io.WriteString(s.in, line); err != nil {
		return err
	}
	select {
	case got := <-echo:
		if got != line {
			return fmt.Errorf("%q came back", got)
		}
		return nil
	case <-time.After(patience):
		return errors.New("no echo")
	}
}

// login opens a new session from outside.
func (s *sshServer) login(t *testing.T, w *world, when string) {
	t.Helper()
	w.in(t, w.net, func() error {
		if out, err := exec.Command(s.client[0], append(s.client[1:], "true")...).CombinedOutput(); err != nil {
			return fmt.Errorf("no new SSH session %s: %w: %s", when, err, out)
		}
		return nil
	})
}

func TestSSHOnAnotherPortLivesThroughEverything(t *testing.T) {
	for _, backend := range allBackends {
		for _, mode := range []Mode{ModeRedirect, ModeTProxy} {
			t.Run(fmt.Sprintf("%s/%s", backend, mode), func(t *testing.T) {
				t.Parallel()
				w := newWorld(t, 2222)
				server := startSSHD(t)
				none := filepath.Join(t.TempDir(), "none")
				live := server.session(t, w)
				live.alive(t, "before capture") // and logged in
				live.watch(t)

				plan := func(ctx context.Context) (Rules, error) {
					facts, err := GatherFacts(ctx, GatherConfig{SSHDConfig: none})
					if err != nil {
						return Rules{}, err
					}
					if !slices.ContainsFunc(facts.SSH.Listeners, func(l Listener) bool { return l.Port == 2222 }) {
						return Rules{}, fmt.Errorf("sshd's port was not found: %+v", facts.SSH)
					}
					return Plan(Config{
						Level: LevelAll, Mode: mode, InboundAll: true, OutboundAll: true, OwnerGroupsAll: true, DNS: true, DNSAll: true, DropInvalid: true, DualStack: true,
						OutboundCIDRs: nil, ProxyUID: proxyID, ProxyGID: proxyID, Backend: backend,
					}, facts)
				}
				k := keep(t, w.vm, KeeperConfig{Plan: plan})
				live.alive(t, "after apply")
				server.login(t, w, "after apply")
				expect(t, w, []flow{{who: "outside", proto: "tcp", to: vmAddr, port: 8080, end: "15006"}, {who: "app", proto: "tcp", to: "203.0.113.9", port: 443, end: "15001"}})

				switch backend {
				case BackendLegacy:
					for _, table := range []string{"nat", "raw", "mangle"} {
						sh(t, "iptables-legacy", "-t", table, "-F")
					}
				default:
					sh(t, "nft", "flush", "ruleset")
				}
				live.alive(t, "after a flush")
				k.until(t, "repaired", func(s KeeperState) bool { return s.Repairs > 0 && s.InPlace })
				live.alive(t, "after the repair")
				server.login(t, w, "after the repair")

				w.stopProxy()
				live.alive(t, "with the proxy dead")
				server.login(t, w, "with the proxy dead")

				k.stop(t)
				if err := applier(t).Remove(t.Context()); err != nil {
					t.Fatal(err)
				}
				live.alive(t, "after remove")
				server.login(t, w, "after remove")
				if out := sh(t, "iptables-nft-save") + sh(t, "nft", "list", "tables"); strings.Contains(out, "ISTIO") || strings.Contains(out, "wingman") {
					t.Errorf("rules are left:\n%s", out)
				}
			})
		}
	}
}
