package vm

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestALife shows what each event in the life of a machine costs those who use it, on the real control plane: in the machine one client asks DNS 200 times a
// second, another sends 200 requests a second through Envoy to the other machine.
func TestALife(t *testing.T) {
	s := newStage(t)
	s.show(t, "restart", "20 × `systemctl restart wingman`", restarts)
	s.show(t, "upgrade", "upgrade: another build put in place, then restart", upgrade)
	s.show(t, "crash", "20 × kill -9 agent", crashes)
	s.show(t, "envoy", "10 × kill -9 Envoy", envoyKills)
	s.show(t, "frozen", "SIGSTOP Envoy 20 s", frozenEnvoy)
	s.show(t, "power", "power cut, boot with istiod down", powerCuts)
	s.show(t, "stop", "`systemctl stop`", stop)
	s.show(t, "loop", "crash loop", crashLoop)
	s.show(t, "reboot", "reboot × 5", reboots)
	s.show(t, "orderly", "`systemctl reboot`, the application running to the last", orderlyReboot)
	s.show(t, "unit", "the application's unit stops (`systemdUnit:`)", unitProbe)
	s.show(t, "network", "boot without network and with an expired token", noNetworkAtBoot)
}

func restarts(r *row) {
	before, began, envoy := r.plane.now(forumEntry), time.Now(), r.forum.awaitEnvoy().PID
	l := r.usual()
	for range 20 {
		r.forum.Run("systemctl", "restart", "wingman")
		r.forum.awaitEnvoy()
	}
	l.mustBeWhole()
	r.sameEntry(before, began)
	if now := r.forum.awaitEnvoy().PID; now != envoy {
		r.Errorf("Envoy is process %d, want %d still", now, envoy)
	}
	r.note("one WorkloadEntry, never unhealthy; the same Envoy")
}

func upgrade(r *row) {
	before, began, version := r.plane.now(forumEntry), time.Now(), r.forum.Run("wingman", "version")
	next := BuildRelease(r, "upgraded")
	rules := watchRules(r.T, r.forum)
	l := r.usual()
	r.forum.CopyIn(next, "/usr/bin/wingman", 0o755)
	r.forum.Run("systemctl", "restart", "wingman")
	r.forum.awaitEnvoy()
	l.mustBeWhole()
	r.sameEntry(before, began)
	if s, err := r.forum.status(); err != nil || s.Version != "upgraded" {
		r.Errorf("after the upgrade version %q runs (%v), want upgraded; before it was %s", s.Version, err, version)
	}
	if gone := rules.gone(); len(gone) > 0 {
		r.Errorf("rules were taken out:\n%s", strings.Join(gone, "\n"))
	}
	r.note("rules never absent: the kernel told of no rule that went")
}

func crashes(r *row) {
	before, began, envoy := r.plane.now(forumEntry), time.Now(), r.forum.awaitEnvoy().PID
	l := r.usual()
	var back []time.Duration
	for range 20 {
		r.forget()
		pid, at := r.forum.mainPID("wingman"), uptime(r)
		r.forum.Run("kill", "-KILL", fmt.Sprint(pid))
		r.forum.await("the agent", func() bool {
			next := r.forum.mainPID("wingman")
			return next != 0 && next != pid && r.forum.show("wingman", "ActiveState") == "active"
		})
		back = append(back, r.after(at, "wingman.service", "ActiveEnterTimestampMonotonic"))
		r.forum.awaitEnvoy()
	}
	l.mustBeWhole()
	r.sameEntry(before, began)
	if now := r.forum.awaitEnvoy().PID; now != envoy {
		r.Errorf("Envoy is process %d, want %d still", now, envoy)
	}
	half := median(back)
	if took := mostly(r, back); took > 400*time.Millisecond {
		r.Errorf("the agent was back after %s, want 400 ms: %s", took, back)
	}
	r.note("back after %s (median; %s to %s); the crash guard was made to forget each, as twenty in a row are a crash loop", ms(half), ms(back[0]), ms(back[len(back)-1]))
}
