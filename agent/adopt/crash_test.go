package adopt

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// switchTime is how long wingman may take to serve.
const switchTime = 20 * time.Second

// sidecars are machines before an adopt.
func sidecars() map[string]box {
	usual := box{IstioEnabled: true, IstioActive: true, Pilots: true}
	byHand, member := usual, usual
	byHand.IstioEnabled = false
	member.Identity, member.BootRules, member.Joined = true, true, true
	return map[string]box{"a usual one": usual, "istio.service started by hand": byHand, "one that was a member by wingman once": member}
}

// restored is what an undo makes of a machine.
func restored(start box) box {
	start.Joined, start.BootRules = false, false
	return start
}

// An adopt, an undo and the machine's power may end after any effect, and again in what is run then, and the way back from an effect that failed may: over every
// state that can be reached so, there are never two owners; the next boot brings exactly one that serves; another adopt completes, or says that an undo has to
// be; and an undo brings the old state back.
func TestEndedAnywhere(t *testing.T) {
	for name, start := range sidecars() {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				from := map[box]string{start: "before"}
				queue := []box{start}
				visit := func(b box, how string) {
					if _, seen := from[b]; !seen {
						from[b] = how
						queue = append(queue, b)
					}
				}
				plays := 0
				// each plays from a state, and ends the program after each effect.
				each := func(b box, undo bool, like model, how string) outcome {
					for k := 1; ; k++ {
						if k == like.fails {
							continue
						}
						like.box, like.after = b, k
						m := like
						o := m.play(undo)
						plays++
						visit(o.box, how+map[bool]string{true: ", killed after " + o.last}[o.killed])
						if !o.killed {
							return o
						}
						if strings.HasPrefix(o.last, "stop") && undo { // the agent may not have asked yet whether it hands over
							gone := o.box
							gone.Ours = gone.Ours && gone.Active
							visit(gone, how+", killed after "+o.last+", which was a goodbye")
						}
					}
				}
				adopted := each(start, false, model{}, "before; adopt")
				for _, first := range []struct {
					box
					undo bool
					name string
				}{{start, false, "before; adopt"}, {adopted.box, true, "adopted; undo"}} {
					whole := (&model{box: first.box}).play(first.undo)
					for k := 1; k <= whole.effects; k++ {
						how := fmt.Sprintf("%s, whose effect %d fails", first.name, k)
						checkFailure(t, each(first.box, first.undo, model{fails: k}, how), how)
					}
					how := first.name + ", after which nobody serves"
					checkFailure(t, each(first.box, first.undo, model{lame: !first.undo, broken: first.undo}, how), how)
				}
				for len(queue) > 0 && !t.Failed() {
					b := queue[0]
					queue = queue[1:]
					checkState(t, start, b, from[b])
					visit(b.boot(), from[b]+"; boot")
					each(b, false, model{}, from[b]+"; adopt")
					each(b, true, model{}, from[b]+"; undo")
				}
				t.Logf("%d states, %d runs", len(from), plays)
			})
		})
	}
}

// checkFailure is for an adopt or undo in which one thing fails, and which is not killed: somebody serves afterwards.
func checkFailure(t *testing.T, o outcome, how string) {
	t.Helper()
	if o.pilotServes() == o.wingmanServes() || o.Held && !strings.Contains(o.err.Error(), "let go fails") { // that ends by itself
		t.Errorf("%s: %s\n  want one owner that serves, and no connection held", how, o)
	}
}

func checkState(t *testing.T, start, b box, how string) {
	t.Helper()
	fail := func(format string, args ...any) {
		t.Helper()
		t.Errorf("%s:\n  %s\n  "+format, append([]any{how, b}, args...)...)
	}
	if b.IstioActive && b.Active {
		fail("two owners run")
	}
	if (b.IstioActive || b.Active) && !b.Pilots && !b.Ours && !b.Held {
		fail("nothing is captured, and nothing held")
	}
	up := b.boot()
	asBefore := !start.IstioEnabled && !up.IstioActive && !up.Active && !up.Pilots && !up.Ours && !up.Enabled // who starts istio.service by hand does so after each boot
	if up.pilotServes() == up.wingmanServes() && !asBefore {
		fail("a boot brings %s, want one owner that serves", up)
	}
	if up.pilotServes() && up.Links && !strings.Contains(how, "fails") { // an undo goes on without them
		fail("after a boot pilot-agent has the agent's links: %s", up)
	}
	for what, from := range map[string]box{"": b, "after a boot, ": up} {
		a := (&model{box: from}).play(false)
		switch {
		case a.err == nil && a.wingmanServes() && !a.Held && (!a.Trial || from.Note.Step == StepDone) && a.Note.Step == StepDone && a.Enabled && a.IstioMasked:
		case a.err != nil && from.Note.Step == StepUndo && strings.Contains(a.err.Error(), "wingman adopt --undo") && a.box == from:
		case a.err != nil && !start.IstioEnabled && !from.IstioActive && !from.IstioMasked && strings.Contains(a.err.Error(), "does not run") && a.box == from:
		default:
			fail("%sadopt: %s", what, a)
		}
		u := (&model{box: from}).play(true)
		want := restored(start)
		if from.Note.Step == "" {
			want = from
		}
		if u.err != nil || u.box != want {
			fail("%sundo: %s\n  want %s", what, u, want)
		}
	}
}
