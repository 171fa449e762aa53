package vm

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ownCgroups makes a cgroup for a machine below that of this process, in each hierarchy that systemd keeps processes in:
// cgroup v2, and v1's name=systemd where it is mounted. It returns their folders.
func ownCgroups(name string) ([]string, error) {
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	name = fmt.Sprintf("wingman-vm-%d-%s-%d", os.Getpid(), name, time.Now().UnixNano())
	var groups []string
	for line := range strings.Lines(string(data)) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3) // hierarchy, controllers, path: cgroups(7)
		if len(fields) != 3 || fields[1] != "" && fields[1] != "name=systemd" {
			continue
		}
		mount, err := cgroupMount(fields[1])
		if err != nil {
			return nil, err
		}
		if mount == "" {
			continue
		}
		group := filepath.Join(mount, fields[2], name)
		if err := os.Mkdir(group, 0o755); err != nil {
			return nil, fmt.Errorf("make a cgroup: %w", err)
		}
		groups = append(groups, group)
	}
	if len(groups) == 0 {
		return nil, errors.New("no cgroup hierarchy that systemd could use is mounted")
	}
	return groups, nil
}

// cgroupMount finds where a hierarchy is mounted: option is "" for v2, "name=systemd" for v1; empty when it is not.
func cgroupMount(option string) (string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		before, after, _ := strings.Cut(lines.Text(), " - ") // proc_pid_mountinfo(5)
		where, what := strings.Fields(before), strings.Fields(after)
		if len(where) < 5 || len(what) < 3 {
			continue
		}
		if option == "" && what[0] == "cgroup2" || option != "" && what[0] == "cgroup" && slices.Contains(strings.Split(what[2], ","), option) {
			return where[4], nil
		}
	}
	return "", lines.Err()
}

// undertaker is a process that outlives the test, however that ends: then it kills what is still in a machine's cgroups and
// removes them. systemd-nspawn does not take its machine along when it is killed.
type undertaker struct {
	cmd  *exec.Cmd
	hold *os.File // open as long as the machine may live; the kernel closes it for a test that is killed
}

func callUndertaker(groups []string) (*undertaker, error) {
	read, hold, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer read.Close()
	cmd := exec.Command("sh", "-uc", `
read -r _ || :
for g in "$@"; do
	for try in $(seq 200); do
		pids=$(find "$g" -name cgroup.procs -exec cat {} + 2>/dev/null)
		[ -z "$pids" ] || kill -KILL $pids 2>/dev/null
		find "$g" -depth -type d -exec rmdir {} \; 2>/dev/null
		[ -e "$g" ] || break
		sleep 0.05
	done
	[ ! -e "$g" ] || exit 1
done`, "undertaker")
	cmd.Args = append(cmd.Args, groups...)
	cmd.Stdin = read
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true} // out of reach of a terminal's Ctrl-C
	if err := cmd.Start(); err != nil {
		hold.Close()
		return nil, err
	}
	return &undertaker{cmd, hold}, nil
}

// finish has it do its work and waits for that.
func (u *undertaker) finish() error {
	u.hold.Close()
	if err := u.cmd.Wait(); err != nil {
		return fmt.Errorf("remove the machine's cgroups: %w", err)
	}
	return nil
}
