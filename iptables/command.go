package iptables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// sbinDirs are looked into beside PATH, which is bare under systemd, cron and sudo on some systems.
var sbinDirs = []string{"/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin", "/bin"}

// commandTimeout bounds one iptables command, its wait for the lock included.
const commandTimeout = 30 * time.Second

// lockSeconds is how long an iptables command waits for the xtables lock.
const lockSeconds = 10

// CommandError is a command that did not do its work. Its text names the command, what it said, and what to do next.
type CommandError struct {
	Command string // as typed in a shell
	Stderr  string
	Hint    string // the next step, may be empty
	Err     error  // how it ended
}

func (e *CommandError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %v", e.Command, e.Err)
	if s := strings.Join(strings.Fields(e.Stderr), " "); s != "" {
		fmt.Fprintf(&b, ": %s", s)
	}
	if e.Hint != "" {
		fmt.Fprintf(&b, ": %s", e.Hint)
	}
	return b.String()
}

func (e *CommandError) Unwrap() error { return e.Err }

// errNoCommand means that a program is not installed.
var errNoCommand = errors.New("command not found")

// findCommand returns the full path of the first of names that is installed, as it stands in the file system.
func findCommand(names ...string) (string, error) {
	dirs := append(filepath.SplitList(os.Getenv("PATH")), sbinDirs...)
	for _, name := range names {
		for _, dir := range dirs {
			path := filepath.Join(dir, name)
			if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 && filepath.IsAbs(path) {
				return path, nil
			}
		}
	}
	return "", fmt.Errorf("%s: %w in PATH, %s", names[0], errNoCommand, strings.Join(sbinDirs, ", "))
}

// runCommand is host.run of the real machine: it starts a process in this thread's namespaces and waits for it.
func runCommand(ctx context.Context, stdin string, argv ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.Env = []string{"PATH=" + strings.Join(sbinDirs, ":"), "LC_ALL=C"}
	if lock := os.Getenv("XTABLES_LOCKFILE"); lock != "" {
		cmd.Env = append(cmd.Env, "XTABLES_LOCKFILE="+lock)
	}
	cmd.WaitDelay = time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return "", &CommandError{
			Command: strings.Join(argv, " "), Stderr: stderr.String(), Hint: hint(filepath.Base(argv[0]), stderr.String()), Err: err,
		}
	}
	return stdout.String(), nil
}

const needsCapabilities = "it needs the capabilities NET_ADMIN and NET_RAW: run as root, or give them to the unit (AmbientCapabilities=)"

// isIncompatible reports whether iptables-nft found a table that another tool made natively, which older versions refuse
// to touch.
func isIncompatible(err error) bool {
	var ce *CommandError
	return errors.As(err, &ce) && strings.Contains(ce.Stderr, "is incompatible, use 'nft' tool")
}

// hint turns what an iptables command said into the next step.
func hint(command, stderr string) string {
	has := func(s string) bool { return strings.Contains(stderr, s) }
	switch {
	case has("can't open lock file"):
		return "the lock file must be writable for this user (tmpfiles.d: f /run/xtables.lock 0660 root istio-proxy -)"
	case has("xtables lock"):
		return lockHolder()
	case has("is incompatible, use 'nft' tool"):
		return "somebody else made that table with nft: choose backend native (or auto), which has a table of its own"
	case has("you must be root"), has("Permission denied"), has("Operation not permitted"):
		return needsCapabilities
	case has("Table does not exist"), has("can't initialize"), has("Could not fetch rule set generation id"), has("does not exist (do you need to insmod?)"):
		return "this kernel lacks what " + command + " needs: load its modules as root, or choose another backend (auto, nft, legacy, native)"
	case has("missing kernel module"), has("Extension"), has("No chain/target/match by that name"), has("RULE_APPEND failed"):
		return "this kernel lacks a match or target that the rules need (xt_owner, xt_REDIRECT, xt_CT, xt_TPROXY, xt_multiport): load its module as root"
	}
	return ""
}
