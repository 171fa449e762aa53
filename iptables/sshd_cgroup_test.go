package iptables

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wingman/test/netns"
)

func TestTheCgroupOfAListenerTellsWhetherItIsSSHD(t *testing.T) {
	for _, tt := range []struct {
		path string
		want sshCgroup
	}{
		{"/system.slice/ssh.service", cgroupSSHD},
		{"/system.slice/sshd.service", cgroupSSHD},
		{"/system.slice/sshd-admin.service", cgroupSSHD},
		{"/system.slice/system-ssh.slice/ssh@3-10.0.0.1:22-10.0.0.2:4711.service", cgroupSSHD},
		{"/system.slice/dropbear.service", cgroupSSHD},
		{"/system.slice/docker-0123.scope/system.slice/ssh.service", cgroupSSHD},
		{"/user.slice/user-0.slice/session-3.scope", cgroupByHand},
		{"/user.slice/user-0.slice/user@0.service/app.slice/web.service", cgroupOther},
		{"/system.slice/nginx.service", cgroupOther},
		{"/system.slice/sshguard.service", cgroupOther},
		{"/system.slice/ssh-agent.service", cgroupOther},
		{"/init.scope", cgroupOther},
		{"/", cgroupOther},
		{"", cgroupOther},
	} {
		if got := judgeCgroup(tt.path); got != tt.want {
			t.Errorf("judgeCgroup(%q) = %d, want %d", tt.path, got, tt.want)
		}
	}
}

func TestDoubtsAboutSSHDArePartOfThePlan(t *testing.T) {
	for _, tt := range []struct {
		name      string
		seen      []uint16
		reported  bool
		listening bool
		want      string // in the note; "" for none
	}{
		{"sshd listens where its configuration says", []uint16{22}, false, true, ""},
		{"sshd listens elsewhere, too", []uint16{22, 2222}, false, true, "sshd listens on port 2222, which"},
		{"sshd listens elsewhere only", []uint16{2222, 2022, 2222}, false, false, "sshd listens on ports 2022, 2222, which"},
		{"nobody was seen, but somebody listens there", nil, false, true, ""},
		{"nobody was seen, and the root helper knows", nil, true, false, ""},
		{"a file is all there is", nil, false, false, "is all that tells of its ports (port 22)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := doubt("/etc/ssh/sshd_config", []uint16{22}, tt.seen, tt.reported, func(uint16) bool { return tt.listening })
			if (tt.want == "") != (got == "") || !strings.Contains(got, tt.want) {
				t.Errorf("doubt: %q, want %q in it", got, tt.want)
			}
		})
	}
}

// sshdCgroup makes a cgroup of the name of sshd's unit, for commands to be started in.
func sshdCgroup(t *testing.T) func(*exec.Cmd) {
	t.Helper()
	for _, root := range cgroupRoots {
		if _, err := os.Stat(filepath.Join(root, "cgroup.procs")); err != nil {
			continue
		}
		dir := filepath.Join(root, fmt.Sprintf("wingman-test-%d", os.Getpid()), "sshd.service")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			netns.Skip(t, fmt.Sprintf("no cgroup can be made: %v", err))
		}
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { // after the commands, whose cleanup was registered later
			unix.Close(fd)
			removeCgroup(t, dir)
			_ = os.Remove(filepath.Dir(dir))
		})
		return func(cmd *exec.Cmd) { cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, fd }
	}
	netns.Skip(t, "no cgroup v2 here")
	return nil
}

// removeCgroup ends what is left in a cgroup (sessions of a server that is gone) and removes it.
func removeCgroup(t *testing.T, dir string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0o600); err != nil {
		t.Errorf("end what runs in %s: %v", dir, err)
	}
	for deadline := time.Now().Add(patience); ; {
		err := os.Remove(dir)
		if err == nil {
			return
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			t.Fatalf("remove the test's cgroup: %v", err)
		}
	}
}

// asAgent is what a process without root sees of sshd: nothing.
func asAgent() *host {
	h := noCommands()
	h.socketsOfSSHD = func() (map[uint32]bool, bool) { return map[uint32]bool{}, true }
	return h
}

func portsOf(listeners []Listener) []uint16 {
	var out []uint16
	for _, l := range listeners {
		out = append(out, l.Port)
	}
	return out
}

func TestAnSSHDThatItsConfigurationDoesNotNameIsFoundWithoutRoot(t *testing.T) {
	in := sshdCgroup(t)
	netns.New(t)
	conf := filepath.Join(t.TempDir(), "sshd_config")
	if err := os.WriteFile(conf, []byte("Port 22\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	stranger, err := net.Listen("tcp", "0.0.0.0:9443") // root's, but no sshd
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	startSSHDOn(t, 2222, in)
	ssh, notes := gatherSSH(t.Context(), GatherConfig{SSHDConfig: conf}, asAgent())
	if got, want := portsOf(ssh.sortedListeners()), []uint16{22, 2222}; !slices.Equal(got, want) {
		t.Errorf("guarded ports %v, want %v", got, want)
	}
	if len(notes) != 1 || !strings.Contains(notes[0], "sshd listens on port 2222, which "+conf) {
		t.Errorf("notes %q; want one that says that the sources disagree", notes)
	}
}

// TestAnSSHDThatStartsLateAndMovesIsFollowed runs an agent without root that is there before sshd, as at a boot.
func TestAnSSHDThatStartsLateAndMovesIsFollowed(t *testing.T) {
	in := sshdCgroup(t)
	w := newWorld(t, 2222)
	conf := filepath.Join(t.TempDir(), "sshd_config")
	if err := os.WriteFile(conf, []byte("Port 22\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	guarded := make(chan []uint16, 100)
	plan := func(ctx context.Context) (Rules, error) {
		facts, err := GatherFacts(ctx, GatherConfig{SSHDConfig: conf})
		if err != nil {
			return Rules{}, err
		}
		facts.SSH, facts.Notes = gatherSSH(ctx, GatherConfig{SSHDConfig: conf}, asAgent())
		guarded <- portsOf(facts.SSH.sortedListeners())
		return Plan(Config{Level: LevelAll, InboundAll: true, OutboundAll: true, OwnerGroupsAll: true, ProxyUID: proxyID, ProxyGID: proxyID, Backend: BackendNative}, facts)
	}
	for deadline := time.Now().Add(patience); sh(t, "ip", "address", "show", "tentative") != ""; { // an address that settles is a new fact, too
		if time.Now().After(deadline) {
			t.Fatal("the machine's addresses do not settle")
		}
	}
	k := keep(t, w.vm, KeeperConfig{Plan: plan})
	await := func(what string, want ...uint16) {
		t.Helper()
		deadline := time.After(2 * patience)
		for {
			select {
			case got := <-guarded:
				if slices.Equal(got, want) {
					k.eventually(t, what, func() bool { return strings.Contains(listing(t), fmt.Sprintf("tcp dport %d ", want[len(want)-1])) })
					return
				}
			case <-deadline:
				t.Fatalf("%s: never guarded %v", what, want)
			}
		}
	}
	await("before sshd", 22)
	server := startSSHDOn(t, 2222, in)
	await("sshd is there", 22, 2222)
	live := server.session(t, w)
	live.alive(t, "on the port that no file names")
	live.watch(t)

	server.leave(t)
	moved := startSSHDOn(t, 2223, in)
	await("sshd has moved", 22, 2223)
	live.alive(t, "after sshd has moved away from under it")
	moved.login(t, w, "on the new port")
}
