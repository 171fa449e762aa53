package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Roles of this program in its namespaces.
const (
	roleWait   = "await-ids"
	roleInside = "inside"
)

// enter starts the program again in namespaces of its own and waits for it. As root those are network, mount, host name
// and IPC; anybody else needs a user namespace with several ids first.
func enter(ctx context.Context, binary string, verbose bool, stdout, stderr io.Writer) error {
	wingman, err := filepath.Abs(binary)
	if err != nil {
		return err
	}
	if _, err := os.Stat(wingman); err != nil {
		return fmt.Errorf("the daemon is not built: %w: make build", err)
	}
	for _, program := range []string{"iptables-restore", "iptables-save"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("%w: make setup installs it, or says how", err)
		}
	}
	// Not $TMPDIR: other users must get there, and the path of a socket is short (unix(7)).
	place, err := os.MkdirTemp("/tmp", "wingman-demo-")
	if err != nil {
		return err
	}
	defer os.Remove(place) // empty: what the demo writes is on a tmpfs that ends with its namespace
	self, err := os.Executable()
	if err != nil {
		return err
	}
	gate, open, err := os.Pipe()
	if err != nil {
		return err
	}
	defer gate.Close()
	defer open.Close()
	cmd := exec.CommandContext(ctx, self, roleWait, place, wingman, strconv.FormatBool(verbose))
	cmd.Stdout, cmd.Stderr = stdout, stderr
	cmd.ExtraFiles = []*os.File{gate}
	// A polite end lets the story print why; what is left of it then dies with its parent.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Pdeathsig:  syscall.SIGKILL,
	}
	var mapAll func(pid int) error
	if os.Geteuid() != 0 {
		if mapAll, err = asUser(); err != nil {
			return err
		}
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("namespaces are not to be had (%w): %s", err, namespaceAdvice(os.Geteuid() == 0))
	}
	if mapAll != nil {
		if err := mapAll(cmd.Process.Pid); err != nil {
			return errors.Join(err, cmd.Process.Kill(), ignoreExit(cmd.Wait()))
		}
	}
	open.Close() // the child goes on
	err = cmd.Wait()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() > 0 {
		return errSaid
	}
	return err
}

// errSaid ends the program with status 1; the child has said why.
var errSaid = errors.New("said by the child")

// asUser checks that this user may have several ids in a namespace, and returns what gives them to a process.
func asUser() (func(pid int) error, error) {
	who, err := user.Current()
	if err != nil {
		return nil, err
	}
	uids, gids, needs := userNamespaceNeeds(who.Username, os.Getuid())
	if needs != "" {
		return nil, fmt.Errorf("this needs root, or user namespaces with several ids, because the daemon runs as a user of its own: %s", needs)
	}
	return func(pid int) error {
		return errors.Join(mapIDs("newgidmap", pid, os.Getgid(), gids), mapIDs("newuidmap", pid, os.Getuid(), uids))
	}, nil
}

// namespaceAdvice says who can let this user make namespaces.
func namespaceAdvice(root bool) string {
	if root {
		return "this root lacks the capability SYS_ADMIN, as in most containers; run it on the host or with --privileged"
	}
	return "run this as root, or let users make namespaces: sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns"
}

func ignoreExit(err error) error {
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return nil
	}
	return err
}

// awaitIDs is the first life of the child. Without root outside, it was started before its namespace had ids and lost its
// capabilities with them: it waits until the parent has given ids, and starts the demo, now as the namespace's root.
func awaitIDs(args []string) error {
	if _, err := io.ReadAll(os.NewFile(3, "gate")); err != nil {
		return fmt.Errorf("wait for ids: %w", err)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	unix.CloseOnExec(3)
	return fmt.Errorf("start again with ids: %w", syscall.Exec(self, append([]string{os.Args[0], roleInside}, args...), os.Environ()))
}

// inside runs the demo in its namespaces.
func inside(ctx context.Context, args []string) error {
	if len(args) != 3 || os.Geteuid() != 0 {
		return errors.New("this role is for the demo itself")
	}
	verbose, err := strconv.ParseBool(args[2])
	if err != nil {
		return err
	}
	err = tell(ctx, args[0], args[1], verbose)
	if errors.Is(err, errStage) && errors.Is(err, unix.EPERM) { // AppArmor lets users make namespaces and then do nothing in them
		return fmt.Errorf("%w: %s", err, namespaceAdvice(false))
	}
	return err
}
