package faults

import (
	"context"
	"errors"
	"net"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"wingman/test/mesh"
	"wingman/test/mesh/testbed"
)

// istiod restarts under load: no request notices, and once its port is open again the streams are back within a second.
func istiodRestarts(t *testing.T, p *pair) {
	var healed []time.Duration
	for _, way := range []struct {
		name string
		end  func() error
	}{
		{"killed", func() error { p.bed.Mesh.KillIstiod(); return nil }},
		{"stopped", func() error { return p.bed.Mesh.StopIstiod(t.Context()) }},
	} {
		streams := map[*testbed.VM]int{p.client: 0, p.server: 0}
		for vm := range streams {
			streams[vm] = vm.AwaitStatus(t, "a stream", joined).XDS.Streams
		}
		load := p.client.Load(t, service, "/istiod-"+way.name)
		if err := way.end(); err != nil {
			t.Fatal(err)
		}
		afterLoad(t, load, 5*testbed.Rate) // long enough for waits between attempts to be at their longest
		open := portOpens(t)
		started := make(chan error, 1)
		go func() { started <- p.bed.Mesh.StartIstiod(t.Context()) }()
		opened := <-open
		for vm, before := range streams {
			vm.AwaitStatus(t, "the stream is back, and Envoy's", func(s testbed.Status) error {
				if s.XDS.Streams == before {
					return errors.New("still the stream of before")
				}
				return joined(s)
			})
			healed = append(healed, time.Since(opened))
			t.Logf("istiod %s: stream of %s and its Envoy back %s after the port was open", way.name, vm.Name(), seconds(healed[len(healed)-1]))
		}
		if err := <-started; err != nil {
			t.Fatal(err)
		}
		p.resolvesNew(t, "after-istiod-was-"+way.name)
		p.wellAgain(t)
		o := load.Stop()
		t.Logf("istiod %s and started again: %v", way.name, o)
		if o.Failed() > 0 {
			t.Error("requests failed")
		}
	}
	withinASecond(t, "streams are back after istiod's port is open", healed)
	p.nothingStale(t)
}

// portOpens tells when istiod's port accepts connections for the first time.
func portOpens(t *testing.T) <-chan time.Time {
	open := make(chan time.Time, 1)
	ctx, cancel := context.WithTimeout(t.Context(), testbed.StepTimeout)
	go func() {
		defer cancel()
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		var d net.Dialer
		for {
			c, err := d.DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", "15012"))
			now := time.Now()
			if err == nil {
				c.Close()
			}
			if err == nil || ctx.Err() != nil {
				open <- now
				return
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
	}()
	return open
}

// opening is what istiod logs of the first request for a type on a stream: its own id for the stream, and the nonce, which only an ACK or NACK has.
var opening = regexp.MustCompile(`ADS:\w+: (?:INIT|RECONNECT) (\S+) (\S*)`)

// nothingStale fails when istiod ever got an ACK or a NACK that belonged to another stream.
func (p *pair) nothingStale(t *testing.T) {
	t.Helper()
	log, err := os.ReadFile(p.bed.Mesh.IstiodLog())
	if err != nil {
		t.Fatal(err)
	}
	first := 0
	for line := range strings.Lines(string(log)) {
		if m := opening.FindStringSubmatch(line); m != nil {
			first++
			if strings.Contains(m[2], "/") {
				t.Errorf("the stream %s began with an answer to another one: %s", m[1], line)
			}
		}
		for _, bad := range []string{"panic", "nil pointer"} {
			if strings.Contains(line, bad) {
				t.Errorf("istiod says: %s", line)
			}
		}
	}
	t.Logf("%d first requests for a type reached istiod over all streams, none with the nonce of another stream", first)
	if first == 0 {
		t.Error("istiod's log has none: this test looks at the wrong lines")
	}
}

// istiodLog has istiod log every request and push.
var istiodLog = mesh.Options{IstiodArgs: []string{"--log_output_level=default:info,ads:debug,delta:debug"}}
