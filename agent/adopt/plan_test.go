package adopt

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"wingman/bootstrap"
)

func TestPlan(t *testing.T) {
	sidecar := func(change func(*Facts)) Facts {
		f := Facts{
			Booted: true, Root: true, Installed: true, User: "istio-proxy", Identity: "spiffe://cluster.local/ns/a/sa/b", Rules: "backend nft, 7 chains",
			Istio:   UnitFacts{Load: "loaded", Active: "active", Enabled: "enabled", Fragment: "/usr/lib/systemd/system/istio.service"},
			Wingman: UnitFacts{Load: "loaded", Active: "inactive", Enabled: "disabled"},
		}
		change(&f)
		return f
	}
	record := func(s Step) *Record { return &Record{Step: s, At: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)} }
	stopped := UnitFacts{Load: "masked", Active: "inactive", Enabled: "masked", Fragment: "/etc/systemd/system/istio.service"}
	const first = "try, beside pilot-agent"
	for _, tc := range []struct {
		name   string
		facts  Facts
		want   string // in Refused, Done or the text of the steps
		is     string // "refused", "done", "steps"
		resume bool
	}{
		{"istio-sidecar runs", sidecar(func(*Facts) {}), first, "steps", false},
		{"and is about to be started again", sidecar(func(f *Facts) { f.Istio.Active = "activating" }), first, "steps", false},
		{"in a container", sidecar(func(f *Facts) { f.Booted = false }), "systemd does not manage", "refused", false},
		{"not root", sidecar(func(f *Facts) { f.Root = false }), "run it as root", "refused", false},
		{"a program without its package", sidecar(func(f *Facts) { f.Installed = false }), "install the package", "refused", false},
		{"no istio-sidecar", sidecar(func(f *Facts) { f.Istio = UnitFacts{Load: "not-found", Active: "inactive"} }), "wingman join", "refused", false},
		{"it does not run", sidecar(func(f *Facts) { f.Istio.Active = "failed" }), "does not run", "refused", false},
		{"it is masked by somebody", sidecar(func(f *Facts) { f.Istio = stopped }), "not by wingman", "refused", false},
		{"both run", sidecar(func(f *Facts) { f.Wingman.Active = "active" }), "beside istio.service", "refused", false},
		{"a unit of the owner's", sidecar(func(f *Facts) { f.Istio.Fragment = "/etc/systemd/system/istio.service" }), "cannot mask", "refused", false},
		{"no user", sidecar(func(f *Facts) { f.User = "" }), "no user istio-proxy", "refused", false},
		{"settings that cannot be used", sidecar(func(f *Facts) {
			f.Identity, f.Problems = "", bootstrap.Problems{{Severity: bootstrap.Error, Key: "KEY", Found: "x"}}
		}), "KEY: found x", "refused", false},
		{"settings with a warning", sidecar(func(f *Facts) { f.Problems = bootstrap.Problems{{Key: "KEY", Found: "x"}} }), "note: KEY: found x", "steps", false},
		{"a variable of the owner's own", sidecar(func(f *Facts) { f.Unread = []string{"HAND_MADE is not read"} }), "note: HAND_MADE", "steps", false},
		{"variables of the unit", sidecar(func(f *Facts) { f.Istio.Variables = []string{"PILOT_X", "those of /etc/x"} }), "istio.service sets PILOT_X, those of /etc/x", "steps", false},
		{"drop-ins of the unit", sidecar(func(f *Facts) { f.Istio.DropIns = "/etc/systemd/system/istio.service.d/a.conf" }), "istio.service.d/a.conf says", "steps", false},
		{"rules of the operator's", sidecar(func(f *Facts) { f.Custom = true }), "ISTIO_CUSTOM_IP_TABLES", "steps", false},
		{"taken over already", sidecar(func(f *Facts) { f.Record, f.Istio, f.Wingman.Active = record(StepDone), stopped, "active" }), "nothing to do", "done", false},
		{"taken over, and wingman was stopped", sidecar(func(f *Facts) { f.Record, f.Istio = record(StepDone), stopped }), "nobody serves", "refused", false},
		{"taken over, and istio.service was started again by its owner", sidecar(func(f *Facts) { f.Record = record(StepDone) }), first, "steps", false},
		{"killed in the trial", sidecar(func(f *Facts) { f.Record = record(StepTrial) }), first, "steps", false},
		{"killed after the rules", sidecar(func(f *Facts) { f.Record = record(StepRules) }), first, "steps", false},
		{"killed while istio.service runs still", sidecar(func(f *Facts) { f.Record = record(StepStop) }), "take up the adopt", "steps", true},
		{"killed once it is masked", sidecar(func(f *Facts) { f.Record, f.Istio = record(StepStop), stopped }), "take up the adopt", "steps", true},
		{"killed once wingman runs", sidecar(func(f *Facts) { f.Record, f.Istio, f.Wingman.Active = record(StepStart), stopped, "active" }), "take up the adopt", "steps", true},
		{"killed in an undo", sidecar(func(f *Facts) { f.Record = record(StepUndo) }), "wingman adopt --undo", "refused", false},
	} {
		p := MakePlan(tc.facts)
		got := map[string]string{"refused": p.Refused, "done": p.Done, "steps": p.String()}
		for kind, text := range got {
			if (text != "") != (kind == tc.is) {
				t.Errorf("%s: %s is %q, want this to be %s", tc.name, kind, text, tc.is)
			}
		}
		if !strings.Contains(got[tc.is], tc.want) || p.Resume != tc.resume {
			t.Errorf("%s: %q, resume %t; want %q in it, resume %t", tc.name, got[tc.is], p.Resume, tc.want, tc.resume)
		}
	}
}

func TestParseUnit(t *testing.T) {
	got := parseUnit("LoadState=masked\nActiveState=inactive\nUnitFileState=masked\nFragmentPath=/etc/systemd/system/istio.service\nOther=1\nbroken\n" +
		`Environment=A=1 "B=two NOT=3 words" C="four NOR=5" D=` + "\nEnvironmentFiles=/etc/x (ignore_errors=no)\nDropInPaths=/etc/a.conf /etc/b.conf")
	want := UnitFacts{"masked", "inactive", "masked", "/etc/systemd/system/istio.service", "/etc/a.conf /etc/b.conf", []string{"A", "B", "C", "D", "those of /etc/x"}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestInFlight(t *testing.T) {
	for stats, want := range map[string]int{
		"": 0,
		"http.inbound_0.0.0.0_8080.downstream_rq_active: 2\nhttp.outbound_0.0.0.0_80.downstream_rq_active: 3\n":                                  5,
		"http.admin.downstream_rq_active: 1\nhttp.stats.downstream_rq_active: 1\nhttp.x.downstream_rq_active: many\ncluster.x.rq_active: 7\n: 1": 0,
	} {
		if got := inFlight(stats); got != want {
			t.Errorf("%q: %d in flight, want %d", stats, got, want)
		}
	}
}

// Whatever a unit's Environment= holds, no value gets into the plan.
func FuzzVariables(f *testing.F) {
	f.Add(`A=1 "B=two NOT=3 words" C='x' $'D=\n'`)
	f.Add(`"`)
	f.Fuzz(func(t *testing.T, said string) {
		for _, name := range variables(said) {
			if strings.Contains(name, "=") {
				t.Errorf("%q: name %q", said, name)
			}
		}
	})
}
