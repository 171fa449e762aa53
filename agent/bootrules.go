package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"wingman/bootstrap"
	"wingman/iptables"
)

// This file is about the moment between a machine's boot and the agent's start: a machine whose traffic goes through Envoy must have no network
// without rules, or policy has a gap.

// bootRulesFile is below the state folder: what the rules in force were planned from. wingman-rules.service goes by it at boot, before the
// network: there are no addresses then to plan from, and the settings' files may be broken.
const bootRulesFile = "rules.json"

// bootRules is the content of bootRulesFile.
type bootRules struct {
	Config iptables.Config `json:"config"`
	Facts  iptables.Facts  `json:"facts"`
}

// saveBootRules notes what rules of level all were planned from, and forgets it for any other. Nothing is written when nothing changed.
func saveBootRules(cfg *bootstrap.Config, r bootRules) error {
	path := filepath.Join(cfg.Paths.StateDir, bootRulesFile)
	if r.Config.Level != iptables.LevelAll {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("forget the rules for the next boot: %w", err)
		}
		return nil
	}
	// Until the agent is there nobody answers DNS, and sessions do not outlive a boot. What an Envoy that is down means is the settings' business.
	r.Config.DNS, r.Config.DNSAll = false, false
	r.Config.OpenInbound, r.Config.OpenOutbound = cfg.Capture.OpenInbound, cfg.Capture.OpenOutbound
	r.Facts.SSH.Sessions, r.Facts.Notes = nil, nil
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("note the rules for the next boot: %w", err)
	}
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, b) {
		return nil
	}
	if err := writeFile(path, b, 0o600); err != nil {
		return fmt.Errorf("note the rules for the next boot: %w", err)
	}
	return nil
}

// RestoreRules puts in the traffic rules that a machine had when it ran last: wingman-rules.service runs it before the network is configured. It
// does nothing, and says false, on a machine whose traffic is not captured.
func RestoreRules(ctx context.Context, root string) (restored bool, err error) {
	stateDir := bootstrap.DefaultPaths(root).StateDir
	j, err := readJoined(stateDir)
	if err != nil || j == nil || !j.Served {
		return false, err
	}
	b, err := os.ReadFile(filepath.Join(stateDir, bootRulesFile))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	var saved bootRules
	if err == nil {
		err = json.Unmarshal(b, &saved)
	}
	if err != nil {
		return false, fmt.Errorf("rules of the last run: %w", err)
	}
	if saved.Config.OpenInbound && saved.Config.OpenOutbound {
		return false, nil // nothing would be captured before Envoy serves
	}
	rules, err := iptables.Plan(saved.Config, saved.Facts)
	if err != nil {
		return false, fmt.Errorf("rules of the last run: %w", err)
	}
	applier, err := iptables.NewApplier(iptables.ApplierConfig{})
	if err != nil {
		return false, err
	}
	if err := applier.Apply(ctx, rules); err != nil {
		return false, err
	}
	return true, nil
}
