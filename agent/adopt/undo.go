package adopt

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os/signal"
	"strconv"
	"syscall"

	"wingman/agent"
)

// startScript is what istio.service runs; with init it makes pilot-agent's rules and no more.
const startScript = "/usr/local/bin/istio-start.sh"

// Undo gives the machine back to istio.service, as it was before the adopt. Where there was none it changes nothing.
func Undo(ctx context.Context, o Options) error {
	if o.Root != "/" && o.Root != "" {
		return errors.New("there is no istio.service below another root than /: there is nothing to undo")
	}
	h := o.onHost()
	if err := h.mayChange(); err != nil {
		return err
	}
	if !o.DryRun {
		release, err := h.alone()
		if err != nil {
			return fmt.Errorf("%w\nnothing was changed", err)
		}
		defer release()
	}
	record, err := h.readRecord()
	if err != nil { // damaged: as most machines are
		o.Say("note: " + err.Error())
		record = &Record{Step: StepUndo, IstioEnabled: "enabled", IstioActive: true, HadState: true}
	}
	if record == nil {
		o.Say("this machine was not taken over from istio.service: there is nothing to undo")
		return nil
	}
	cfg, err := h.load(o.Root)
	if err != nil {
		return err
	}
	if o.DryRun {
		o.Say("1. keep new connections waiting; stop and disable wingman.service, its rules in place\n2. take them out; unmask istio.service and start it\n3. wait until pilot-agent serves")
		return nil
	}
	signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE)
	m := &machine{Options: o, cfg: cfg, record: *record}
	ctx = context.WithoutCancel(ctx)
	if f, err := h.unit(ctx, agent.IstioUnit); err == nil && f.runs() && (record.Step == StepTrial || record.Step == StepRules) {
		// It never stopped serving; only its rules may have been replaced.
		if record.Step == StepRules && !cfg.Capture.CustomTables {
			m.restore = m.remakeRules
		}
		if err := m.unprepare(ctx); err != nil {
			return err
		}
		o.Say("istio.service serves, as it did all the time; its rules are its own")
		return nil
	}
	if err := m.giveBack(ctx); err != nil {
		return m.stay(ctx, err)
	}
	return nil
}

// stay has this agent serve again where an undo failed and pilot-agent does not serve.
func (m *machine) stay(ctx context.Context, why error) error {
	if r, err := m.host.readRecord(); r == nil && err == nil {
		return why
	}
	if ok, _ := m.host.pilotServes(ctx, m.cfg); ok {
		return why
	}
	m.Say("it fails, and wingman takes the place again: " + why.Error())
	if _, err := m.takePlace(ctx); err != nil {
		return fmt.Errorf("%w\nand wingman does not serve either: %w: run wingman adopt --undo again", why, errors.Join(err, m.host.letGo()))
	}
	return fmt.Errorf("%w\nwingman serves as before", why)
}

// remakeRules has Istio's own script make pilot-agent's rules anew, and ours go. Meanwhile nothing new crosses the border of the machine.
func (m *machine) remakeRules(ctx context.Context) error {
	if err := m.holdEverything(ctx); err != nil {
		return err
	}
	err := m.host.removeRules(ctx)
	if err == nil {
		err = m.host.theirRules(ctx)
	}
	err = errors.Join(err, m.host.letGo())
	m.endTrial(ctx)
	return err
}

// holdEverything is for the time without rules. Queries go to the trial's port, or that of a server of names alone which this starts.
func (m *machine) holdEverything(ctx context.Context) error {
	c, around := m.cfg.Capture, m.host.lookAround(ctx, m.Root)
	h := Hold{TCP: m.envoyPorts(), Everything: true, User: c.ProxyUID, Except: around.SSH, Limit: backHold}
	if c.DNS {
		h.DNS, h.Resolvers = m.host.trialPort(), around.Resolvers
	}
	if err := m.host.hold(h); err != nil {
		return err
	}
	if h.DNS != 0 {
		m.host.forgetFlows(m.cfg.DNS.Listen.Port()) // who asks from a port that somebody asked from before would be sent where that one was
	}
	return nil
}

// serveNames has the names of the last table answered beside agent and pilot-agent, while neither does.
func (m *machine) serveNames(ctx context.Context) error {
	if m.host.trialPort() != 0 || !m.cfg.Capture.DNS {
		return nil
	}
	port, err := m.host.freePort(m.cfg.DNS.Listen.Port())
	if err == nil {
		_, err = m.host.startTrial(ctx, m.Program, m.cfg.Capture.User, "--port", strconv.Itoa(int(port)), "--names-only")
	}
	return err
}

// giveBack stops the agent and has istio.service serve again. It can be run again at any point.
func (m *machine) giveBack(ctx context.Context) error {
	if err := m.reach(StepUndo); err != nil {
		return err
	}
	living := m.host.living(m.cfg.Paths.OutputCerts) // before systemd removes the run folder, where it is when the store is sealed
	over, err := m.host.handOver(m.Root)
	if err != nil {
		return err
	}
	defer over()
	if err := m.serveNames(ctx); err != nil {
		m.Say("note: names of the mesh are not resolved for a moment: " + err.Error())
	}
	m.drained = true
	err = m.host.shed(ctx, m.cfg.Envoy.AdminPort, func() error { return m.holdEverything(ctx) })
	if err != nil {
		m.Say("note: connections are refused, and some may pass in plaintext, for a moment: " + err.Error())
	}
	if err := m.stopNow(ctx, proxyUnit, agentUnit, cleanupUnit); err != nil {
		return err
	}
	if err := m.stopNow(ctx, agent.IstioUnit); err != nil { // of an adopt that was killed: its Envoy may have been told to end
		return err
	}
	problems := []error{m.host.systemctl(ctx, "stop", rulesUnit)}
	if !m.cfg.Capture.CustomTables {
		if err := m.host.removeRules(ctx); err != nil { // pilot-agent's script would put its own beside them
			return errors.Join(append(problems, err)...)
		}
	}
	problems = append(problems, m.host.giveBack(m.cfg.Paths.OutputCerts, living))
	// There is always one that the next boot starts: where both are enabled, wingman.service makes way for istio.service.
	if err := m.host.systemctl(ctx, "unmask", "--quiet", agent.IstioUnit); err != nil {
		return errors.Join(append(problems, err)...)
	}
	if m.record.IstioEnabled == "enabled" {
		problems = append(problems, m.host.systemctl(ctx, "enable", "--quiet", agent.IstioUnit))
	}
	problems = append(problems, m.host.systemctl(ctx, "disable", "--quiet", agentUnit, rulesUnit))
	m.Say("wingman.service: stopped and disabled")
	if m.record.IstioActive {
		if err := m.host.systemctl(ctx, "start", agent.IstioUnit); err != nil {
			return errors.Join(append(problems, err)...)
		}
		if err := until(ctx, cmp.Or(m.Back, backLimit), func(ctx context.Context) (bool, string) { return m.host.pilotServes(ctx, m.cfg) }); err != nil { // the state is what this machine can serve from
			err = fmt.Errorf("pilot-agent was started, and does not serve: %w: see /var/log/istio", err)
			return errors.Join(append(problems, err, m.host.letGo())...)
		}
		m.Say("istio.service: unmasked and started; pilot-agent serves")
	}
	problems = append(problems, m.host.letGo())
	m.endTrial(ctx)
	if err := errors.Join(problems...); err != nil {
		return err // what is still enabled, or linked, needs the state
	}
	if err := m.removeState(); err != nil {
		return err
	}
	return m.host.forgetRecord()
}

// removeState removes what the trial and the agent left below the state folder. Where this machine had an identity of wingman's before, that stays; what says that
// the rules in the kernel are ours goes in any case: they are pilot-agent's from now on.
func (m *machine) removeState() error {
	dir := m.cfg.Paths.StateDir
	if m.record.HadState {
		if err := m.host.disownRules(dir); err != nil {
			return fmt.Errorf("remove the state: %w", err)
		}
		return nil
	}
	return m.host.removeState(dir)
}
