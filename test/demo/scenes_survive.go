package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"syscall"
	"time"

	"wingman/test/controlplane"
)

// bothNames resolves a mesh name and an external one by port 53, going on for millis if that is not zero.
func (p *play) bothNames(ctx context.Context, millis int) ([]answer, error) {
	answers, err := p.vm.ask(ctx, userUID, millis, meshName, externalName)
	if err != nil {
		return nil, err
	}
	return answers, errors.Join(wantAddrs(answers[0], meshAddr), wantAddrs(answers[1], externalAddr))
}

// planeKilled takes the control plane away without a goodbye.
func (p *play) planeKilled(ctx context.Context) (string, error) {
	p.world.plane.Stop()
	if conn, err := net.Dial("tcp", p.world.plane.Addr()); err == nil {
		conn.Close()
		return "", errors.New("the control plane still accepts connections")
	}
	answers, err := p.bothNames(ctx, 0)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("port closed, connections reset; both names still resolve, %.1f and %.1f ms", answers[0].Millis, answers[1].Millis), nil
}

// agentKilled ends the daemon as an out-of-memory killer does.
func (p *play) agentKilled(ctx context.Context) (string, error) {
	err := p.daemon.end(ctx, syscall.SIGKILL)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		return "", fmt.Errorf("the daemon ended with %v, want it killed", err)
	}
	rules, err := p.vm.rules(ctx)
	if err != nil {
		return "", err
	}
	if len(rules.redirects()) == 0 {
		return "", errors.New("the rules went with the daemon; a restart would leave a gap")
	}
	return fmt.Sprintf("process %d is dead, its rules are still there", p.daemon.cmd.Process.Pid), nil
}

// agentRestarted starts it again while there is no control plane, and measures until the first answers. Somebody asks all
// the while, from before the start on, so that the time is the daemon's and not the asker's.
func (p *play) agentRestarted(ctx context.Context) (string, error) {
	var (
		answers  []answer
		asked    = make(chan error, 1)
		err      error
		patience = stepLimit - time.Second
	)
	go func() {
		var err error
		answers, err = p.bothNames(ctx, int(patience.Milliseconds()))
		asked <- err
	}()
	begun := time.Now()
	if p.daemon, err = p.vm.startDaemon(p.log); err != nil {
		return "", err
	}
	select {
	case err = <-asked:
	case <-p.daemon.ended:
		err = fmt.Errorf("the daemon ended: %v", p.daemon.err)
	}
	if err != nil {
		return "", err
	}
	rules, err := p.vm.rules(ctx)
	if err != nil {
		return "", err
	}
	if len(rules.redirects()) == 0 {
		return "", errors.New("the answers did not come through the redirect: the rules are gone")
	}
	after := func(a answer) int64 { return a.At.Sub(begun).Milliseconds() }
	return fmt.Sprintf("control plane still down: first answer %d ms after the start (%s, from the table on disk),\n%s after %d ms",
		after(answers[0]), meshName, externalName, after(answers[1])), nil
}

// tokenExpired waits until the token is worth nothing, and checks that with the control plane's own eyes later.
func (p *play) tokenExpired(ctx context.Context) (string, error) {
	timer := time.NewTimer(time.Until(p.expires))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	leaf, err := p.certificateOnDisk()
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("since %s; the certificate is good until %s", p.expires.Local().Format(clock), leaf.NotAfter.Local().Format(clock)), nil
}

// planeBack starts the control plane again and waits until the agent is back on it, by its certificate.
func (p *play) planeBack(ctx context.Context) (string, error) {
	before := len(p.world.plane.Events())
	begun := time.Now()
	if err := p.world.plane.Start(); err != nil {
		return "", err
	}
	e, err := p.awaitEvent(ctx, before, func(e controlplane.Event) bool { return e.Kind == controlplane.StreamOpened })
	if err != nil {
		return "", err
	}
	if e.By != controlplane.ByCertificate {
		return "", fmt.Errorf("the stream was opened by %s, want the certificate", e.By)
	}
	if _, err := p.awaitEvent(ctx, before, func(e controlplane.Event) bool { return e.Kind == controlplane.HealthReported && e.Healthy }); err != nil {
		return "", fmt.Errorf("no health report on the new stream: %w", err)
	}
	return fmt.Sprintf("connected after %.1f s by the certificate, health reported again", time.Since(begun).Seconds()), nil
}

// renewed waits until another certificate is on disk, which could only be had with the one before.
func (p *play) renewed(ctx context.Context) (string, error) {
	ctx, cancel := p.whileDaemon(ctx)
	defer cancel()
	for {
		leaf, err := p.certificateOnDisk()
		if err == nil && leaf.SerialNumber.Text(16) != p.serial {
			e, err := p.awaitEvent(ctx, 0, func(e controlplane.Event) bool {
				return e.Kind == controlplane.CertificateIssued && e.Serial == leaf.SerialNumber.Text(16)
			})
			switch {
			case err != nil:
				return "", err
			case e.By != controlplane.ByCertificate:
				return "", fmt.Errorf("renewed by %s, want the certificate", e.By)
			case e.At.Before(p.expires):
				return "", errors.New("renewed before the token expired: this shows nothing")
			}
			return fmt.Sprintf("by the certificate, %.1f s after the token expired; good until %s",
				e.At.Sub(p.expires).Seconds(), leaf.NotAfter.Local().Format(clock)), nil
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return "", fmt.Errorf("no new certificate in /etc/certs: %w", errors.Join(err, context.Cause(ctx)))
		}
	}
}

// stopped ends the daemon as `systemctl stop` does.
func (p *play) stopped(ctx context.Context) (string, error) {
	before := len(p.world.plane.Events())
	begun := time.Now()
	if err := p.daemon.end(ctx, syscall.SIGTERM); err != nil {
		return "", fmt.Errorf("the daemon ended with %w, want exit status 0", err)
	}
	took := time.Since(begun)
	closed, err := p.world.plane.WaitEventAfter(ctx, before, func(e controlplane.Event) bool { return e.Kind == controlplane.StreamClosed })
	if err != nil {
		return "", err
	}
	for _, e := range p.world.plane.Events()[before:] {
		if e.Kind == controlplane.HealthReported && !e.Healthy && e.At.Before(closed.At) {
			return fmt.Sprintf("Healthy=False first, then the stream closed; exit status 0 after %d ms", took.Milliseconds()), nil
		}
	}
	return "", errors.New("the stream was closed without a report of Healthy=False before")
}

// entryGone waits out the grace period.
func (p *play) entryGone(ctx context.Context) (string, error) {
	if err := p.world.plane.WaitNoEntry(ctx, "forum-services", entryName); err != nil {
		return "", err
	}
	return fmt.Sprintf("after the control plane's grace period of %s", grace), nil
}

// rulesGone compares the machine with what it was.
func (p *play) rulesGone(ctx context.Context) (string, error) {
	rules, err := p.vm.rules(ctx)
	if err != nil {
		return "", err
	}
	if !rules.empty() {
		return "", fmt.Errorf("the kernel still has:\n%s", rules)
	}
	answers, err := p.vm.ask(ctx, userUID, 0, externalName)
	if err != nil {
		return "", err
	}
	if err := wantAddrs(answers[0], externalAddr); err != nil {
		return "", err
	}
	return fmt.Sprintf("no rule and no chain is left; %s is %s, straight from %s", externalName, externalAddr, resolverAddr), nil
}
