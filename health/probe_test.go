package health

import (
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestBadProbesAreRefusedWithEveryProblem(t *testing.T) {
	http := func(g HTTPGet) Probe { return Probe{HTTP: &g} }
	for _, tt := range []struct {
		name  string
		probe Probe
		want  []string
	}{
		{"two at once", Probe{HTTP: &HTTPGet{Port: 80}, Exec: &Exec{Command: []string{"true"}}},
			[]string{"probe: found httpGet and exec, expected one of them (all: combines several)"}},
		{"port 0", http(HTTPGet{}), []string{"probe.httpGet.port: found 0, expected 1 to 65535"}},
		{"another scheme", http(HTTPGet{Scheme: "ftp", Port: 1}), []string{`probe.httpGet.scheme: found "ftp", expected http or https`}},
		{"a host with a port", http(HTTPGet{Host: "app:80", Port: 1}),
			[]string{`probe.httpGet.host: found "app:80", expected an address or a name, without scheme, port or brackets`}},
		{"a header that is none", http(HTTPGet{Port: 1, Headers: [][2]string{{"a b", "c"}, {"d", "e\n"}}}), []string{
			`probe.httpGet.httpHeaders: found "a b": "c", which is not an HTTP header`,
			`probe.httpGet.httpHeaders: found "d": "e\n", which is not an HTTP header`}},
		{"no command", Probe{Exec: &Exec{}}, []string{"probe.exec.command: found none, expected a program and its arguments"}},
		{"a unit without a type", Probe{Unit: "myapp"}, []string{`probe.systemdUnit: found "myapp", expected a unit name like myapp.service`}},
		{"a template", Probe{Unit: "my@.service"}, []string{`probe.systemdUnit: found "my@.service", expected a unit name like myapp.service`}},
		{"everything below zero", Probe{TCP: &TCPSocket{Port: 1}, InitialDelay: -1, Timeout: -1, Period: -1, SuccessThreshold: -1, FailureThreshold: -1}, []string{
			"probe.initialDelaySeconds: found -1ns, expected zero or more",
			"probe.timeoutSeconds: found -1ns, expected zero or more",
			"probe.periodSeconds: found -1ns, expected zero or more",
			"probe.successThreshold: found -1, expected zero or more",
			"probe.failureThreshold: found -1, expected zero or more"}},
		{"several, each named by its place", Probe{All: []Probe{{GRPC: &GRPC{}}, {}, {All: []Probe{{TCP: &TCPSocket{}}}}}}, []string{
			"probe.all[0].grpc.port: found 0, expected 1 to 65535",
			"probe.all[1]: found no probe, expected httpGet, tcpSocket, exec, grpc or systemdUnit",
			"probe.all[2].all[0].tcpSocket.port: found 0, expected 1 to 65535"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := New(Config{Probe: tt.probe, InstanceIP: netip.MustParseAddr("10.99.0.2")})
			if err == nil {
				t.Fatal("accepted")
			}
			if want := strings.Join(tt.want, "\n"); err.Error() != want {
				t.Errorf("found\n%s\nwant\n%s", err, want)
			}
		})
	}
}

func TestAProbeNeedsAHostFromSomewhere(t *testing.T) {
	probe := Probe{TCP: &TCPSocket{Port: 80}}
	for _, tt := range []struct {
		name   string
		cfg    Config
		target string // empty: refused
	}{
		{"the instance address", Config{Probe: probe, InstanceIP: netip.MustParseAddr("10.99.0.2")}, "TCP 10.99.0.2:80"},
		{"an IPv6 instance address", Config{Probe: probe, InstanceIP: netip.MustParseAddr("fd00::2")}, "TCP [fd00::2]:80"},
		{"localhost when Istio's switch says so", Config{Probe: probe, InstanceIP: netip.MustParseAddr("10.99.0.2"), LegacyLocalhost: true}, "TCP localhost:80"},
		{"its own", Config{Probe: Probe{TCP: &TCPSocket{Host: "app.example", Port: 80}}}, "TCP app.example:80"},
		{"none", Config{Probe: probe}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := New(tt.cfg)
			if tt.target == "" {
				if err == nil {
					t.Fatal("accepted")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := c.watchers[0].target(); got != tt.target {
				t.Errorf("target %q, want %q", got, tt.target)
			}
		})
	}
}

func TestDefaultsAreIstios(t *testing.T) {
	p := Probe{TCP: &TCPSocket{Port: 1}}.watcher("h", nil, nil).(*poller)
	if p.delay != 0 || p.every != 10*time.Second || p.within != time.Second || p.thresholds != (rule{1, 1}) {
		t.Errorf("delay %s, period %s, time-out %s, thresholds %+v, want 0s, 10s, 1s and 1", p.delay, p.every, p.within, p.thresholds)
	}
	set := Probe{TCP: &TCPSocket{Port: 1}, InitialDelay: 1, Period: 2, Timeout: 3, SuccessThreshold: 4, FailureThreshold: 5}
	p = set.watcher("h", nil, nil).(*poller)
	if p.delay != 1 || p.every != 2 || p.within != 3 || p.thresholds != (rule{4, 5}) {
		t.Errorf("settings did not arrive: %+v", p)
	}
}

func TestBadDampingIsRefused(t *testing.T) {
	for _, d := range []Damping{{Changes: 1, Window: 1, Hold: 1}, {Changes: 2, Hold: 1}, {Changes: 2, Window: 1}, {Hold: 1}} {
		if _, err := New(Config{Damping: d}); err == nil {
			t.Errorf("%+v: accepted", d)
		}
	}
}
