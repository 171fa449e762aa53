package iptables

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// trialTable is an empty table of nf_tables that is there as long as rules are on trial, and longer when their guardian was
// killed: nothing else would tell then that somebody meant them to go. A kernel without nf_tables has no such memory.
const trialTable = "wingman-trial"

var trialMark = &nftables.Table{Name: trialTable, Family: nftables.TableFamilyINet}

// ErrOnTrial means that rules are on trial, which others must not change meanwhile: they would be taken back with them.
var ErrOnTrial = errors.New("rules are on trial")

// makeTrialMark marks the kernel. Where that cannot be done the trial is none the worse, but a guardian's death goes unnoticed.
func makeTrialMark() error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nf_tables: %w", err)
	}
	conn.AddTable(trialMark)
	return conn.Flush()
}

// dropTrialMark takes the mark away; one that is not there is fine.
func dropTrialMark() error {
	conn, err := nftables.New()
	if err != nil {
		return nil // without nf_tables there is no mark
	}
	conn.DelTable(trialMark)
	if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return kernelError("delete table inet "+trialTable, err)
	}
	return nil
}

// trialMarked reports whether the mark was there.
func (s *seen) trialMarked() bool {
	return s.nft != nil && s.nft.names[nftables.TableFamilyINet][trialTable]
}

// mayApply reports, under the lock, what keeps rules from going in: those of a trial need its guardian, all others its absence.
func mayApply(ctx context.Context, trial bool) error {
	until, err := TrialUntil(ctx)
	switch {
	case trial && err != nil:
		return errors.New("the trial was ended before its rules went in: nothing was changed")
	case trial || errors.Is(err, ErrNoTrial):
		return nil
	case err != nil:
		return fmt.Errorf("%w, and being taken back now: nothing was changed; try again in a moment", ErrOnTrial)
	}
	return fmt.Errorf("%w until %s, and would take these along when they are taken back: nothing was changed; keep them with `wingman rules confirm`, or take them out with `wingman rules remove`, and apply again",
		ErrOnTrial, until.Format(time.TimeOnly))
}

// EndTrial ends the trial in this network namespace without putting anything back; it reports whether there was one, also one
// whose guardian is dead. The rules on trial stay until somebody takes them out, as Remove does.
//
// Root, the user who tries them, and whoever may change the rules anyway (CAP_NET_ADMIN) can do it.
func EndTrial(ctx context.Context) (ended bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*answerLimit)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		answer, err := ask1(ctx, sayCancel)
		switch {
		case errors.Is(err, ErrNoTrial): // never there, or its guardian has gone by now
			if s, err := systemHost().look(); err == nil && s.trialMarked() {
				return true, dropTrialMark()
			}
			return ended, nil
		case err == nil && answer == sayDone:
			ended = true
		case err == nil:
			return false, fmt.Errorf("%w by somebody else, who would have them taken back later: end the trial as root first (wingman rules confirm)", ErrOnTrial)
		}
		// Done, or busy with taking the rules back and deaf: either way its name goes away soon.
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ended, fmt.Errorf("%w, and their guardian does not let go of them: %w", ErrOnTrial, ctx.Err())
		}
	}
}

// mayChange reports whether a process could change the rules without asking: it holds CAP_NET_ADMIN in our user namespace,
// as the agent does.
func mayChange(cred *unix.Ucred) bool {
	dir := "/proc/" + strconv.Itoa(int(cred.Pid))
	theirs, err1 := os.Readlink(dir + "/ns/user")
	own, err2 := os.Readlink("/proc/self/ns/user")
	status, err3 := os.ReadFile(dir + "/status")
	if errors.Join(err1, err2, err3) != nil || theirs != own {
		return false
	}
	for line := range strings.Lines(string(status)) {
		if hex, ok := strings.CutPrefix(line, "CapEff:"); ok {
			caps, err := strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
			return err == nil && caps&(1<<unix.CAP_NET_ADMIN) != 0
		}
	}
	return false
}
