package iptables

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"wingman/test/netns"
)

// guardianPID is the process that guards the trial in the test's namespace.
func guardianPID(t *testing.T) int {
	t.Helper()
	conn, err := dialTrial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return int(peer(conn).Pid)
}

// tried starts a trial of the tproxy rules over rules of ours.
func tried(t *testing.T, backend, d string) (former Rules) {
	t.Helper()
	cfg, facts := vmDefault(backend)
	mustApply(t, cfg, facts)
	former, err := Plan(cfg, facts)
	if err != nil {
		t.Fatal(err)
	}
	if err := startChild(t, nil, "try", "tproxy", backend, d); err != nil {
		t.Fatal(err)
	}
	return former
}

func TestRemoveEndsATrialForGood(t *testing.T) {
	for name, by := range map[string]func(t *testing.T) func(*exec.Cmd){
		"by root":                 func(*testing.T) func(*exec.Cmd) { return nil },
		"by the agent's two caps": func(t *testing.T) func(*exec.Cmd) { return asUser(t, []uintptr{12, 13}) },
	} {
		t.Run(name, func(t *testing.T) {
			netns.New(t)
			tried(t, BackendNFT, "1h")
			pid := guardianPID(t)
			if err := startChild(t, by(t), "remove", "tproxy", BackendNFT); err != nil {
				t.Fatal(err)
			}
			if _, err := TrialUntil(t.Context()); !errors.Is(err, ErrNoTrial) {
				t.Errorf("TrialUntil after remove: %v, want ErrNoTrial", err)
			}
			awaitDeath(t, pid)
			st, err := applier(t).Status(t.Context(), Rules{})
			if err != nil || st.State != Absent || st.TrialOrphaned {
				t.Errorf("after remove: %+v, %v; want nothing, for good", st, err)
			}
			if out := sh(t, "nft", "list", "tables"); strings.Contains(out, trialTable) {
				t.Errorf("the mark of the trial is left: %s", out)
			}
		})
	}
}

// awaitDeath waits until a process is gone.
func awaitDeath(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; {
		if err := syscall.Kill(pid, 0); errors.Is(err, syscall.ESRCH) || isZombie(pid) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %d does not end", pid)
		}
	}
}

// isZombie reports whether a process has ended, and only its parent has not taken notice.
func isZombie(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(stat), ") Z ")
}

func TestSomebodyWithoutThePrivilegeCannotEndATrial(t *testing.T) {
	netns.New(t)
	tried(t, BackendNFT, "1h")
	if err := startChild(t, asUser(t, nil), "remove", "tproxy", BackendNFT); err == nil {
		t.Error("remove by a user without capabilities succeeded")
	}
	if _, err := TrialUntil(t.Context()); err != nil {
		t.Errorf("TrialUntil: %v; want the trial going on", err)
	}
	if err := Confirm(t.Context()); err != nil {
		t.Fatal(err)
	}
	awaitTrialEnd(t)
}

func TestApplyDuringATrialIsRefusedAndChangesNothing(t *testing.T) {
	netns.New(t)
	former := tried(t, BackendNFT, "1h")
	before := save(t, BackendNFT)
	for what, rules := range map[string]Rules{"a plan": former, "an empty plan": {}} {
		err := applier(t).Apply(t.Context(), rules)
		if !errors.Is(err, ErrOnTrial) || (rules.Level != LevelNone && !strings.Contains(err.Error(), "wingman rules confirm")) {
			t.Errorf("%s during a trial: %v; want ErrOnTrial and the way out", what, err)
		}
	}
	if after := save(t, BackendNFT); after != before {
		t.Error("the refused apply changed rules")
	}
	if err := Confirm(t.Context()); err != nil {
		t.Fatal(err)
	}
	awaitTrialEnd(t)
	if err := applier(t).Apply(t.Context(), former); err != nil {
		t.Errorf("after confirm: %v", err)
	}
}

func TestAKilledGuardianIsNoticed(t *testing.T) {
	orphan := func(t *testing.T) Rules {
		t.Helper()
		former := tried(t, BackendNFT, "1h")
		pid := guardianPID(t)
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		awaitTrialEnd(t) // its process shows as dead before its last thread has let go of the name
		st, err := applier(t).Status(t.Context(), former)
		if err != nil || !st.TrialOrphaned || !st.TrialUntil.IsZero() {
			t.Fatalf("status with the guardian dead: orphaned %t, until %s, %v; want it said", st.TrialOrphaned, st.TrialUntil, err)
		}
		return former
	}
	for name, tt := range map[string]struct {
		end  func(t *testing.T, former Rules) error
		want func(former Rules) Completeness
	}{
		"apply puts the planned rules in": {
			func(t *testing.T, former Rules) error { return applier(t).Apply(t.Context(), former) }, func(Rules) Completeness { return Complete },
		},
		"confirm keeps the tried ones": {
			func(t *testing.T, _ Rules) error { return Confirm(t.Context()) }, func(Rules) Completeness { return Partial },
		},
		"remove takes them out": {
			func(t *testing.T, _ Rules) error { return applier(t).Remove(t.Context()) }, func(Rules) Completeness { return Absent },
		},
	} {
		t.Run(name, func(t *testing.T) {
			netns.New(t)
			former := orphan(t)
			if err := tt.end(t, former); err != nil {
				t.Fatal(err)
			}
			st, err := applier(t).Status(t.Context(), former)
			if err != nil || st.TrialOrphaned || st.State != tt.want(former) {
				t.Errorf("afterwards: %s, orphaned %t, %v; want %s and no trial", st.State, st.TrialOrphaned, err, tt.want(former))
			}
		})
	}
}

func TestTheKeeperPutsItsPlanInWhenTheGuardianIsKilled(t *testing.T) {
	ns := netns.New(t)
	cfg, facts := vmDefault(BackendNative)
	rules, plan := fixedPlan(t, cfg, facts)
	k := keep(t, ns, KeeperConfig{Plan: plan})
	if err := startChild(t, nil, "try", "tproxy", BackendNative, "1h"); err != nil {
		t.Fatal(err)
	}
	k.until(t, "on trial", func(s KeeperState) bool { return s.Trial })
	if err := syscall.Kill(guardianPID(t), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s := k.until(t, "back to its plan", func(s KeeperState) bool { return !s.Trial && s.InPlace })
	if s.Repairs != 0 {
		t.Errorf("state %+v: the end of a trial counted as a repair", s)
	}
	st, err := k.applier.Status(t.Context(), rules)
	if err != nil || st.State != Complete || st.TrialOrphaned {
		t.Errorf("after the trial: %+v, %v; want the Keeper's plan, and no trial", st, err)
	}
}
