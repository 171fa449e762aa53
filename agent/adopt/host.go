package adopt

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"wingman/agent"
	"wingman/agent/enrol"
	"wingman/agent/status"
	"wingman/bootstrap"
	"wingman/bootstrap/identity"
)

// host is the machine as an adopt sees and changes it. Each call has one effect at most: a test with a model of a machine ends the program after every one of them.
type host interface {
	gather(ctx context.Context, root string) (Facts, *bootstrap.Config, error)
	load(root string) (*bootstrap.Config, error) // for an undo, which bears with settings that have problems
	mayChange() error
	alone() (release func(), err error) // until release no other adopt or undo works on this machine
	hadIdentity() bool

	readRecord() (*Record, error)
	writeRecord(r Record) error
	forgetRecord() error

	systemctl(ctx context.Context, args ...string) error
	unit(ctx context.Context, name string) (UnitFacts, error)

	startTrial(ctx context.Context, program, user string, args ...string) (agent.TrialReport, error)
	stopTrial(ctx context.Context)
	freePort(from uint16) (uint16, error)
	trialPort() uint16 // where the trial answers DNS; 0: there is none
	note(ctx context.Context, program, user string) error

	openRules(ctx context.Context, root string, dnsPort uint16) (takeOver, error)
	removeRules(ctx context.Context) error // ours, and pilot-agent's, whose chains have the same names
	theirRules(ctx context.Context) error  // has Istio's own script make pilot-agent's
	lookAround(ctx context.Context, root string) agent.Surroundings

	hold(h Hold) error
	letGo() error
	shed(ctx context.Context, admin uint16, hold func() error) error
	forgetFlows(port uint16)

	status(ctx context.Context, root string) (status.Report, error)
	pilotServes(ctx context.Context, cfg *bootstrap.Config) (bool, string)
	handOver(root string) (done func() error, err error)
	living(outputDir string) *identity.Living
	giveBack(outputDir string, l *identity.Living) error
	disownRules(stateDir string) error
	removeState(stateDir string) error
}

// takeOver are rules that take the place of another agent's; see agent.TakeOverRules.
type takeOver interface {
	Apply(ctx context.Context) (restore func(ctx context.Context) error, err error)
}

// system is the real machine.
type system struct{}

func (system) gather(ctx context.Context, root string) (Facts, *bootstrap.Config, error) {
	return gather(ctx, root)
}

func (system) load(root string) (*bootstrap.Config, error) {
	cfg, _ := bootstrap.Load(root)
	if cfg == nil {
		return nil, errors.New("the settings cannot be used any more, and they say where Envoy and DNS are: see wingman config check")
	}
	return cfg, nil
}

func (system) mayChange() error {
	if os.Geteuid() != 0 {
		return errors.New("adopt changes units and rules of the system: run it as root")
	}
	return nil
}

func (system) alone() (release func(), err error) {
	if os.Geteuid() != 0 {
		return func() {}, nil // the plan refuses
	}
	return lock(lockFile)
}

func (system) hadIdentity() bool            { return agent.HasIdentity("/") }
func (system) readRecord() (*Record, error) { return readRecord(RecordFile) }
func (system) writeRecord(r Record) error   { return r.write(RecordFile) }
func (system) forgetRecord() error          { return forget(RecordFile) }

func (system) systemctl(ctx context.Context, args ...string) error {
	_, err := enrol.Systemctl(ctx, args...)
	return err
}

func (system) unit(ctx context.Context, name string) (UnitFacts, error) { return unitFacts(ctx, name) }

func (system) startTrial(ctx context.Context, program, user string, args ...string) (agent.TrialReport, error) {
	return startTrial(ctx, program, user, args...)
}

func (system) stopTrial(ctx context.Context) { stopTrial(ctx) }

func (system) freePort(from uint16) (uint16, error) { return freePort(from) }

func (system) trialPort() uint16 {
	r, err := agent.ReadTrialReport(TrialDir)
	if err != nil {
		return 0
	}
	return r.Port
}

func (system) note(ctx context.Context, program, user string) error {
	return asAgent(ctx, program, user, "adopt", "note")
}

func (system) openRules(ctx context.Context, root string, dnsPort uint16) (takeOver, error) {
	return agent.OpenTakeOver(ctx, root, dnsPort)
}

func (system) removeRules(ctx context.Context) error {
	_, err := agent.RemoveRules(ctx)
	return err
}

func (system) theirRules(ctx context.Context) error {
	_, err := run(ctx, startScript, "init")
	return err
}

func (system) lookAround(ctx context.Context, root string) agent.Surroundings {
	return agent.LookAround(ctx, root)
}

func (system) hold(h Hold) error { return h.begin() }
func (system) letGo() error      { return letGo() }

func (system) shed(ctx context.Context, admin uint16, hold func() error) error {
	return shed(ctx, admin, shedLimit, hold)
}

func (system) forgetFlows(port uint16) { forgetFlows(port) }

func (system) status(ctx context.Context, root string) (status.Report, error) {
	return agent.Client(root).Status(ctx)
}

// pilotServes asks pilot-agent's Envoy and DNS.
func (system) pilotServes(ctx context.Context, cfg *bootstrap.Config) (bool, string) {
	if _, err := askHTTP(ctx, http.MethodGet, "http://127.0.0.1:"+strconv.Itoa(int(cfg.Status.ReadinessPort))+"/healthz/ready"); err != nil {
		return false, "its Envoy is not ready: " + err.Error()
	}
	if !cfg.Capture.DNS {
		return true, ""
	}
	return answersDNS(ctx, cfg.DNS.Listen.Port(), "istiod.istio-system.svc")
}

func (system) handOver(root string) (done func() error, err error) { return agent.HandOver(root) }

func (system) living(outputDir string) *identity.Living {
	return identity.ReadLiving(outputDir, time.Now())
}

func (system) giveBack(outputDir string, l *identity.Living) error {
	return identity.GiveBack(outputDir, l, time.Now())
}

func (system) disownRules(stateDir string) error { return agent.DisownRules(stateDir) }

func (system) removeState(stateDir string) error {
	entries, err := os.ReadDir(stateDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	problems := []error{err}
	for _, e := range entries {
		problems = append(problems, os.RemoveAll(filepath.Join(stateDir, e.Name())))
	}
	problems = append(problems, os.Remove(stateDir))
	if err := errors.Join(problems...); err != nil {
		return fmt.Errorf("remove the state: %w", err)
	}
	return nil
}
