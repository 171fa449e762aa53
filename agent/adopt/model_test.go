package adopt

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"wingman/agent"
	"wingman/agent/status"
	"wingman/agent/xds"
	"wingman/bootstrap"
	"wingman/bootstrap/identity"
)

// box is the state of a machine of istio-sidecar as far as an adopt changes it, or a boot does. What systemd does with the units was tried in test/vm.
type box struct {
	IstioMasked, IstioEnabled, IstioActive bool
	Enabled, Active                        bool // wingman.service, and wingman-rules.service with it
	Drained                                bool // the Envoy that runs was told to shed its connections, and does so after each answer until it ends
	Pilots, Ours, ToTrial                  bool // whose rules are in; ours send DNS to the trial
	Held                                   bool
	Trial                                  bool
	Handover                               bool // a living process hands over
	Joined, Identity, BootRules            bool // below /var/lib/wingman
	Links                                  bool // the agent's, in /etc/certs
	Note                                   Record
}

func (b box) String() string {
	var said []string
	for _, f := range []struct {
		is   bool
		name string
	}{
		{b.IstioMasked, "istio masked"}, {b.IstioEnabled, "istio enabled"}, {b.IstioActive, "istio runs"}, {b.Enabled, "wingman enabled"}, {b.Active, "wingman runs"},
		{b.Drained, "Envoy drained"}, {b.Pilots, "pilot's rules"}, {b.Ours, "our rules"}, {b.ToTrial, "DNS to the trial"}, {b.Held, "held"}, {b.Trial, "trial"}, {b.Handover, "hands over"},
		{b.Joined, "joined"}, {b.Identity, "identity"}, {b.BootRules, "rules for boot"}, {b.Links, "links"}, {b.Note.Step != "", "record of " + string(b.Note.Step)},
	} {
		if f.is {
			said = append(said, f.name)
		}
	}
	return strings.Join(said, ", ")
}

// pilotServes and wingmanServes report whether that one has the machine alone, as well as ever: traffic and names reach it, and connections may stay.
func (b box) pilotServes() bool {
	return b.IstioActive && !b.Active && !b.Drained && b.Pilots && !b.Ours
}

func (b box) wingmanServes() bool {
	return b.Active && b.Identity && !b.IstioActive && !b.Drained && b.Ours && !b.Pilots && (!b.ToTrial || b.Trial)
}

// startIstio is a start of istio.service, whose script makes rules beside those that are there.
func (b box) startIstio() box {
	if !b.IstioMasked && !b.IstioActive {
		b.IstioActive, b.Drained, b.Pilots = true, false, true
	}
	return b
}

// startWingman is a start of wingman.service (its ExecCondition=), which puts its rules in the place of all others where it has joined. The token is dead, as most
// are after an hour: without the certificate that a trial took from pilot-agent's it never joins.
func (b box) startWingman() box {
	if !b.IstioActive && !b.Active {
		b.Active, b.Drained = true, false
		if b.Identity {
			b.Joined, b.BootRules, b.Links = true, true, true
			b.Pilots, b.Ours, b.ToTrial = false, true, false
		}
	}
	return b
}

// boot is a power cut, and what comes up after it: wingman-rules.service, then istio.service, then wingman.service.
func (b box) boot() box {
	b.IstioActive, b.Active, b.Drained, b.Pilots, b.Ours, b.ToTrial, b.Held, b.Trial, b.Handover = false, false, false, false, false, false, false, false, false
	if b.Enabled && b.Joined && b.BootRules && (!b.IstioEnabled || b.IstioMasked) {
		b.Ours = true
	}
	if b.IstioEnabled {
		b = b.startIstio()
	}
	if b.Enabled {
		b = b.startWingman()
	}
	return b
}

// killed is what ends a program in the middle.
type killed struct{}

// model is a host that has a box for a machine. It ends the program after an effect, like kill -9: nothing that is deferred has any effect then.
type model struct {
	box
	after  int    // the program ends with its effect of this number; 0: it does not
	fails  int    // the effect of this number fails, and does nothing; 0: none
	did    int    // effects so far
	last   string // the last of them
	dead   bool
	broken bool // pilot-agent, or wingman: it runs, and does not serve
	lame   bool
	busy   bool // another adopt is at work
}

// effect makes a change.
func (m *model) effect(name string, change func(*box)) error {
	if m.dead {
		return errors.New("dead")
	}
	m.did++
	m.last = name
	if m.did == m.fails {
		return errors.New(name + " fails")
	}
	change(&m.box)
	if m.did == m.after {
		m.dead = true
		panic(killed{})
	}
	return nil
}

// config is of a machine with nothing special.
func config() *bootstrap.Config {
	return &bootstrap.Config{Capture: bootstrap.Capture{DNS: true, User: "istio-proxy", UserKnown: true}}
}

func (m *model) gather(ctx context.Context, _ string) (f Facts, cfg *bootstrap.Config, err error) {
	f = Facts{Booted: true, Root: true, Installed: true, Identity: "spiffe://a/ns/b/sa/c", User: "istio-proxy"}
	f.Istio, _ = m.unit(ctx, agent.IstioUnit)
	f.Wingman, _ = m.unit(ctx, agentUnit)
	f.Record, _ = m.readRecord()
	return f, config(), nil
}

func (m *model) load(string) (*bootstrap.Config, error) { return config(), nil }
func (m *model) mayChange() error                       { return nil }
func (m *model) hadIdentity() bool                      { return m.Identity }

func (m *model) alone() (func(), error) {
	if m.busy {
		return nil, errors.New("another is at work")
	}
	return func() {}, nil
}

func (m *model) readRecord() (*Record, error) {
	if m.Note.Step == "" {
		return nil, nil
	}
	r := m.Note
	return &r, nil
}

func (m *model) writeRecord(r Record) error {
	r.At = Record{}.At
	return m.effect("record "+string(r.Step), func(b *box) { b.Note = r })
}

func (m *model) forgetRecord() error {
	return m.effect("forget the record", func(b *box) { b.Note = Record{} })
}

func (m *model) unit(_ context.Context, name string) (UnitFacts, error) {
	masked, enabled, active := false, m.Enabled, m.Active
	if name == agent.IstioUnit {
		masked, enabled, active = m.IstioMasked, m.IstioEnabled, m.IstioActive
	}
	choose := func(is bool, yes, no string) string {
		if is {
			return yes
		}
		return no
	}
	return UnitFacts{
		Load: choose(masked, "masked", "loaded"), Active: choose(active, "active", "inactive"), Enabled: choose(masked, "masked", choose(enabled, "enabled", "disabled")),
		Fragment: "/usr/lib/systemd/system/" + name,
	}, nil
}

func (m *model) systemctl(_ context.Context, args ...string) error {
	verb, units := args[0], slices.DeleteFunc(slices.Clone(args[1:]), func(s string) bool { return strings.HasPrefix(s, "--") })
	istio, ours := slices.Contains(units, agent.IstioUnit), slices.Contains(units, agentUnit)
	if verb == "start" && istio && m.IstioMasked {
		return errors.New("istio.service is masked")
	}
	return m.effect(verb+" "+strings.Join(units, " "), func(b *box) {
		switch verb {
		case "enable":
			b.IstioEnabled, b.Enabled = b.IstioEnabled || istio, b.Enabled || ours
		case "disable":
			b.IstioEnabled, b.Enabled = b.IstioEnabled && !istio, b.Enabled && !ours
		case "mask":
			b.IstioMasked = true
		case "unmask":
			b.IstioMasked = false
		case "stop":
			if istio && b.IstioActive {
				b.IstioActive, b.Drained = false, false
				if !b.IstioMasked { // ExecStopPost=
					b.Pilots, b.Ours, b.ToTrial = false, false, false
				}
			}
			if ours && b.Active {
				b.Active, b.Drained = false, false
				if !b.Handover {
					b.Ours, b.ToTrial = false, false
				}
			}
		case "start":
			if istio {
				*b = b.startIstio()
			}
			if ours {
				*b = b.startWingman()
			}
		case "restart": // of Envoy's supervisor
			b.Drained = false
		case "kill", "reset-failed":
		default:
			panic("systemctl " + verb)
		}
	})
}

func (m *model) startTrial(_ context.Context, _, _ string, args ...string) (agent.TrialReport, error) {
	return agent.TrialReport{}, m.effect("trial "+strings.Join(args, " "), func(b *box) {
		b.Trial, b.Identity = true, b.Identity || !slices.Contains(args, "--names-only")
	})
}

func (m *model) stopTrial(context.Context) {
	_ = m.effect("stop the trial", func(b *box) { b.Trial = false })
}

func (m *model) freePort(from uint16) (uint16, error) { return from + 1, nil }

func (m *model) trialPort() uint16 {
	if m.Trial {
		return 15054
	}
	return 0
}

func (m *model) note(context.Context, string, string) error {
	return m.effect("note the membership", func(b *box) { b.Joined = true })
}

func (m *model) openRules(context.Context, string, uint16) (takeOver, error) { return m, nil }

// Apply is takeOver's.
func (m *model) Apply(context.Context) (func(context.Context) error, error) {
	return func(context.Context) error {
		return m.effect("put pilot-agent's rules back", func(b *box) { b.Pilots, b.Ours, b.ToTrial = true, false, false })
	}, m.effect("put our rules in", func(b *box) { b.Pilots, b.Ours, b.ToTrial = false, true, true })
}

func (m *model) removeRules(context.Context) error {
	return m.effect("remove the rules", func(b *box) { b.Pilots, b.Ours, b.ToTrial = false, false, false })
}

func (m *model) theirRules(context.Context) error {
	return m.effect("make pilot-agent's rules", func(b *box) { b.Pilots = true })
}

func (m *model) lookAround(context.Context, string) agent.Surroundings { return agent.Surroundings{} }

func (m *model) hold(Hold) error { return m.effect("hold", func(b *box) { b.Held = true }) }
func (m *model) letGo() error    { return m.effect("let go", func(b *box) { b.Held = false }) }

func (m *model) shed(_ context.Context, _ uint16, hold func() error) error {
	if err := m.effect("drain Envoy", func(b *box) { b.Drained = b.IstioActive || b.Active }); err != nil {
		return err
	}
	return hold()
}

func (m *model) forgetFlows(uint16) {}

func (m *model) status(context.Context, string) (r status.Report, err error) {
	if !m.Active || m.lame || !m.Identity {
		return r, errors.New("wingman does not serve")
	}
	return status.Report{Phase: "joined", Ready: true, XDS: &xds.State{Answered: true}}, nil
}

func (m *model) pilotServes(context.Context, *bootstrap.Config) (bool, string) {
	return m.IstioActive && !m.broken, "pilot-agent does not serve"
}

func (m *model) handOver(string) (func() error, error) {
	return func() error { return m.effect("hand over no more", func(b *box) { b.Handover = false }) },
		m.effect("hand over", func(b *box) { b.Handover = true })
}

func (m *model) living(string) *identity.Living { return nil }

func (m *model) giveBack(string, *identity.Living) error {
	return m.effect("take the links out", func(b *box) { b.Links = false })
}

func (m *model) disownRules(string) error {
	return m.effect("disown the rules", func(b *box) { b.Joined, b.BootRules = false, false })
}

func (m *model) removeState(string) error {
	return m.effect("remove the state", func(b *box) { b.Joined, b.BootRules, b.Identity = false, false, false })
}

// outcome is how an adopt or undo ended on a machine.
type outcome struct {
	box
	adopted bool
	killed  bool
	err     error
	said    []string
	last    string // effect
	effects int
}

// play runs an adopt, or an undo, on a machine.
func (m *model) play(undo bool) (o outcome) {
	defer func() {
		if p := recover(); p != nil {
			if _, ok := p.(killed); !ok {
				panic(p)
			}
			o.killed = true
		}
		m.Handover = false // nobody holds the lock any more
		o.box, o.last, o.effects = m.box, m.last, m.did
	}()
	opts := Options{Root: "/", Say: func(s string) { o.said = append(o.said, s) }, Timeout: switchTime, Program: "wingman", host: m}
	if undo {
		o.err = Undo(context.Background(), opts)
	} else {
		_, o.adopted, o.err = Adopt(context.Background(), opts)
	}
	return o
}

func (o outcome) String() string {
	return fmt.Sprintf("adopted %t, killed %t, %v, after %q: %s", o.adopted, o.killed, o.err, o.last, o.box)
}
