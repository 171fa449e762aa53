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
	"os/signal"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A trial puts rules in and takes them out again unless somebody confirms them, even if the shell, the SSH session and the
// agent die in between. What remembers the former state and waits is a process of its own, the guardian:
//
//	wingman rules try ──starts──► guardian: snapshot, "ready", waits on trialAddress
//	        └──applies the plan             │ confirm ► ends
//	wingman rules confirm ──────────────────┤ time is up ► puts the snapshot back, ends
//	wingman rules remove ───────────────────┘ cancel ► ends, and everything is taken out
//
// trialAddress belongs to the network namespace and goes away with the guardian; trialTable does not when it is killed.
const trialAddress = "@wingman-rules-trial"

// ErrNoTrial means that no rules are on trial.
var ErrNoTrial = errors.New("no rules are on trial")

// What is said on trialAddress, and by the guardian on its standard output.
const (
	sayConfirm = "confirm"
	sayAbort   = "abort"
	sayCancel  = "cancel"
	sayUntil   = "until"
	sayDone    = "done"
	sayReady   = "ready"
)

// answerLimit bounds how long the guardian may take for an answer.
const answerLimit = 5 * time.Second

// Guardian remembers what is in the kernel now, writes "ready" to out, and puts it back after d unless Confirm is called in
// the meantime. It is the body of the process that Try starts; signals that end sessions do not end it.
func (a *Applier) Guardian(ctx context.Context, d time.Duration, out io.Writer) error {
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGPIPE)
	l, err := net.Listen("unix", trialAddress)
	if errors.Is(err, syscall.EADDRINUSE) {
		return errors.New("rules are on trial already: confirm them or wait until they are taken back")
	}
	if err != nil {
		return fmt.Errorf("guard the trial: %w", err)
	}
	defer l.Close()
	release, err := acquire(ctx, a.lockWait)
	if err != nil {
		return err
	}
	restore, err := a.snapshot(ctx)
	release()
	if err != nil {
		return fmt.Errorf("remember the rules before the trial: %w", err)
	}
	if err := makeTrialMark(); err != nil {
		a.log.Debug("the trial leaves no mark in the kernel", "cause", err)
	}
	until := time.Now().Add(d)
	if err := l.(*net.UnixListener).SetDeadline(until); err != nil {
		return fmt.Errorf("guard the trial: %w", err)
	}
	if _, err := fmt.Fprintln(out, sayReady); err != nil {
		return fmt.Errorf("guard the trial: %w", err)
	}
	if confirmed := awaitConfirm(l, until); confirmed {
		return nil
	}
	// The name stays taken until the rules are back, so that nobody repairs in between.
	if release, err = acquire(ctx, time.Minute); err != nil {
		return fmt.Errorf("take the rules on trial back: %w", err)
	}
	defer release()
	if err := restore(ctx); err != nil {
		return fmt.Errorf("take the rules on trial back: %w", err)
	}
	return dropTrialMark() // one that stays says that taking back went wrong
}

// awaitConfirm answers questions until somebody who may confirms, or aborts a trial that never began, or cancels one whose
// rules are to be removed, or the listener's time is up. The mark goes before the answer: who has it needs not wait.
func awaitConfirm(l net.Listener, until time.Time) bool {
	for {
		conn, err := l.Accept()
		if err != nil {
			return false
		}
		_ = conn.SetDeadline(time.Now().Add(time.Second))
		word, _ := bufio.NewReader(io.LimitReader(conn, 64)).ReadString('\n')
		word = strings.TrimSpace(word)
		ends := (word == sayConfirm || word == sayAbort) && trusted(conn) || word == sayCancel && mayCancel(conn)
		switch {
		case ends:
			_ = dropTrialMark() // at worst the trial seems to have lost its guardian, and whoever changes rules next drops it
			fmt.Fprintln(conn, sayDone)
		case word == sayUntil:
			fmt.Fprintln(conn, until.Format(time.RFC3339Nano))
		default:
			fmt.Fprintln(conn, "refused")
		}
		conn.Close()
		if ends {
			return true
		}
	}
}

// trusted reports whether root or this process's own user is at the other end: anybody can take an abstract name, and
// anybody can dial it.
func trusted(conn net.Conn) bool {
	cred := peer(conn)
	return cred != nil && (cred.Uid == 0 || int(cred.Uid) == os.Geteuid())
}

// mayCancel reports whether who is at the other end may take the rules on trial out.
func mayCancel(conn net.Conn) bool {
	cred := peer(conn)
	return trusted(conn) || cred != nil && mayChange(cred)
}

// Try puts rules in for d and has them taken back then unless Confirm is called. guardian is the command that runs Guardian
// for d, for instance wingman rules guardian --for 60s; it is started in a session of its own and outlives this process.
func (a *Applier) Try(ctx context.Context, rules Rules, guardian []string) error {
	cmd := exec.Command(guardian[0], guardian[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Dir = "/"
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("start the guardian of the trial: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the guardian of the trial: %w", err)
	}
	word, _ := bufio.NewReader(out).ReadString('\n')
	if strings.TrimSpace(word) != sayReady {
		err := cmd.Wait()
		return fmt.Errorf("the guardian of the trial did not get ready, nothing was changed: %w: %s", err, strings.TrimSpace(stderr.String()))
	}
	go func() { _ = cmd.Wait() }() // while this process lives it collects the guardian; after that, init does
	if err := a.putIn(ctx, rules, true); err != nil {
		_, abortErr := ask1(ctx, sayAbort)
		return errors.Join(err, abortErr)
	}
	return nil
}

// Confirm keeps the rules that are on trial in this network namespace, also where their guardian is dead.
func Confirm(ctx context.Context) error {
	answer, err := ask1(ctx, sayConfirm)
	if errors.Is(err, ErrNoTrial) {
		if s, lookErr := systemHost().look(); lookErr == nil && s.trialMarked() {
			return dropTrialMark()
		}
	}
	if err != nil {
		return err
	}
	if answer != sayDone {
		return errors.New("confirm the rules on trial: refused; do it as root or as the user who tries them")
	}
	return nil
}

// TrialUntil returns when the rules on trial will be taken back; ErrNoTrial when none are.
func TrialUntil(ctx context.Context) (time.Time, error) {
	answer, err := ask1(ctx, sayUntil)
	if err != nil {
		return time.Time{}, err
	}
	until, err := time.Parse(time.RFC3339Nano, answer)
	if err != nil {
		return time.Time{}, fmt.Errorf("ask the guardian of the trial: %w", err)
	}
	return until, nil
}

// dialTrial connects to the guardian; ErrNoTrial when there is none, or somebody else took its name.
func dialTrial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", trialAddress)
	if errors.Is(err, syscall.ECONNREFUSED) {
		return nil, ErrNoTrial
	}
	if err != nil {
		return nil, fmt.Errorf("ask the guardian of the trial: %w", err)
	}
	if cred := peer(conn); cred == nil || (cred.Uid != 0 && int(cred.Uid) != os.Geteuid() && os.Geteuid() != 0) {
		conn.Close()
		return nil, ErrNoTrial
	}
	return conn, nil
}

// ask1 says one word to the guardian and returns its answer.
func ask1(ctx context.Context, word string) (string, error) {
	conn, err := dialTrial(ctx)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(answerLimit))
	if _, err := fmt.Fprintln(conn, word); err != nil {
		return "", fmt.Errorf("ask the guardian of the trial: %w", err)
	}
	answer, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("ask the guardian of the trial: %w", err)
	}
	return strings.TrimSpace(answer), nil
}
