package vm

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// bootTimeout bounds a boot; a machine of these needs less than a second when the computer is not busy.
const bootTimeout = 2 * time.Minute

// A Machine is off until Boot. It belongs to one test and one goroutine; Run, Try and Do may be called from several.
// Its methods end the test when the machine does not do what it should.
type Machine struct {
	t       testing.TB // is told what goes wrong
	owner   testing.TB // its end is the machine's
	name    string
	segment *Segment
	release Release // empty: Bookworm
	root    string  // its files, as this machine sees them

	power *power // nil while it is off
}

// power is the running systemd-nspawn of a machine.
type power struct {
	console string        // log file
	nspawn  int           // process id
	leader  int           // the machine's process 1, as this one sees it; 0 until it has booted
	booted  <-chan int    // the leader, once all start jobs are done; closed without one if it never comes so far
	off     chan struct{} // closed when nspawn has ended and all is cleaned up
	status  error         // of nspawn; valid once off is closed
}

// Tell makes t, of a part of the test that the machine belongs to, the one that is told what goes wrong, until it ends.
func (m *Machine) Tell(t testing.TB) {
	m.t = t
	t.Cleanup(func() { m.t = m.owner })
}

// rebooting is the exit status by which nspawn tells its caller to start the machine again.
const rebooting = 133

// Boot switches the machine on and returns when systemd has finished all start jobs.
func (m *Machine) Boot() {
	m.t.Helper()
	if m.power != nil {
		m.t.Fatalf("machine %s is on already", m.name)
	}
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(m.owner.TempDir(), "notify"), Net: "unixgram"})
	if err != nil {
		m.t.Fatal(err)
	}
	m.power = &power{console: filepath.Join(m.owner.TempDir(), "console"), booted: watchBoot(notify), off: make(chan struct{})}
	if err := m.start(notify); err != nil {
		m.power = nil
		m.t.Fatalf("machine %s: %v", m.name, err)
	}
	m.owner.Cleanup(m.PowerCut)
	select {
	case m.power.leader = <-m.power.booted:
		if m.power.leader == 0 {
			<-m.power.off
			m.t.Fatalf("machine %s did not boot: %v\n%s", m.name, m.power.status, m.Console())
		}
	case <-time.After(bootTimeout):
		m.t.Fatalf("machine %s did not finish its boot within %s\n%s", m.name, bootTimeout, m.Console())
	}
}

// start runs systemd-nspawn in the segment's namespace.
func (m *Machine) start(notify *net.UnixConn) error {
	groups, err := ownCgroups(m.name)
	if err != nil {
		return err
	}
	undertaker, err := callUndertaker(groups)
	if err != nil {
		return err
	}
	console, err := os.Create(m.power.console)
	if err != nil {
		return err
	}
	// A machine needs cgroups of its own: nspawn puts each one into its caller's, where two would fight.
	script := `for g in $CGROUPS; do echo $$ >"$g/cgroup.procs"; done; unset CGROUPS; exec "$@"`
	cmd := exec.Command("sh", "-ec", script, "sh", "systemd-nspawn", "--quiet", "--boot", "--directory="+m.root, "--machine="+m.name,
		"--register=no", "--keep-unit", "--network-veth", "--network-bridge="+bridge, "--notify-ready=yes",
		"--resolv-conf=off", "--timezone=off", "--link-journal=no", "--console=read-only")
	cmd.Stdout, cmd.Stderr = console, console
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+notify.LocalAddr().String(), "CGROUPS="+strings.Join(groups, " "))
	if m.release == Trixie { // systemd 257 refuses to boot into cgroup v1, of which the computer may have hierarchies beside v2
		cmd.Env = append(cmd.Env, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1")
	}
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	if err := m.segment.Do(cmd.Start); err != nil {
		return errors.Join(err, undertaker.finish())
	}
	power := m.power
	power.nspawn = cmd.Process.Pid
	go func() {
		power.status = cmd.Wait()
		console.Close()
		notify.Close()
		if err := undertaker.finish(); err != nil {
			m.owner.Errorf("machine %s: %v", m.name, err)
		}
		close(power.off)
	}()
	return nil
}

// watchBoot reads what nspawn tells: X_NSPAWN_LEADER_PID when the machine is there, READY=1 when it has booted. It reads on
// until nspawn has ended, which would block in the middle of something if nobody did.
func watchBoot(notify *net.UnixConn) <-chan int {
	booted := make(chan int, 1)
	go func() {
		defer close(booted)
		leader := 0
		for buf := make([]byte, 4096); ; {
			n, err := notify.Read(buf)
			if err != nil { // closed: nspawn has ended
				return
			}
			for line := range strings.SplitSeq(string(buf[:n]), "\n") {
				switch key, value, _ := strings.Cut(line, "="); key {
				case "X_NSPAWN_LEADER_PID":
					leader, _ = strconv.Atoi(value)
				case "READY":
					if leader != 0 {
						booted <- leader
					}
					leader = 0
				}
			}
		}
	}()
	return booted
}

// Reboot restarts the machine by systemctl, and returns when it is up again.
func (m *Machine) Reboot() {
	m.t.Helper()
	m.Run("systemctl", "reboot")
	var exit *exec.ExitError
	if status := m.awaitOff(); !errors.As(status, &exit) || exit.ExitCode() != rebooting {
		m.t.Fatalf("machine %s did not reboot but ended: %v", m.name, status)
	}
	m.Boot()
}

// PowerOff shuts the machine down by systemctl, and returns when it is off.
func (m *Machine) PowerOff() {
	m.t.Helper()
	m.Run("systemctl", "poweroff")
	if status := m.awaitOff(); status != nil {
		m.t.Fatalf("machine %s did not shut down but ended: %v", m.name, status)
	}
}

// PowerCut kills everything on the machine at once: its process 1 is killed, and the kernel kills the rest. What was
// written to files stays, as the disk is this machine's. A machine that is off stays off.
func (m *Machine) PowerCut() {
	m.t.Helper()
	if m.power == nil {
		return
	}
	victim := m.power.leader
	if victim == 0 { // it never booted
		victim = m.power.nspawn
	}
	if err := unix.Kill(victim, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		m.t.Fatalf("cut the power of machine %s: %v", m.name, err)
	}
	m.awaitOff()
}

// awaitOff returns how nspawn ended.
func (m *Machine) awaitOff() error {
	m.t.Helper()
	power := m.power
	m.power = nil
	select {
	case <-power.off:
		return power.status
	case <-time.After(bootTimeout):
		m.t.Fatalf("machine %s did not go off within %s", m.name, bootTimeout)
		return nil
	}
}

// Console returns what the machine wrote to its console since it was switched on.
func (m *Machine) Console() string {
	if m.power == nil {
		return ""
	}
	out, err := os.ReadFile(m.power.console)
	if err != nil {
		return err.Error()
	}
	return string(out)
}
