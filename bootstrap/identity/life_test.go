package identity

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestAMachineJoinsAndRenewsAtHalfTheLifeAsReceived(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		l.ca.life, l.cfg.TTL = 20*time.Second, 20*time.Second
		l.start()
		l.mustBe(Valid)
		within(t, time.Second, l.m.Ready(), "ready")
		first := l.m.Current()
		l.pass(9 * time.Second)
		if l.m.Current() != first {
			t.Error("renewed before half of the life was over")
		}
		l.pass(2 * time.Second)
		if second := l.m.Current(); second.Serial == first.Serial || l.onDisk() != second.Serial {
			t.Errorf("after half of the life: in use %s, on disk %s, first %s", second.Serial, l.onDisk(), first.Serial)
		}
		if told := l.told(); len(told) != 2 || told[0].Serial != first.Serial || told[1] != l.m.Current() {
			t.Errorf("told of %v", told)
		}
		// NotBefore is two minutes back: counting from it, half of the life is over before it begins, and this is a hot loop.
		l.pass(49 * time.Second)
		if n := len(l.ca.seen()); n < 6 || n > 7 {
			t.Errorf("%d requests in a minute for lives of 20 s, want one in 10 s", n)
		}
	})
}

// TestIdentityOutlivesItsToken is promise 5.
func TestIdentityOutlivesItsToken(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		l.start()
		l.pass(2 * time.Hour) // the token is dead
		if err := os.Remove(l.vm.token); err != nil {
			t.Fatal(err)
		}
		l.pass(9 * time.Hour)
		l.stop()
		// A reboot that takes two hours, while the control plane is away.
		l.down.Store(true)
		l.pass(2 * time.Hour)
		serial := l.m.Current().Serial
		l.told()
		l.start()
		within(t, time.Second, l.m.Ready(), "ready without a control plane")
		if got, told := l.m.Current(), l.told(); got.Serial != serial || len(told) != 1 || told[0] != got {
			t.Errorf("in use %v, told %v; want %s from disk", got, told, serial)
		}
		// Renewal was due; the control plane comes back.
		l.down.Store(false)
		l.pass(3 * time.Minute)
		l.mustBe(Valid)
		calls := l.ca.seen()
		last := calls[len(calls)-1]
		if last.credential != "certificate" || last.code != codes.OK || calls[0].credential != "token" {
			t.Errorf("renewed by %q (%v), first by %q; want certificate and token", last.credential, last.code, calls[0].credential)
		}
		if l.m.Current().Serial == serial || l.onDisk() != l.m.Current().Serial {
			t.Error("the renewed certificate is not in use or not on disk")
		}
		if _, err := l.m.Token(); !errors.Is(err, ErrNoToken) {
			t.Errorf("Token: %v, want ErrNoToken", err)
		}
		if s := l.m.State(); s.Credential != "certificate" || s.Token.Present || s.LastError != "" {
			t.Errorf("state %+v", s)
		}
	})
}

func TestACertificateRunsOutAndANewTokenBringsItBackAtOnce(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		l.start()
		old := l.m.Current()
		l.down.Store(true)
		for _, step := range []struct {
			hour   float64
			phase  Phase
			health Health
		}{{11, Valid, Fine}, {12.1, Renewing, Fine}, {17, Renewing, Fine}, {18.1, Expiring, Warning}, {21.7, Expiring, Degraded}, {23.9, Expiring, Degraded}, {24.1, Expired, Degraded}} {
			l.pass(time.Until(old.ReceivedAt.Add(time.Duration(step.hour * float64(time.Hour)))))
			l.mustBe(step.phase)
			if s := l.m.State(); s.Health != step.health || step.phase != Valid && !strings.Contains(s.LastError, "cannot reach istiod's CA") {
				t.Errorf("hour %v: health %s, last error %q; want %s", step.hour, s.Health, s.LastError, step.health)
			}
			// The certificate in hand is used to its end, and not shown after it.
			shown, err := l.m.ClientTLS().GetClientCertificate(nil)
			if err != nil || (len(shown.Certificate) > 0) != (step.phase != Expired) {
				t.Errorf("hour %v: a handshake shows %d certificates (%v)", step.hour, len(shown.Certificate), err)
			}
		}
		l.down.Store(false)
		l.pass(10 * time.Minute)
		l.mustBe(Expired)
		if s := l.m.State(); !strings.Contains(s.LastError, "token expired 23 h") || !strings.Contains(s.LastError, "kubectl create token forum-sa") {
			t.Errorf("last error %q: want what is dead and what mends it", s.LastError)
		}
		began := time.Now()
		l.putToken(time.Hour)
		l.poke()
		l.pass(wakePause) // a request may have ended a moment ago
		l.mustBe(Valid)
		if took := time.Since(began); took > time.Second {
			t.Errorf("joined %v after the token appeared", took)
		}
		if n := l.log.count("WARN", "identity phase", "to=expired"); n != 1 {
			t.Errorf("the end was logged %d times:\n%s", n, l.log)
		}
		if n := l.log.count("WARN", "certificate request failed"); n > 4 {
			t.Errorf("%d warnings in 12 hours of failure, want one for each cause", n)
		}
	})
}

func TestATokenThatComesDuringARequestIsTriedAtOnce(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		l.putToken(-time.Hour)
		l.ca.gate = func(context.Context) error { <-time.After(3 * time.Second); return nil }
		l.start()
		l.pass(time.Second)
		l.mustBe(Requesting)
		l.putToken(time.Hour)
		l.poke()
		l.pass(5100 * time.Millisecond)
		l.mustBe(Valid)
		if n := len(l.ca.seen()); n != 2 {
			t.Errorf("%d requests, want the one with the dead token and the next", n)
		}
	})
}

func TestNoTokenNeverBlocks(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		os.Remove(l.vm.token)
		l.start()
		l.mustBe(None)
		l.pass(time.Hour)
		s := l.m.State()
		want := "nothing to prove who we are with: no living certificate, and no token at " + l.vm.token
		if !strings.HasPrefix(s.LastError, want) || s.Token.Present || len(l.ca.seen()) != 0 {
			t.Errorf("last error %q, token %+v, %d requests; want %q", s.LastError, s.Token, len(l.ca.seen()), want)
		}
		if n := l.log.count("certificate request failed", "WARN"); n != 1 {
			t.Errorf("one cause has %d lines in an hour", n)
		}
	})
}

func TestSleepAndClockJumps(t *testing.T) {
	tests := []struct {
		name       string
		slept, set time.Duration
		after      Phase
		logs       []string
	}{
		{"a nap is no event", 3 * time.Second, 0, Valid, nil},
		{"a second of NTP is none either", 0, -time.Second, Valid, nil},
		{"asleep past the renewal", 13 * time.Hour, 0, Valid, []string{`machine was suspended`, `slept="13 h"`}},
		{"asleep past the end, with a token that is dead by now", 7 * 24 * time.Hour, 0, Expired, []string{`machine was suspended`, `slept="7 d"`}},
		{"the clock is set forward past the renewal", 0, 13 * time.Hour, Valid, []string{"clock was set", `direction=forward by="13 h"`}},
		{"the clock is set back by a day", 0, -24 * time.Hour, Valid, []string{"clock was set", `direction=back by="1 d"`}},
		{"asleep, and the clock was wrong when it woke", 13 * time.Hour, -time.Hour, Valid, []string{"clock was set", `direction=back by="1 h"`}},
	}
	for _, tt := range tests {
		for _, told := range []bool{true, false} {
			t.Run(tt.name+map[bool]string{true: ", and the kernel tells", false: ", and nobody tells"}[told], func(t *testing.T) {
				inLab(t, func(t *testing.T, l *lab) {
					l.ca.clock = func() time.Time { return time.Now().Add(time.Duration(l.ahead.Load())) }
					l.start()
					l.pass(10 * time.Minute)
					l.ahead.Store(int64(tt.slept + tt.set))
					l.slept.Store(int64(tt.slept))
					if tt.slept+tt.set > 0 { // while we slept istiod renewed its own
						l.ca.serve(testServer, 24*time.Hour)
					} else { // it is our clock that is wrong
						l.ca.with(func() { l.ca.clock = time.Now })
					}
					wait := longestSleep + time.Second
					if told {
						wait = wakePause
						l.clock <- struct{}{}
					}
					l.pass(wait)
					l.mustBe(tt.after)
					if n := l.log.count(tt.logs...); tt.logs != nil && n != 1 {
						t.Errorf("%d lines of %q:\n%s", n, tt.logs, l.log)
					}
					if n := l.log.count("suspended") + l.log.count("clock was set"); tt.logs == nil && n != 0 {
						t.Errorf("said:\n%s", l.log)
					}
					if tt.slept+tt.set > time.Hour && tt.after == Valid && len(l.ca.seen()) != 2 {
						t.Errorf("%d requests, want a renewal after the wake", len(l.ca.seen()))
					}
				})
			})
		}
	}
}

func TestAClockFarAheadIsSaid(t *testing.T) {
	const ahead = 2*time.Hour + 3*time.Minute
	for _, tt := range []struct {
		name string
		life time.Duration // that the CA gives, of 24 h asked for
		want string
	}{
		{"the dates are istiod's arithmetic", 24 * time.Hour, "the clock is 2 h 3 min ahead of istiod"},
		{"a CA of other habits: nothing can be told", 12 * time.Hour, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inLab(t, func(t *testing.T, l *lab) {
				l.ca.life = tt.life
				putFile(t, l.vm.token, token(time.Now().Add(10*time.Hour), nil))
				l.ahead.Store(int64(ahead))
				l.start()
				l.mustBe(Valid)
				if s := l.m.State(); s.Clock != tt.want {
					t.Errorf("clock %q, want %q", s.Clock, tt.want)
				}
				if n := l.log.count("WARN", "clock is wrong"); (n == 1) != (tt.want != "") {
					t.Errorf("said %d times", n)
				}
				l.ahead.Store(0)
				l.clock <- struct{}{}
				l.pass(time.Second)
				if s := l.m.State(); s.Clock != "" {
					t.Errorf("clock %q after it was set", s.Clock)
				}
			})
		})
	}
}

func TestAClockFarBehindIsSaidAndRenewalIsStillInTime(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		const behind = 2*time.Hour + 3*time.Minute
		l.ca.clock, l.ca.life = func() time.Time { return time.Now().Add(behind) }, time.Hour
		putFile(t, l.vm.token, token(time.Now().Add(10*time.Hour), nil))
		l.start()
		l.mustBe(Valid)
		if s := l.m.State(); s.Clock != "the clock is 2 h 3 min behind istiod" {
			t.Errorf("clock %q", s.Clock)
		}
		// By istiod's clock, which is the peers', the certificate dies in an hour: half of that is the time to renew.
		l.pass(31 * time.Minute)
		if n := len(l.ca.seen()); n != 2 {
			t.Errorf("%d requests after 31 minutes, want 2", n)
		}
		// The clock is set: nothing has expired, nothing is asked for in a hurry.
		l.ahead.Store(int64(behind))
		l.pass(longestSleep + time.Second)
		l.mustBe(Valid)
		if s := l.m.State(); s.Clock != "" {
			t.Errorf("clock %q after it was set", s.Clock)
		}
		if n := l.log.count("to=expired"); n != 0 {
			t.Errorf("the log speaks of an expired certificate:\n%s", l.log)
		}
	})
}

// TestShortLivesSurviveAFlappingCA is SECRET_TTL=20s for three minutes, the CA away for five seconds in every fifteen.
func TestShortLivesSurviveAFlappingCA(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		l.ca.life, l.cfg.TTL = 20*time.Second, 20*time.Second
		l.start()
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		serials := map[string]bool{}
		for i := range 1800 {
			<-tick.C
			l.down.Store(i%150 < 50)
			synctest.Wait()
			c := l.m.Current()
			if !c.usable(time.Now()) {
				t.Fatalf("after %d00 ms an expired certificate is in use: %v", i, c)
			}
			if got := l.onDisk(); got != c.Serial {
				t.Fatalf("after %d00 ms %s is on disk and %s in use", i, got, c.Serial)
			}
			serials[c.Serial] = true
		}
		if n, asked := len(serials), len(l.ca.seen()); n < 12 || n > 20 || asked > 25 {
			t.Errorf("%d certificates by %d requests in three minutes", n, asked)
		}
	})
}

func TestAnOverloadedCAIsLeftAlone(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		l.ca.gate = func(context.Context) error { return status.Error(codes.ResourceExhausted, "slow down") }
		l.start()
		l.pass(30 * time.Minute)
		calls := l.ca.seen()
		for i := range len(calls) - 1 {
			if gap := calls[i+1].at.Sub(calls[i].at); gap < 5*time.Second {
				t.Errorf("requests %v apart", gap)
			}
		}
		if len(calls) < 5 || len(calls) > 15 {
			t.Errorf("%d requests in half an hour", len(calls))
		}
	})
}

func TestRenew(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		l.start()
		first := l.m.Current().Serial
		if err := l.m.Renew(t.Context()); err != nil || l.m.Current().Serial == first {
			t.Errorf("Renew: %v, serial %s after %s", err, l.m.Current().Serial, first)
		}
		l.down.Store(true)
		l.pass(time.Minute)
		if err := l.m.Renew(t.Context()); err == nil || !strings.Contains(err.Error(), "connection refused") {
			t.Errorf("Renew without a CA: %v", err)
		}
		synctest.Wait()
		l.mustBe(Renewing) // it stays wanted
		before := l.m.Current().Serial
		l.down.Store(false)
		l.pass(10 * time.Second)
		l.mustBe(Valid)
		if s := l.m.State(); s.LastError != "" || s.Serial == before {
			t.Errorf("the CA is back: last error %q, serial %s after %s", s.LastError, s.Serial, before)
		}
		l.stop()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := l.m.Renew(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Renew of a manager that has stopped: %v", err)
		}
	})
	inLab(t, func(t *testing.T, l *lab) {
		l.ca.gate = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		l.start()
		got := make(chan error, 1)
		go func() { got <- l.m.Renew(context.Background()) }()
		synctest.Wait()
		l.stop()
		if err := <-got; !errors.Is(err, errStopped) {
			t.Errorf("Renew under way when the manager stops: %v", err)
		}
	})
}
