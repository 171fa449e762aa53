package bootstrap

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestProbesOfOurOwnKind(t *testing.T) {
	base := Probe{Timeout: time.Second, Period: 10 * time.Second, SuccessThreshold: 1, FailureThreshold: 1}
	with := func(change func(*Probe)) *Probe { p := base; change(&p); return &p }
	tests := []struct {
		name, yaml, text string
		want             *Probe
	}{
		{"a unit", "{systemdUnit: myapp.service}", "systemdUnit myapp.service", with(func(p *Probe) { p.Unit = "myapp.service" })},
		{"several", "{all: [{systemdUnit: myapp@a.service}, {tcpSocket: {port: 80}, periodSeconds: 3}], damping: {changes: 3, windowSeconds: 60, holdSeconds: 30}}",
			"all of systemdUnit myapp@a.service, tcpSocket :80", with(func(p *Probe) {
				p.All = []Probe{*with(func(p *Probe) { p.Unit = "myapp@a.service" }), *with(func(p *Probe) { p.TCP = &TCPSocket{Port: 80}; p.Period = 3 * time.Second })}
				p.Damping = Damping{Changes: 3, Window: time.Minute, Hold: 30 * time.Second}
			})},
		{"a command with a limit", "{exec: {command: [check], memoryBytes: 67108864}}", "exec check", with(func(p *Probe) {
			p.Exec = &Exec{Command: []string{"check"}, Memory: 64 << 20}
		})},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, problems := newMachine(t, map[string]string{wingmanYAML: "probe: " + tt.yaml + "\n"}).load()
			if c == nil {
				t.Fatal(problems)
			}
			if diff := cmp.Diff(tt.want, c.Probe); diff != "" {
				t.Errorf("probe (-want +got):\n%s", diff)
			}
			if got := c.Probe.String(); got != tt.text {
				t.Errorf("it is shown as %q, want %q", got, tt.text)
			}
			// istiod must be able to decode the node, and find a probe there.
			in := c.Node(forumVM).Metadata["PROXY_CONFIG"].(map[string]any)["readinessProbe"]
			if diff := cmp.Diff(any(map[string]any{}), in); diff != "" {
				t.Errorf("istiod is told (-want +got):\n%s", diff)
			}
		})
	}
}
