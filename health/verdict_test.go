package health

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// play feeds events to a verdict on one or two probes, one second apart, and returns the reports as letters.
//
// h, u: the first probe succeeds, fails; n: it fails with an empty message; H, U: the second one; a dot is a second in which nothing happens but a due tick.
func play(t *testing.T, v verdict, events string) (letters string, reports []Report) {
	t.Helper()
	now := time.Unix(1_000_000, 0)
	for _, c := range events {
		now = now.Add(time.Second)
		var e event
		switch c {
		case 'h':
			e = probed{0, nil}
		case 'u':
			e = probed{0, errors.New("GET /: refused")}
		case 'n':
			e = probed{0, errors.New("")}
		case 'H':
			e = probed{1, nil}
		case 'U':
			e = probed{1, errors.New("TCP: refused")}
		case '.':
			if v.wakeAt.IsZero() || now.Before(v.wakeAt) {
				continue
			}
			e = tick{}
		default:
			t.Fatalf("unknown event %q", c)
		}
		if report, changed := v.step(now, e); changed {
			letters += map[bool]string{true: "H", false: "U"}[report.Healthy]
			reports = append(reports, report)
		}
	}
	return letters, reports
}

func twoProbes(r rule) verdict {
	v := oneProbe(r)
	v.probes = append(v.probes, tally{rule: r, target: "TCP"})
	return v
}

func oneProbe(r rule) verdict { return verdict{probes: []tally{{rule: r, target: "GET /"}}} }

func TestThresholds(t *testing.T) {
	for _, tt := range []struct {
		name             string
		success, failure int
		events, want     string
	}{
		{"nothing is reported before the first result", 1, 1, "", ""},
		{"the first success is reported at once", 1, 1, "h", "H"},
		{"the first failure is reported at once", 1, 1, "u", "U"},
		{"with Istio's thresholds each change is reported", 1, 1, "huh", "HUH"},
		{"the same result again is silent", 1, 1, "hhhuuuhh", "HUH"},
		{"one failure below the threshold is silent", 1, 3, "huh", "H"},
		{"failures that are not in a row do not add up", 1, 3, "huuhuuh", "H"},
		{"the third failure in a row is reported", 1, 3, "huuu", "HU"},
		{"failures beyond the threshold are silent", 1, 3, "huuuuuuu", "HU"},
		{"unhealthy without a reason still reports", 1, 3, "hnnn", "HU"},
		{"a recovery counts its own successes", 3, 1, "uhhuhhh", "UH"},
		{"the first verdict needs its threshold too", 2, 3, "huuhh", "H"},
		{"the first bad verdict needs its threshold too", 2, 3, "huuu", "U"},
		{"a threshold crossed while the verdict was the same already is not lost", 2, 2, "uuhuhhuhuu", "UHU"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got, _ := play(t, oneProbe(rule{tt.success, tt.failure}), tt.events); got != tt.want {
				t.Errorf("thresholds %d and %d, events %q: reported %q, want %q", tt.success, tt.failure, tt.events, got, tt.want)
			}
		})
	}
}

func TestProbesCombine(t *testing.T) {
	for _, tt := range []struct {
		name, events, want string
		reason             string // of the last report
	}{
		{"healthy waits for all probes", "h", "", ""},
		{"healthy once all probes are", "hH", "H", "TCP succeeded"},
		{"one failure is enough", "hU", "U", "TCP: refused"},
		{"healthy again only when the last one is", "hHUuHh", "HUH", "GET / succeeded"},
		{"a second failure is no change", "hHuU", "HU", "GET /: refused"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, reports := play(t, twoProbes(rule{1, 1}), tt.events)
			if got != tt.want {
				t.Fatalf("events %q: reported %q, want %q", tt.events, got, tt.want)
			}
			if len(reports) > 0 && reports[len(reports)-1].Reason != tt.reason {
				t.Errorf("events %q: last reason %q, want %q", tt.events, reports[len(reports)-1].Reason, tt.reason)
			}
		})
	}
}

func TestDamping(t *testing.T) {
	damping := Damping{Changes: 2, Window: 10 * time.Second, Hold: 3 * time.Second}
	for _, tt := range []struct {
		name, events, want string
	}{
		{"one failure is not flapping", "huh", "HUH"},
		{"the second within the window is", "huhuhhh", "HUHU"},
		{"what flapped is healthy after it passed for the hold", "huhuhhhh", "HUHUH"},
		{"the hold ends by itself, between two probes", "huhuh...", "HUHUH"},
		{"a failure within the hold begins it anew", "huhuhhuhhh.", "HUHUH"},
		{"failures further apart than the window do not count", "huh..........uh", "HUHUH"},
		{"after the hold the count begins anew", "huhuh...uh", "HUHUHUH"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := oneProbe(rule{1, 1})
			v.damping = damping
			if got, reports := play(t, v, tt.events); got != tt.want {
				t.Errorf("events %q: reported %q, want %q (%+v)", tt.events, got, tt.want, reports)
			}
		})
	}
}

func TestReasonsAreForPeople(t *testing.T) {
	for _, tt := range []struct {
		name   string
		events []event
		want   string
	}{
		{"no probe", []event{tick{}}, "no probe configured"},
		{"an empty failure", []event{probed{0, errors.New(" \n")}}, "GET /: no reason given"},
		{"lines and control characters", []event{probed{0, errors.New("exec x: exit status 1: a\r\n\tb\x1b[31m\xff")}}, "exec x: exit status 1: a | b?[31m?"},
		{"very long", []event{probed{0, errors.New(strings.Repeat("é", 2*maxReason))}}, strings.Repeat("é", (maxReason-3)/2) + "…"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := oneProbe(rule{1, 1})
			if tt.name == "no probe" {
				v.probes = nil
			}
			var last Report
			for _, e := range tt.events {
				if r, changed := v.step(time.Unix(1, 0), e); changed {
					last = r
				}
			}
			if last.Reason != tt.want {
				t.Errorf("reason %q, want %q", last.Reason, tt.want)
			}
			if len(last.Reason) > maxReason {
				t.Errorf("reason of %d bytes, want at most %d", len(last.Reason), maxReason)
			}
		})
	}
}
