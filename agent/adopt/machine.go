package adopt

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"wingman/agent"
	"wingman/agent/enrol"
	"wingman/bootstrap"
)

// Units that an adopt handles beside istio.service.
const (
	agentUnit = "wingman.service"
	proxyUnit = "wingman-proxy.service"
	rulesUnit = "wingman-rules.service"
	trialUnit = "wingman-trial.service"

	cleanupUnit = "wingman-cleanup.service" // its stop takes out the rules that a stopped agent has left, unless that one hands over
)

// TrialDir is what systemd makes for trialUnit, where the trial writes beside its state.
const TrialDir = "/run/wingman-trial"

// gather reads the facts that a plan is made from.
func gather(ctx context.Context, root string) (f Facts, cfg *bootstrap.Config, err error) {
	f.Root = os.Geteuid() == 0
	if info, err := os.Stat("/run/systemd/system"); err == nil && info.IsDir() && (root == "/" || root == "") { // sd_booted(3)
		f.Booted = true
	}
	if !f.Booted || !f.Root {
		return f, nil, nil
	}
	for unit, into := range map[string]*UnitFacts{agent.IstioUnit: &f.Istio, agentUnit: &f.Wingman} {
		if *into, err = unitFacts(ctx, unit); err != nil {
			return f, nil, err
		}
	}
	f.Installed = f.Wingman.Load == "loaded"
	if f.Record, err = readRecord(RecordFile); err != nil {
		return f, nil, err
	}
	cfg, f.Problems = agent.CheckAhead(root, nil)
	f.Problems = tokenIsTried(f.Problems)
	if cfg == nil || f.Problems.Err() != nil {
		return f, cfg, nil
	}
	f.Unread = cfg.Unread()
	f.Identity, f.Custom = cfg.SPIFFEID(), cfg.Capture.CustomTables
	if cfg.Capture.UserKnown {
		f.User = cfg.Capture.User
	}
	if rules, err := agent.OpenTakeOver(ctx, root, cfg.Capture.DNSPort); err == nil && rules.InUse.Chains > 0 {
		f.Rules = fmt.Sprintf("backend %s, %d chains", strings.Join(rules.InUse.Backends, ", "), rules.InUse.Chains)
	}
	return f, cfg, nil
}

// tokenIsTried makes what is wrong with the token a warning: a certificate may be got in another way, and the trial tells.
func tokenIsTried(ps bootstrap.Problems) bootstrap.Problems {
	out := make(bootstrap.Problems, len(ps))
	for i, p := range ps {
		if p.Key == "istio-token" {
			p.Severity = bootstrap.Warning
		}
		out[i] = p
	}
	return out
}

func unitFacts(ctx context.Context, unit string) (f UnitFacts, err error) {
	out, err := enrol.Systemctl(ctx, "show", "--property=LoadState,ActiveState,UnitFileState,FragmentPath,DropInPaths,Environment,EnvironmentFiles", unit)
	if err != nil {
		return f, err
	}
	return parseUnit(out), nil
}

// variables are the names in what systemctl says of Environment=, which quotes words as a shell does. Values are left out: they may be secret.
func variables(said string) (names []string) {
	var word strings.Builder
	var quote rune
	escaped := false
	end := func() {
		if name, _, ok := strings.Cut(strings.TrimPrefix(word.String(), "$"), "="); ok {
			names = append(names, name)
		}
		word.Reset()
	}
	for _, r := range said {
		switch {
		case escaped:
			escaped = false
			word.WriteRune(r)
		case r == '\\':
			escaped = true
		case quote != 0 && r == quote:
			quote = 0
		case quote == 0 && (r == '"' || r == '\''):
			quote = r
		case quote == 0 && r == ' ':
			end()
		default:
			word.WriteRune(r)
		}
	}
	end()
	return names
}

// parseUnit reads what systemctl show says.
func parseUnit(out string) (f UnitFacts) {
	for line := range strings.Lines(out) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch key {
		case "LoadState":
			f.Load = value
		case "ActiveState":
			f.Active = value
		case "UnitFileState":
			f.Enabled = value
		case "FragmentPath":
			f.Fragment = value
		case "DropInPaths":
			f.DropIns = value
		case "Environment":
			f.Variables = append(f.Variables, variables(value)...)
		case "EnvironmentFiles": // a line for each: "PATH (ignore_errors=no)"
			path, _, _ := strings.Cut(value, " (")
			f.Variables = append(f.Variables, "those of "+path)
		}
	}
	return f
}

// startTrial has everything proven by a process of the agent's user, which answers DNS at a port afterwards, until stopTrial.
func startTrial(ctx context.Context, program, user string, args ...string) (agent.TrialReport, error) {
	stopTrial(ctx)
	program, err := self(program)
	if err != nil {
		return agent.TrialReport{}, err
	}
	argv := []string{"systemd-run", "--quiet", "--collect", "--unit=" + trialUnit, "--service-type=notify", "--property=User=" + user, "--property=Group=" + user,
		"--property=StateDirectory=wingman", "--property=StateDirectoryMode=0700", "--property=RuntimeDirectory=wingman-trial", "--property=RuntimeDirectoryMode=0700",
		"--property=RuntimeDirectoryPreserve=yes", "--property=TimeoutStartSec=90", "--property=UMask=0077",
		program, "adopt", "trial"}
	_, failed := run(ctx, append(argv, args...)...)
	r, err := agent.ReadTrialReport(TrialDir)
	switch {
	case r.Error != "":
		return r, errors.New(r.Error)
	case failed != nil:
		return r, fmt.Errorf("%w: see journalctl -u %s", failed, trialUnit)
	}
	return r, err
}

// stopTrial ends it, if there is one, and removes what it wrote beside the state.
func stopTrial(ctx context.Context) {
	_, _ = enrol.Systemctl(ctx, "stop", "--quiet", trialUnit) // there may be none
	_ = os.RemoveAll(TrialDir)
}

// asAgent runs a command of this program as the agent's user.
func asAgent(ctx context.Context, program, user string, args ...string) error {
	program, err := self(program)
	if err != nil {
		return err
	}
	as := []string{"systemd-run", "--quiet", "--wait", "--collect", "--property=User=" + user, "--property=Group=" + user, "--property=UMask=0077", program}
	_, err = run(ctx, append(as, args...)...)
	return err
}

// freePort finds one for both transports, beside the agent's own.
func freePort(from uint16) (uint16, error) {
	for p := from + 1; p < from+200; p++ {
		at := net.JoinHostPort("127.0.0.1", strconv.Itoa(int(p)))
		udp, err := net.ListenPacket("udp", at)
		if err != nil {
			continue
		}
		tcp, err := net.Listen("tcp", at)
		udp.Close()
		if err == nil {
			tcp.Close()
			return p, nil
		}
	}
	return 0, fmt.Errorf("no port is free above %d", from)
}

// until asks again and again whether something is so, and fails after limit with what was said last.
func until(ctx context.Context, limit time.Duration, is func(ctx context.Context) (bool, string)) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		ok, why := is(ctx)
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not within %s: %s", limit, why)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// self is the program to run as another user; empty: this one.
func self(program string) (string, error) {
	if program != "" {
		return program, nil
	}
	return os.Executable()
}
