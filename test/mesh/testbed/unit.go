package testbed

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Unit is what systemd does for the agent of a machine, where there is no systemd: it keeps the descriptors that the agent gives it, hands them to
// the next process, and starts one whenever one ends. It has no bus; an agent that cannot ask takes SIGTERM for a restart.
//
// The real systemd is tested in test/vm.
type Unit struct {
	vm     *VM
	notify *net.UnixConn

	mu   sync.Mutex // guards everything below
	kept []kept
}

// kept is one descriptor of the store.
type kept struct {
	name string
	file *os.File
}

const notifySocket = "/run/systemd/notify"

// Unit makes the machine's agent a unit's: StartAgent starts it with what the store has. Call it before the first StartAgent.
func (v *VM) Unit(t testing.TB) *Unit {
	t.Helper()
	u := &Unit{vm: v}
	err := v.Visit(func() error {
		if err := os.MkdirAll("/run/systemd", 0o755); err != nil {
			return err
		}
		var err error
		if u.notify, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notifySocket, Net: "unixgram"}); err != nil {
			return err
		}
		return os.Chmod(notifySocket, 0o666)
	})
	if err != nil {
		t.Fatal(err)
	}
	v.unit = u
	var reading sync.WaitGroup
	reading.Go(u.listen)
	t.Cleanup(func() {
		u.notify.Close()
		reading.Wait()
		for _, k := range u.kept {
			k.file.Close()
		}
	})
	return u
}

// Restart ends the agent with a signal, as `systemctl restart` (SIGTERM) and a crash (SIGKILL) do, and starts the next one as soon as it is gone.
func (u *Unit) Restart(t testing.TB, sig syscall.Signal) {
	t.Helper()
	if err := u.vm.proc.Signal(sig); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := step(t)
	defer cancel()
	select {
	case <-u.vm.proc.Done():
	case <-ctx.Done():
		t.Fatalf("the agent on %s does not end after %v", u.vm.spec.Host, sig)
	}
	u.vm.StartAgent(t)
}

// listen takes in what the agent says, until the socket is closed.
func (u *Unit) listen() {
	data, control := make([]byte, 4096), make([]byte, 4096)
	for {
		n, c, _, _, err := u.notify.ReadMsgUnix(data, control)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		u.take(string(data[:n]), rights(control[:c]))
	}
}

// rights are the descriptors that came with a message.
func rights(control []byte) (fds []int) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return nil
	}
	for _, m := range messages {
		if got, err := unix.ParseUnixRights(&m); err == nil {
			fds = append(fds, got...)
		}
	}
	return fds
}

// take acts on one message: sd_notify(3), sd_pid_notify_with_fds(3).
func (u *Unit) take(message string, fds []int) {
	fields := map[string]string{}
	for line := range strings.Lines(message) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		fields[key] = value
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	name := fields["FDNAME"]
	for _, fd := range fds {
		unix.CloseOnExec(fd)
		u.kept = append(u.kept, kept{name, os.NewFile(uintptr(fd), name)})
	}
	if fields["FDSTOREREMOVE"] == "1" {
		u.kept = slices.DeleteFunc(u.kept, func(k kept) bool {
			if k.name == name {
				k.file.Close()
			}
			return k.name == name
		})
	}
}

// command is the agent's command line, environment and descriptors for its next start: sd_listen_fds(3). The shell knows the process id that
// LISTEN_PID has to say.
func (u *Unit) command(path string, args []string) (newPath string, newArgs, env []string, files []*os.File) {
	u.mu.Lock()
	defer u.mu.Unlock()
	var names []string
	for _, k := range u.kept {
		names, files = append(names, k.name), append(files, k.file)
	}
	env = []string{"NOTIFY_SOCKET=" + notifySocket}
	if len(files) > 0 {
		env = append(env, fmt.Sprintf("LISTEN_FDS=%d", len(files)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	}
	return "/bin/sh", append([]string{"-c", `LISTEN_PID=$$ exec "$0" "$@"`, path}, args...), env, files
}
