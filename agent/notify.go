package agent

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/miekg/dns"

	"wingman/agent/memory"
)

// livenessName is asked for by the watchdog: RFC 6761 reserves .invalid, and CH class never leaves this machine.
const livenessName = "alive.wingman.invalid."

// startBustle is how long after the join the last of what only a start does has run.
const startBustle = time.Second

// announce tells systemd: READY once DNS and the admin socket work, STATUS whenever it changes, WATCHDOG while DNS answers.
// Joining shows in STATUS and delays nothing: a boot must not wait for the mesh.
func (a *Agent) announce(ctx context.Context, ready ...<-chan struct{}) error {
	for _, r := range ready {
		select {
		case <-r:
		case <-ctx.Done():
			return nil
		}
	}
	if err := a.notify.Ready(); err != nil {
		a.log.Warn("systemd was not told that this daemon is ready", "cause", err)
	}
	a.log.Info("ready", "seconds", time.Since(a.started).Seconds())
	var tick <-chan time.Time
	if every := a.notify.WatchdogInterval() / 3; every > 0 {
		t := time.NewTicker(every)
		defer t.Stop()
		tick = t.C
	}
	said := ""
	var quiet <-chan time.Time // the bustle of the join is over
	var pace memory.Pace
	for {
		if quiet == nil && a.isJoined() {
			quiet = time.After(startBustle)
		}
		if text := a.statusLine(); text != said {
			if err := a.notify.Status(text); err != nil {
				a.log.Debug("systemd was not told the status", "cause", err)
			}
			said = text
		}
		select {
		case <-ctx.Done():
			return nil
		case <-a.news:
		case <-quiet:
			quiet = time.After(memory.LookEvery)
			if !pace.Due(time.Now(), memory.Allocated()) {
				continue
			}
			if err := memory.GiveBack(); err != nil {
				a.log.Debug("memory is not given back", "cause", err)
			}
		case <-tick:
			if err := alive(ctx, listenAddrs(a.config())[0]); err != nil {
				a.log.Error("the DNS proxy does not answer; without an answer soon systemd restarts this daemon", "cause", err)
				continue
			}
			if err := a.notify.Watchdog(); err != nil {
				a.log.Debug("systemd was not told that this daemon lives", "cause", err)
			}
		}
	}
}

// alive asks the DNS proxy a question that it answers by itself. Any answer will do: that sockets, table and workers turn is the point.
func alive(ctx context.Context, server netip.AddrPort) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	q := new(dns.Msg)
	q.SetQuestion(livenessName, dns.TypeTXT)
	q.Question[0].Qclass = dns.ClassCHAOS
	var d net.Dialer
	raw, err := d.DialContext(ctx, "udp", server.String())
	if err != nil {
		return err
	}
	conn := &dns.Conn{Conn: raw}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	if err := conn.WriteMsg(q); err != nil {
		return err
	}
	_, err = conn.ReadMsg()
	return err
}

// statusLine is what `systemctl status` shows: one line, the most important first.
func (a *Agent) statusLine() string {
	r := a.report()
	line := r.Phase
	if r.Phase == phaseJoined {
		line = fmt.Sprintf("joined as %s, %d mesh names from %s", r.Instance.NodeID, r.DNS.Names, r.DNS.Source)
		if r.Health.Healthy != nil && !*r.Health.Healthy {
			line += ", workload unhealthy"
		}
	}
	if len(r.Degraded) > 0 {
		line += "; degraded: " + r.Degraded[0]
		if more := len(r.Degraded) - 1; more > 0 {
			line += fmt.Sprintf(" (and %d more, see wingman status)", more)
		}
	} else if len(r.NotReady) > 0 {
		line += ": " + r.NotReady[0]
	}
	return line
}
