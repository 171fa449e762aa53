package adopt

import (
	"context"
	"errors"
	"fmt"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"wingman/agent"
	"wingman/agent/status"
	"wingman/bootstrap"
)

// Options are what adopt and undo need to know.
type Options struct {
	Root    string       // folder that stands for "/"; only "/" itself has an istio.service
	Say     func(string) // told of each step, one sentence; must be set
	DryRun  bool         // only the plan
	Timeout time.Duration
	Back    time.Duration // how long pilot-agent may take to serve again; zero: backLimit
	Program string        // wingman; empty: this program
	// Reached is called when a step is on disk and about to begin; nil: nobody wants to know. A test ends the process there.
	Reached func(Step)

	host host // nil: the real one
}

func (o *Options) onHost() host {
	if o.host == nil {
		o.host = system{}
	}
	return o.host
}

// Limits of a switch.
const (
	shedLimit = 2 * time.Second  // for requests in flight: connections wait meanwhile, and are tried again after a second
	stopLimit = 15 * time.Second // for istio.service to end once it was killed
	backLimit = 45 * time.Second // for pilot-agent to serve again
	slack     = 10 * time.Second // for what has no limit of its own in between: rules, files, systemctl

	// backHold is after when the kernel lets go by itself on the way back: rules are out for most of that time.
	backHold = shedLimit + 2*stopLimit + backLimit + slack
)

// switchHold is the same for the switch.
func switchHold(timeout time.Duration) time.Duration { return shedLimit + stopLimit + timeout + slack }

// machine is one adopt, or undo, at work.
type machine struct {
	Options
	cfg     *bootstrap.Config
	record  Record
	restore func(ctx context.Context) error // puts pilot-agent's rules back; nil: they are in
	touched bool                            // istio.service was told to stop, or its Envoy to drain
	drained bool                            // this agent's Envoy was told to shed its connections
}

// Adopt takes the machine over, and returns the daemon's report; with DryRun, and where nothing is to be done, there is none. Until it is done, an error means that
// istio.service serves as before, or what kept it from that.
func Adopt(ctx context.Context, o Options) (r status.Report, adopted bool, err error) {
	h := o.onHost()
	if !o.DryRun {
		release, err := h.alone()
		if err != nil {
			return r, false, fmt.Errorf("%w\nnothing was changed", err)
		}
		defer release()
	}
	f, cfg, err := h.gather(ctx, o.Root)
	if err != nil {
		return r, false, fmt.Errorf("%w\nnothing was changed", err)
	}
	p := MakePlan(f)
	switch {
	case p.Refused != "":
		return r, false, fmt.Errorf("%s\nnothing was changed", p.Refused)
	case p.Done != "":
		o.Say(p.Done)
		return r, false, nil
	}
	o.Say(p.String())
	if o.DryRun {
		return r, false, nil
	}
	signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE) // the end of a session is no reason to stop half way
	m := &machine{Options: o, cfg: cfg, record: newRecord(f, h)}
	if m.record.Step == StepRules && !cfg.Capture.CustomTables {
		if err := m.remakeRules(ctx); err != nil { // DNS goes to the trial of then
			return r, false, fmt.Errorf("put pilot-agent's rules back, which an earlier adopt had replaced: %w", err)
		}
	}
	if !p.Resume {
		if err := m.prepare(ctx); err != nil {
			return r, false, fmt.Errorf("%w\nistio.service serves as before", errors.Join(err, m.unprepare(context.WithoutCancel(ctx))))
		}
	}
	// From here on it ends by itself, one way or the other.
	ctx = context.WithoutCancel(ctx)
	if r, err = m.takePlace(ctx); err == nil {
		return r, true, nil
	}
	o.Say("it fails, and goes back: " + err.Error())
	goBack := m.giveBack
	if !m.touched && !p.Resume {
		goBack = m.unprepare // istio.service serves all the time
	}
	if back := goBack(ctx); back != nil {
		return r, false, fmt.Errorf("%w\nand the way back fails too: %w: run wingman adopt --undo", err, back)
	}
	return r, false, fmt.Errorf("%w\nistio.service serves as before", err)
}

// newRecord notes the machine as it is before an adopt; what an earlier one noted stays, as the machine may be half way.
func newRecord(f Facts, h host) Record {
	if f.Record != nil {
		return *f.Record
	}
	return Record{IstioEnabled: f.Istio.Enabled, IstioActive: f.Istio.runs(), HadState: h.hadIdentity()}
}

// reach notes a step before it begins.
func (m *machine) reach(s Step) error {
	m.record.Step, m.record.At = s, time.Now()
	if err := m.host.writeRecord(m.record); err != nil {
		return err
	}
	if m.Reached != nil {
		m.Reached(s)
	}
	return nil
}

// prepare does what can be done while pilot-agent serves: the trial, and the rules.
func (m *machine) prepare(ctx context.Context) error {
	if err := m.reach(StepTrial); err != nil {
		return err
	}
	port, err := m.host.freePort(m.cfg.DNS.Listen.Port())
	if err != nil {
		return err
	}
	user := m.cfg.Capture.User
	r, err := m.host.startTrial(ctx, m.Program, user, "--port", strconv.Itoa(int(port)))
	if err != nil {
		return err
	}
	m.Say(fmt.Sprintf("trial: certificate of %s until %s; %d names, %d clusters, %d listeners from istiod; %s takes its bootstrap file",
		r.SPIFFEID, r.NotAfter.UTC().Format(time.RFC3339), r.Names, r.Clusters, r.Listeners, orNone(r.Envoy, r.NoEnvoy)))
	for _, n := range r.Notes {
		m.Say("note: left out of Envoy's bootstrap file: " + n)
	}
	rules, err := m.host.openRules(ctx, m.Root, port)
	if err != nil {
		return err
	}
	if err := m.host.note(ctx, m.Program, user); err != nil {
		return fmt.Errorf("note the membership: %w", err)
	}
	if err := m.reach(StepRules); err != nil {
		return err
	}
	if m.cfg.Capture.CustomTables {
		m.Say("rules: the operator keeps them (ISTIO_CUSTOM_IP_TABLES); they stay")
	} else {
		if m.restore, err = rules.Apply(ctx); err != nil {
			m.restore = nil // all or none
			return fmt.Errorf("put the rules in: %w", err)
		}
		if m.cfg.Capture.DNS {
			m.host.forgetFlows(m.cfg.DNS.Listen.Port())
		}
		m.Say("rules: this agent's are in; pilot-agent's Envoy serves them")
	}
	return ctx.Err()
}

func orNone(program, why string) string {
	if program == "" {
		return "no Envoy (" + why + ")"
	}
	return program
}

// unprepare undoes prepare, and what takePlace did to units before it touched istio.service.
func (m *machine) unprepare(ctx context.Context) error {
	var problems []error
	if m.record.Step == StepStop {
		unmasked := m.host.systemctl(ctx, "unmask", "--quiet", agent.IstioUnit)
		disabled := m.host.systemctl(ctx, "disable", "--quiet", agentUnit, rulesUnit)
		problems = append(problems, unmasked, disabled, m.reach(StepRules)) // killed after this, another adopt begins with a trial: the state will have gone
	}
	if m.restore != nil {
		if err := m.restore(ctx); err != nil {
			problems = append(problems, fmt.Errorf("put pilot-agent's rules back: %w", err), m.remakeRules(ctx))
		}
	}
	m.endTrial(ctx)
	problems = append(problems, m.removeState())
	if err := errors.Join(problems...); err != nil {
		return err
	}
	return m.host.forgetRecord()
}

// envoyPorts are those where connections wait for an Envoy.
func (m *machine) envoyPorts() []uint16 {
	return []uint16{m.cfg.Capture.ProxyPort, m.cfg.Capture.InboundPort, 15008}
}

// takePlace stops istio.service and starts the agent.
func (m *machine) takePlace(ctx context.Context) (r status.Report, err error) {
	began := time.Now()
	ours, err := m.host.unit(ctx, agentUnit)
	if err != nil {
		return r, err
	}
	if ours.runs() && m.drained { // the undo came no further
		if err := m.host.systemctl(ctx, "restart", proxyUnit); err != nil {
			return r, err
		}
	}
	if err := m.reach(StepStop); err != nil {
		return r, err
	}
	if err := m.host.systemctl(ctx, "enable", "--quiet", agentUnit); err != nil {
		return r, err
	}
	// Masked it has no ExecStopPost=, which would take the rules out.
	if err := m.host.systemctl(ctx, "mask", "--quiet", agent.IstioUnit); err != nil {
		return r, err
	}
	m.touched = true
	if !ours.runs() { // else Envoy is this agent's already: an earlier adopt was killed late, or the machine has booted since
		hold := func() error { return m.host.hold(Hold{TCP: m.envoyPorts(), Limit: switchHold(m.Timeout)}) }
		if err := m.host.shed(ctx, m.cfg.Envoy.AdminPort, hold); err != nil {
			m.Say("note: connections are refused for a moment: " + err.Error())
		}
	}
	if err := m.stopNow(ctx, agent.IstioUnit); err != nil {
		return r, err
	}
	stopped := time.Now()
	if err := m.reach(StepStart); err != nil {
		return r, err
	}
	if err := m.host.systemctl(ctx, "start", agentUnit); err != nil {
		return r, err
	}
	err = until(ctx, m.Timeout, func(ctx context.Context) (bool, string) {
		var asked error
		if r, asked = m.host.status(ctx, m.Root); asked != nil {
			return false, asked.Error()
		}
		return serves(r.Phase == "joined" && r.XDS != nil && r.XDS.Answered, r.Ready, append(r.NotReady, r.Degraded...))
	})
	if err != nil {
		return r, fmt.Errorf("wingman does not serve: %w", err)
	}
	ready := time.Now()
	if err := m.finish(ctx); err != nil {
		return r, err
	}
	m.Say(fmt.Sprintf("istio.service: stopped and masked; wingman serves %s after its end (%s after the switch began)",
		ready.Sub(stopped).Round(time.Millisecond), ready.Sub(began).Round(time.Millisecond)))
	return r, nil
}

// finish lets everything go that was for the switch alone.
func (m *machine) finish(ctx context.Context) error {
	if err := m.host.letGo(); err != nil {
		return err
	}
	m.endTrial(ctx)
	return m.reach(StepDone)
}

// endTrial ends what answers DNS beside the agents: queries go to one of them again.
func (m *machine) endTrial(ctx context.Context) {
	if port := m.host.trialPort(); port != 0 {
		m.host.forgetFlows(port)
	}
	m.host.stopTrial(ctx)
}

// stopNow stops units, and ends the first of them at once: its Envoy has shed what it had.
func (m *machine) stopNow(ctx context.Context, units ...string) error {
	if err := m.host.systemctl(ctx, append([]string{"stop", "--no-block"}, units...)...); err != nil {
		return err
	}
	_ = m.host.systemctl(ctx, "kill", "--signal=SIGKILL", units[0])                             // it may have ended
	defer func() { _ = m.host.systemctl(ctx, append([]string{"reset-failed"}, units...)...) }() // it was meant to be killed
	return until(ctx, stopLimit, func(ctx context.Context) (bool, string) {
		for _, u := range units {
			f, err := m.host.unit(ctx, u)
			if err != nil {
				return false, err.Error()
			}
			if f.Active != "inactive" && f.Active != "failed" {
				return false, u + " is " + f.Active
			}
		}
		return true, ""
	})
}
