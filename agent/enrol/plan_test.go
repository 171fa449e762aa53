package enrol

import (
	"strings"
	"testing"
	"time"

	"wingman/agent/status"
	"wingman/agent/xds"
	"wingman/bootstrap"
	"wingman/bootstrap/identity"
)

func TestDecideJoin(t *testing.T) {
	kept, secret := place{kept: true}, place{}
	ours := placed{SHA256: digest([]byte("ours"))}
	for _, tc := range []struct {
		name string
		p    place
		now  []byte
		was  placed
		want action
	}{
		{"nothing is there", kept, nil, placed{}, writeIt},
		{"it is there already", kept, []byte("new"), placed{}, leaveIt},
		{"what an earlier join put there", kept, []byte("ours"), ours, writeIt},
		{"what an operator put there", kept, []byte("his"), placed{}, keepAndWriteIt},
		{"what an operator put there after a join", kept, []byte("his"), ours, keepAndWriteIt},
		{"an empty file", kept, []byte{}, placed{}, keepAndWriteIt},
		{"an old token", secret, []byte("old"), placed{}, writeIt},
	} {
		if got := decideJoin(tc.p, tc.now, []byte("new"), tc.was); got != tc.want {
			t.Errorf("%s: %d, want %d", tc.name, got, tc.want)
		}
	}
}

func TestDecideLeave(t *testing.T) {
	was := placed{SHA256: digest([]byte("ours"))}
	before := placed{SHA256: was.SHA256, Backup: 1}
	for _, tc := range []struct {
		name string
		now  []byte
		was  placed
		want undo
	}{
		{"what join put there", []byte("ours"), was, undoRemove},
		{"what join put in the place of something", []byte("ours"), before, undoRestore},
		{"what was changed since", []byte("his"), was, undoChanged},
		{"what was changed since, in the place of something", []byte("his"), before, undoChanged},
		{"nothing any more", nil, was, undoNothing},
		{"nothing any more, in the place of something", nil, before, undoRestore},
	} {
		if got := decideLeave(tc.now, tc.was); got != tc.want {
			t.Errorf("%s: %d, want %d", tc.name, got, tc.want)
		}
	}
}

func TestOtherMember(t *testing.T) {
	is := bootstrap.Config{TrustDomain: "cluster.local", Namespace: "a", ServiceAccount: "b", ClusterID: "c", AutoRegisterGroup: "d"}
	if why := otherMember(&is, &is); why != "" {
		t.Errorf("the same: %s", why)
	}
	for what, change := range map[string]func(*bootstrap.Config){
		"identity":      func(c *bootstrap.Config) { c.ServiceAccount = "x" },
		"cluster":       func(c *bootstrap.Config) { c.ClusterID = "x" },
		"WorkloadGroup": func(c *bootstrap.Config) { c.AutoRegisterGroup = "x" },
	} {
		would := is
		change(&would)
		if why := otherMember(&is, &would); !strings.Contains(why, what) || !strings.Contains(why, "wingman leave") {
			t.Errorf("another %s: %q", what, why)
		}
	}
}

func TestTheWaitForAJoin(t *testing.T) {
	since := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	report := func(change func(*status.Report)) status.Report {
		r := status.Report{
			Phase: "joined", Ready: true,
			Config:   status.ConfigReport{Loaded: since.Add(time.Millisecond)},
			Identity: &identity.State{NotAfter: since.Add(time.Hour)},
			XDS:      &xds.State{Answered: true},
		}
		change(&r)
		return r
	}
	for _, tc := range []struct {
		name   string
		report status.Report
		done   bool // at once
		late   bool // when it stays like that
		why    string
	}{
		{"joined and ready", report(func(*status.Report) {}), true, true, ""},
		{"as it was before the files", report(func(r *status.Report) { r.Config.Loaded = since.Add(-time.Second) }), false, false, "has not read the files"},
		{"not joined", report(func(r *status.Report) { r.Phase, r.NotReady = "joining", []string{"no certificate yet"} }), false, false, "no certificate yet"},
		{"no stream in this run", report(func(r *status.Report) { r.XDS.Answered = false }), false, false, "no answer of istiod"},
		{"no address yet", report(func(r *status.Report) { r.XDS = nil }), false, false, ""},
		{"a certificate that has ended", report(func(r *status.Report) { r.Identity.NotAfter = since }), false, false, ""},
		{"joined, and Envoy does not come up", report(func(r *status.Report) { r.Ready, r.NotReady = false, []string{"Envoy does not serve"} }), false, true, "Envoy does not serve"},
	} {
		var w watched
		done, why := w.look(tc.report, since, since.Add(time.Second))
		late, _ := w.look(tc.report, since, since.Add(time.Second+readyPatience))
		if done != tc.done || late != tc.late || !strings.Contains(why, tc.why) {
			t.Errorf("%s: done %t, later %t, %q; want %t, %t, %q", tc.name, done, late, why, tc.done, tc.late, tc.why)
		}
	}

	var w watched
	no := report(func(r *status.Report) { r.Phase, r.XDS.Rejected, r.XDS.Answered = "joining", true, false })
	for at, want := range map[time.Duration]bool{0: false, noPatience - 1: false, noPatience: true} {
		w = watched{no: since}
		w.look(no, since, since.Add(at))
		if w.refused(since.Add(at)) != want {
			t.Errorf("istiod says no for %s: given up %t, want %t", at, !want, want)
		}
	}
	w.look(report(func(*status.Report) {}), since, since)
	if w.refused(since.Add(time.Hour)) {
		t.Error("a no that was taken back still counts")
	}
}
