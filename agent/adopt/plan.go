package adopt

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"wingman/bootstrap"
)

// Facts are what a plan is made from.
type Facts struct {
	Booted    bool // systemd manages the machine
	Root      bool // who asks is root
	Installed bool // wingman's units are there
	Istio     UnitFacts
	Wingman   UnitFacts
	Record    *Record            // of an adopt before; nil: none
	Problems  bootstrap.Problems // of the settings
	Unread    []string           // variables of Istio's env files that nothing reads
	Identity  string             // SPIFFE ID of the settings; empty: they cannot be used
	Rules     string             // what is in the kernel of ours or Istio's, for people; empty: nothing
	Custom    bool               // the operator keeps the rules
	User      string             // who agent and Envoy run as; empty: there is no such user
}

// UnitFacts are what systemd knows of a unit.
type UnitFacts struct {
	Load     string // "loaded", "masked", "not-found"
	Active   string // "active", "inactive", …
	Enabled  string // UnitFileState: "enabled", "disabled", "masked", …
	Fragment string // its file
	DropIns  string // files that add to that one

	Variables []string // names that its Environment= sets, and files of EnvironmentFile=
}

func (u UnitFacts) runs() bool {
	return u.Active == "active" || u.Active == "activating" || u.Active == "reloading"
}

// A Plan is what adopt is about to do.
type Plan struct {
	Refused string   // why nothing can be done; the rest is empty then
	Done    string   // there is nothing to do, because
	Resume  bool     // an adopt that did not come to its end is taken up: pilot-agent does not serve
	Steps   []string // for people, in their order
	Ignored []string // settings of Istio's package that have no effect here, one sentence each
}

// foreignUnits is where units of a machine's owner lie; systemctl cannot mask one that is there.
const foreignUnits = "/etc/systemd/system"

// MakePlan decides. It is pure.
func MakePlan(f Facts) Plan {
	switch {
	case !f.Booted:
		return Plan{Refused: "systemd does not manage this machine, and istio.service is its unit: adopt has nothing to do here"}
	case !f.Root:
		return Plan{Refused: "adopt changes units and rules of the system: run it as root"}
	case !f.Installed:
		return Plan{Refused: "wingman's units are not installed here: install the package first"}
	case f.Record != nil && f.Record.Step == StepDone && !f.Istio.runs() && !f.Wingman.runs():
		return Plan{Refused: "this machine was taken over at " + f.Record.At.Format("2006-01-02 15:04") + ", and wingman.service does not run: nobody serves. Start it (systemctl enable --now wingman), or give the machine back with wingman adopt --undo"}
	case f.Record != nil && f.Record.Step == StepDone && !f.Istio.runs():
		return Plan{Done: "this machine was taken over at " + f.Record.At.Format("2006-01-02 15:04") + ": there is nothing to do; the way back is wingman adopt --undo"}
	case f.Record != nil && f.Record.Step.undoing():
		return Plan{Refused: "an undo of an earlier adopt did not come to its end: finish it with wingman adopt --undo"}
	}
	resume := f.Record != nil && f.Record.Step.switching()
	switch {
	case f.Istio.Load == "not-found":
		return Plan{Refused: "there is no istio.service on this machine: wingman join makes it a member of a mesh"}
	case !resume && f.Istio.Load == "masked":
		return Plan{Refused: "istio.service is masked, and not by wingman: unmask and start it first, or use wingman join"}
	case !resume && !f.Istio.runs():
		return Plan{Refused: "istio.service does not run, so there is nothing to take over: start it first, or use wingman join"}
	case f.Wingman.runs() && !resume:
		return Plan{Refused: "wingman.service runs already beside istio.service: stop one of them first"}
	case f.Istio.Load != "masked" && filepath.Dir(f.Istio.Fragment) == foreignUnits:
		return Plan{Refused: f.Istio.Fragment + " is a unit of this machine's owner, which systemctl cannot mask: move it to /usr/lib/systemd/system first (systemctl daemon-reload)"}
	case f.Identity == "":
		return Plan{Refused: f.Problems.Err().Error()}
	case f.User == "":
		return Plan{Refused: "there is no user istio-proxy for the agent to run as: run systemd-sysusers, or install the package"}
	}
	p := Plan{Resume: resume}
	for _, problem := range f.Problems.Warnings() {
		p.Ignored = append(p.Ignored, problem.String())
	}
	p.Ignored = append(p.Ignored, f.Unread...)
	if len(f.Istio.Variables) > 0 {
		p.Ignored = append(p.Ignored, "the unit istio.service sets "+strings.Join(f.Istio.Variables, ", ")+", which has no effect here: what is to have one belongs in sidecar.env")
	}
	if f.Istio.DropIns != "" {
		p.Ignored = append(p.Ignored, "what "+f.Istio.DropIns+" says of istio.service has no effect on wingman.service")
	}
	p.Steps = []string{"try, beside pilot-agent and as " + f.User + ": certificate of " + f.Identity + ", istiod's configuration, Envoy's bootstrap file, DNS"}
	switch {
	case f.Custom:
		p.Steps = append(p.Steps, "leave the rules alone: the operator keeps them (ISTIO_CUSTOM_IP_TABLES)")
	default:
		p.Steps = append(p.Steps, "put this agent's rules in the place of "+rulesOf(f.Rules)+", in one transaction")
	}
	p.Steps = append(p.Steps,
		"enable wingman.service; mask and stop istio.service (enabled before: "+f.Istio.Enabled+"), while new connections wait",
		"start wingman.service and wait until it is ready; otherwise everything goes back by itself",
	)
	if resume {
		p.Steps = slices.Insert(p.Steps, 0, fmt.Sprintf("take up the adopt that did not come to its end at %s (step %q)", f.Record.At.Format("15:04:05"), f.Record.Step))
	}
	return p
}

func rulesOf(found string) string {
	if found == "" {
		return "none of pilot-agent's"
	}
	return "pilot-agent's (" + found + ")"
}

// String is the plan as it is printed.
func (p Plan) String() string {
	var b strings.Builder
	for i, s := range p.Steps {
		fmt.Fprintf(&b, "%d. %s\n", i+1, s)
	}
	for _, s := range p.Ignored {
		fmt.Fprintf(&b, "note: %s\n", s)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// serves judges whether what took the other's place serves as it did, by the first facts of its status.
func serves(joined, ready bool, notReady []string) (bool, string) {
	if joined && ready {
		return true, ""
	}
	return false, strings.Join(notReady, "; ")
}
