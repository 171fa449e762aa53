package agent

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"wingman/bootstrap"
	"wingman/bootstrap/identity"
	"wingman/systemd"
)

// IstioUnit is the unit of Istio's own package, which runs pilot-agent.
const IstioUnit = "istio.service"

// AdoptRecord is there, below root, while this agent has Istio's place or is on the way to or from it (package adopt).
const AdoptRecord = "var/lib/wingman-adopt/record.json"

// Adopted reports whether AdoptRecord is there; who may not look into its folder is told no.
func Adopted(root string) bool {
	_, err := os.Stat(filepath.Join(cmp.Or(root, "/"), AdoptRecord))
	return err == nil
}

// ErrRulesOfIstio means that the rules in the kernel are not this agent's to take out.
var ErrRulesOfIstio = errors.New(IstioUnit + " runs pilot-agent on this machine, and the rules are its: without them traffic goes on in plaintext; stop it first")

// MayRemoveRules returns ErrRulesOfIstio where pilot-agent's rules are in: its chains have the names of ours.
func MayRemoveRules(ctx context.Context, root string) error {
	if Beside(ctx, root) == nil || Adopted(root) {
		return nil
	}
	return ErrRulesOfIstio
}

// DisownRules removes what says that the rules in the kernel are this agent's, or were at its last run.
func DisownRules(stateDir string) error {
	var problems []error
	for _, name := range []string{joinedFile, oursFile, bootRulesFile} {
		if err := os.Remove(filepath.Join(stateDir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			problems = append(problems, err)
		}
	}
	return errors.Join(problems...)
}

// HasIdentity reports whether this machine was, or is, a member by this agent: it has joined, or has a key.
func HasIdentity(root string) bool {
	if Member(root) {
		return true
	}
	return identity.Stored(bootstrap.DefaultPaths(root).StateDir)
}

// ErrIstioRuns means that Istio's own agent runs on this machine: ports, rules and entry are its.
var ErrIstioRuns = errors.New(IstioUnit + " runs pilot-agent on this machine, and two agents would fight for its ports and rules: run wingman adopt to take its place")

// hasUnit reports whether a unit's file lies where systemd looks (systemd.unit(5)). Nearly all machines have none of Istio's, and to ask systemd itself takes
// the bus, which at a boot is not there at once: DNS would wait for it.
func hasUnit(root, unit string) bool {
	for _, dir := range []string{"etc/systemd/system", "run/systemd/system", "run/systemd/transient", "run/systemd/generator", "usr/local/lib/systemd/system", "usr/lib/systemd/system", "lib/systemd/system"} {
		if _, err := os.Lstat(filepath.Join(root, dir, unit)); err == nil {
			return true
		}
	}
	return false
}

// Beside returns ErrIstioRuns where systemd runs Istio's own agent on the machine of that root. What systemd cannot be asked counts as no.
func Beside(ctx context.Context, root string) error {
	if root != "/" && root != "" {
		return nil
	}
	if _, err := os.Stat("/run/systemd/system"); err != nil { // sd_booted(3)
		return nil
	}
	if !hasUnit("/", IstioUnit) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if runs, err := systemd.Runs(ctx, IstioUnit); err == nil && runs {
		return ErrIstioRuns
	}
	return nil
}
