package agent

import (
	"fmt"
	"testing"
	"time"

	"wingman/agent/envoy"
	"wingman/agent/envoy/proxy"
)

func TestPresence(t *testing.T) {
	var (
		noProgram    = sighting{program: fmt.Errorf("%w: no program", envoy.ErrNoProgram)}
		disabled     = sighting{program: envoy.ErrDisabled}
		noSupervisor = sighting{supervisor: proxy.ErrNoProxy}
		starting     = sighting{proxy: proxy.State{Phase: proxy.PhaseStarting}}
		unconfigured = sighting{proxy: proxy.State{Phase: proxy.PhaseLive}}
		live         = sighting{proxy: proxy.State{Phase: proxy.PhaseLive}, configured: true}
		backoff      = sighting{proxy: proxy.State{Phase: proxy.PhaseBackoff, Cause: "killed by SIGSEGV"}}
		hanging      = sighting{proxy: proxy.State{Phase: proxy.PhaseHanging}}
		disabledLive = sighting{program: envoy.ErrDisabled, proxy: proxy.State{Phase: proxy.PhaseDraining}}
	)
	type look struct {
		after time.Duration
		saw   sighting
	}
	second := time.Second
	tests := []struct {
		name                    string
		served                  bool // in an earlier run
		first                   sighting
		then                    []look
		announced, proven, live bool
		unfit                   string
	}{
		{"without a program nothing is announced", false, noProgram, nil, false, false, false, ""},
		{"a program is announced before it runs, and nobody is sent to it yet", false, starting, nil,
			true, false, false, "Envoy does not serve: it is starting"},
		{"live without a configuration is not serving", false, unconfigured, nil,
			true, false, false, "Envoy does not serve: it waits for its first configuration"},
		{"live with one is", false, live, nil, true, true, true, ""},
		{"a program that nobody starts is announced no longer than goneAfter", false, noSupervisor, []look{{goneAfter - second, noSupervisor}},
			true, false, false, "Envoy does not serve: no wingman proxy runs: start wingman-proxy.service, or wingman run --with-proxy"},
		{"then it is gone", false, noSupervisor, []look{{goneAfter, noSupervisor}}, false, false, false, ""},
		{"an Envoy that arrives is announced once it serves", false, noProgram, []look{{second, starting}}, false, false, false, ""},
		{"and then it is", false, noProgram, []look{{second, starting}, {second, live}}, true, true, true, ""},
		{"a crash is no news for a moment", false, live, []look{{second, backoff}}, true, true, false, ""},
		{"a crash that lasts makes the machine unhealthy and leaves everything else", false, live, []look{{second, backoff}, {crashGrace, backoff}},
			true, true, false, "Envoy does not serve: killed by SIGSEGV"},
		{"one that hangs had its time already", false, live, []look{{second, hanging}}, true, true, false, "Envoy does not serve: it is hanging"},
		{"and gets none for its restart", false, live, []look{{second, hanging}, {second, backoff}}, true, true, false, "Envoy does not serve: killed by SIGSEGV"},
		{"a crash after that is a crash", false, live, []look{{second, hanging}, {second, live}, {second, backoff}}, true, true, false, ""},
		{"a crash loop never counts as gone", false, live, []look{{second, backoff}, {time.Hour, backoff}}, true, true, false, "Envoy does not serve: killed by SIGSEGV"},
		{"a supervisor that restarts is no news", false, live, []look{{second, noSupervisor}, {second, live}}, true, true, true, ""},
		{"missing is counted in a row", false, live, []look{{second, noSupervisor}, {goneAfter - second, starting}, {second, noSupervisor}},
			true, true, false, "Envoy does not serve: no wingman proxy runs: start wingman-proxy.service, or wingman run --with-proxy"},
		{"a package that is removed is gone", false, live, []look{{second, noProgram}, {goneAfter, noProgram}}, false, false, false, ""},
		{"switched off is gone at once", false, live, []look{{second, disabled}}, false, false, false, ""},
		{"switched off while it drains too", false, live, []look{{second, disabledLive}}, false, false, false, ""},
		{"what served before the agent's restart is taken for served", true, starting, nil, true, true, false, ""},
		{"but not for long", true, starting, []look{{crashGrace, starting}}, true, true, false, "Envoy does not serve: it is starting"},
		{"and not when its program has gone meanwhile", true, noProgram, nil, false, false, false, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			now := time.Unix(1000, 0)
			p := firstPresence(tt.first, tt.served, now)
			for _, l := range tt.then {
				now = now.Add(l.after)
				p = p.next(l.saw, now)
			}
			if p.announced != tt.announced || p.proven != tt.proven || p.live != tt.live {
				t.Errorf("announced %t, proven %t, live %t; want %t, %t, %t", p.announced, p.proven, p.live, tt.announced, tt.proven, tt.live)
			}
			if got := p.unfit(now); got != tt.unfit {
				t.Errorf("unfit because %q, want %q", got, tt.unfit)
			}
		})
	}
}

func TestAnEnvoyIsDownWhenItIsAwayForLongerThanARestartTakes(t *testing.T) {
	now := time.Unix(1000, 0)
	live := sighting{proxy: proxy.State{Phase: proxy.PhaseLive}, configured: true}
	away := sighting{proxy: proxy.State{Phase: proxy.PhaseBackoff}}
	p := firstPresence(away, false, now)
	if p.down(now.Add(time.Hour)) {
		t.Error("an Envoy that never served, whose traffic is not captured, is down")
	}
	p = p.next(live, now).next(away, now)
	if p.down(now.Add(openAfter - time.Millisecond)) {
		t.Error("an Envoy that is just being restarted is down")
	}
	if !p.down(now.Add(openAfter)) {
		t.Error("an Envoy that stays away is not down")
	}
	if p = p.next(live, now.Add(time.Minute)); p.down(now.Add(time.Hour)) {
		t.Error("an Envoy that is back is down")
	}
}
