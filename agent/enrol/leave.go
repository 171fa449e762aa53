package enrol

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"wingman/agent"
	"wingman/agent/status"
	"wingman/bootstrap"
	"wingman/bootstrap/identity"
	"wingman/systemd/resolved"
)

// stopLimit bounds the daemon's stop: its unit has 90 s for it.
const stopLimit = 100 * time.Second

// ErrAdopted means that this agent has the place of Istio's own, which nobody would have after a leave.
var ErrAdopted = errors.New("this machine was taken over from istio.service, and nobody would serve it: give it back with wingman adopt --undo, and stop istio.service if it is to leave the mesh")

// Leave undoes a join: the daemon stops as it does for good (unhealthy, drain, rules out, Envoy ended, stream closed), then identity and state are
// removed and istioctl's files are as before the join. On a machine that is no member it changes nothing.
//
// It works with the daemon down. Nothing is removed before the daemon has ended; what fails after that does not keep the rest from being done.
func Leave(ctx context.Context, o Options) error {
	if err := mustBeRoot(o.Root, "leave"); err != nil {
		return err
	}
	if agent.Adopted(o.Root) {
		return ErrAdopted
	}
	cfg, _ := bootstrap.Load(o.Root)
	if cfg == nil { // broken files must not keep anybody
		cfg = &bootstrap.Config{Root: o.Root, Paths: bootstrap.DefaultPaths(o.Root)}
	}
	m := machineOf(cfg)
	before, err := agent.Client(o.Root).Status(ctx)
	runs, member := err == nil, agent.Member(o.Root)
	systemd := managerOf(ctx, cfg.Root)
	if !runs && !stateLeft(cfg) {
		if systemd != nil { // it may be enabled, or in a loop of starts
			if err := systemd.stop(ctx); err != nil {
				return err
			}
		}
		o.Say("this machine is no member of a mesh: there is nothing to undo")
		return nil
	}
	release, err := stop(ctx, o, systemd, before, runs)
	if err != nil {
		return fmt.Errorf("%w\nnothing was removed", err)
	}
	defer release()
	o.Say(farewell(before, runs))

	var problems []error
	if member { // else no rules are ours: those of somebody else are not to be touched
		problems = append(problems, takeRulesOut(ctx, o), takeLinkOut(o))
	}
	links, err := identity.RemoveOutput(cfg.Paths.OutputCerts)
	problems = append(problems, err)
	// The folder may have been another one while the agent was down, and it did not see that.
	if usual := bootstrap.DefaultPaths(cfg.Root).OutputCerts; usual != cfg.Paths.OutputCerts {
		more, err := identity.RemoveOutput(usual)
		links, problems = append(links, more...), append(problems, err)
	}
	removed, restored, changed, notUndone := m.undo()
	problems = append(problems, notUndone)
	if len(restored) > 0 {
		o.Say("files: as before the join: " + strings.Join(restored, ", "))
	}
	if len(removed) > 0 {
		o.Say("files: removed, as join had put them there: " + strings.Join(removed, ", "))
	}
	for _, path := range changed {
		o.Say("files: " + path + " was changed since the join and stays")
	}
	err = removeState(cfg, notUndone != nil)
	problems = append(problems, err)
	if err == nil {
		o.Say("identity: key, certificate and state are removed" + alsoIn(links))
	}
	problems = append(problems, agent.CleanRunDir(o.Root), removeNotes(cfg.Root))
	if err := errors.Join(problems...); err != nil {
		return fmt.Errorf("%w\nthe rest is undone: mend that and leave again", err)
	}
	return nil
}

func alsoIn(links []string) string {
	if len(links) == 0 {
		return ""
	}
	var dirs []string
	for _, l := range links {
		dirs = append(dirs, filepath.Dir(l))
	}
	return ", also from " + strings.Join(slices.Compact(dirs), " and ")
}

// stateLeft reports whether there is anything of a join on disk.
func stateLeft(cfg *bootstrap.Config) bool {
	entries, err := os.ReadDir(cfg.Paths.StateDir)
	return len(entries) > 0 || err != nil && !errors.Is(err, fs.ErrNotExist)
}

// stop ends the daemon, whoever runs it, and keeps another from starting until release is called.
func stop(ctx context.Context, o Options, systemd *manager, before status.Report, runs bool) (release func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, stopLimit)
	defer cancel()
	if systemd != nil {
		if err := systemd.stop(ctx); err != nil {
			return nil, err
		}
		o.Say("units: stopped and disabled")
	}
	if pid, err := agent.Client(o.Root).Process(ctx); err == nil { // it is nobody's unit
		if err := syscall.Kill(pid, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
			return nil, fmt.Errorf("stop the daemon (pid %d): %w", pid, err)
		}
	}
	return agent.TakeOver(ctx, o.Root)
}

// farewell says what becomes of the WorkloadEntry.
func farewell(before status.Report, runs bool) string {
	const cleanUp = "istiod removes the WorkloadEntry within its grace period (PILOT_WORKLOAD_ENTRY_GRACE_PERIOD, 10 s)"
	switch {
	case !runs:
		return "mesh: the daemon was not running: istiod removed the WorkloadEntry when its stream ended, or does within its grace period"
	case before.XDS == nil || before.XDS.Phase != "connected":
		return "mesh: istiod was away and could not be told; it removes the WorkloadEntry by itself, as it does with machines that it has not seen for a while"
	case before.Instance.Group == "":
		return "mesh: left"
	}
	return "mesh: istiod was told that this machine is unhealthy, and the stream is closed; " + cleanUp
}

// takeRulesOut takes every rule of ours out, which a daemon that stopped has done already.
func takeRulesOut(ctx context.Context, o Options) error {
	if agent.ForeignRules(o.Root) {
		o.Say("rules: the operator keeps them (ISTIO_CUSTOM_IP_TABLES); they stay")
		return nil
	}
	if os.Geteuid() != 0 {
		o.Say("rules: not looked at, for want of root")
		return nil
	}
	if agent.MayRemoveRules(ctx, o.Root) != nil {
		o.Say("rules: pilot-agent's, which istio.service runs; they stay")
		return nil
	}
	if _, err := agent.RemoveRules(ctx); err != nil {
		return fmt.Errorf("take rules out: %w: try wingman rules remove", err)
	}
	o.Say("rules: none of ours are left")
	return nil
}

// takeLinkOut removes the interface by which systemd-resolved is told of mesh names (dns.mode), which a daemon that stopped has done already.
func takeLinkOut(o Options) error {
	if os.Geteuid() != 0 {
		return nil // who may not make one has none
	}
	removed, err := resolved.Remove()
	if removed {
		o.Say("systemd-resolved: asks nobody for mesh names any more")
	}
	return err
}

// removeState removes the state folder, what join noted last: until then a leave that was killed can be run again. keepRecord leaves that there, because
// something is to be undone still.
func removeState(cfg *bootstrap.Config, keepRecord bool) error {
	dir := cfg.Paths.StateDir
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	problems := []error{err}
	for _, e := range entries {
		if e.Name() != recordFile {
			problems = append(problems, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	if err := errors.Join(problems...); err != nil {
		return fmt.Errorf("remove the state: %w", err)
	}
	if keepRecord {
		return nil
	}
	if err := os.Remove(filepath.Join(dir, recordFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the state: %w", err)
	}
	_ = os.Remove(dir) // the folder may be a mount point
	return nil
}

// removeNotes removes those of the crash guard.
func removeNotes(root string) error {
	var problems []error
	for _, name := range []string{"ends", "hangs", "open", "keeps"} {
		if err := os.Remove(filepath.Join(root, "run/wingman-guard", name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			problems = append(problems, err)
		}
	}
	return errors.Join(problems...)
}
