package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"wingman/test/controlplane"
)

const (
	identity  = "spiffe://cluster.local/ns/forum-services/sa/forum-sa"
	entryName = "forum-" + machineAddr + "-vm-network"
	clock     = "15:04:05"
)

// errStage means that the machine could not be made at all.
var errStage = errors.New("no machine")

// play is the stage: who takes part, and what earlier scenes left for later ones.
type play struct {
	*story
	world   *world
	vm      *machine
	log     *os.File // of the daemon
	daemon  *process
	started time.Time // of the daemon, the first time
	app     *process
	expires time.Time // of the token
	serial  string    // of the certificate on disk
}

// tell sets the stage below place, plays the scenes, and clears up.
func tell(ctx context.Context, place, wingman string, verbose bool) (err error) {
	p := &play{story: &story{out: os.Stdout, begun: time.Now()}}
	if p.vm, err = newMachine(place, wingman); err != nil {
		return fmt.Errorf("%w: %w", errStage, err)
	}
	defer p.vm.off()
	if p.log, err = os.Create(filepath.Join(place, "wingman.log")); err != nil {
		return err
	}
	defer p.log.Close()
	defer func() {
		if err != nil || verbose {
			p.showLog()
		}
	}()
	for _, scene := range []struct {
		title string
		play  func(context.Context) (string, error)
	}{
		{"a VM", p.setUp},
		{"before wingman", p.before},
		{"wingman run", p.daemonRuns},
		{"certificate", p.certificate},
		{"WorkloadEntry", p.workloadEntry},
		{"healthy", p.healthy},
		{"DNS capture", p.capture},
		{"mesh name", p.meshName},
		{"external name", p.externalName},
		{"application stopped", p.appStopped},
		{"application started", p.appStarted},
		{"control plane killed", p.planeKilled},
		{"agent killed (-9)", p.agentKilled},
		{"agent started again", p.agentRestarted},
		{"token expired", p.tokenExpired},
		{"control plane back", p.planeBack},
		{"renewed", p.renewed},
		{"stopped (SIGTERM)", p.stopped},
		{"entry gone", p.entryGone},
		{"rules gone", p.rulesGone},
	} {
		if err = p.step(ctx, scene.title, scene.play); err != nil {
			break
		}
	}
	if p.world != nil {
		err = errors.Join(err, p.world.close())
	}
	if err == nil {
		p.line("ok", "the end", fmt.Sprintf("%d things were said, and all of them are true", p.steps))
	}
	return err
}

// showLog prints the end of the daemon's log.
func (p *play) showLog() {
	const most = 60
	text, err := os.ReadFile(p.log.Name())
	if err != nil {
		return
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	fmt.Fprintf(p.out, "\nthe daemon's log, last %d lines:\n%s\n", min(most, len(lines)), strings.Join(lines[max(0, len(lines)-most):], "\n"))
}

// setUp boots machine and world, writes istioctl's files and starts the application.
func (p *play) setUp(context.Context) (string, error) {
	if err := writeFiles(p.vm.root); err != nil {
		return "", err
	}
	if err := p.vm.boot(); err != nil {
		return "", err
	}
	if err := p.vm.plug(); err != nil {
		return "", err
	}
	var err error
	if p.world, err = newWorld(); err != nil {
		return "", err
	}
	token, err := p.world.plane.MintToken(controlplane.TokenOptions{Namespace: "forum-services", ServiceAccount: "forum-sa", TTL: tokenLife})
	if err != nil {
		return "", err
	}
	p.expires = time.Now().Add(tokenLife)
	if err := writeCredentials(p.vm.root, token, p.world.plane.RootPEM()); err != nil {
		return "", err
	}
	if p.app, err = p.vm.start(userUID, nil, p.log, "demo", roleApp, ":8080"); err != nil {
		return "", err
	}
	return fmt.Sprintf("forum-vm, %s, with istioctl's five files for WorkloadGroup forum; token good for %s", machineAddr, tokenLife), nil
}

// before shows the machine without an agent: ordinary DNS, no mesh.
func (p *play) before(ctx context.Context) (string, error) {
	answers, err := p.vm.ask(ctx, userUID, 0, meshName, externalName)
	if err != nil {
		return "", err
	}
	if answers[0].Error == "" {
		return "", fmt.Errorf("%s resolves without the mesh: %v", meshName, answers[0].Addrs)
	}
	if err := wantAddrs(answers[1], externalAddr); err != nil {
		return "", err
	}
	rules, err := p.vm.rules(ctx)
	if err != nil {
		return "", err
	}
	if !rules.empty() {
		return "", fmt.Errorf("the machine has rules already:\n%s", rules)
	}
	return fmt.Sprintf("%s does not exist, %s is %s, no rules in the kernel", meshName, externalName, externalAddr), nil
}

// daemonRuns starts the daemon as its unit does.
func (p *play) daemonRuns(context.Context) (string, error) {
	p.started = time.Now()
	var err error
	if p.daemon, err = p.vm.startDaemon(p.log); err != nil {
		return "", err
	}
	return p.daemon.checkPrivileges()
}

// certificate waits for what the daemon puts on disk.
func (p *play) certificate(ctx context.Context) (string, error) {
	issued, err := p.awaitEvent(ctx, 0, func(e controlplane.Event) bool { return e.Kind == controlplane.CertificateIssued })
	if err != nil {
		return "", fmt.Errorf("no certificate was asked for: %w", err)
	}
	if issued.By != controlplane.ByToken || issued.Identity != identity {
		return "", fmt.Errorf("the certificate was issued to %s by %s, want %s by token", issued.Identity, issued.By, identity)
	}
	took := issued.At.Sub(p.started)
	// Who opens a stream holds the certificate in its hand; it was on disk before (promise 5).
	if _, err := p.awaitEvent(ctx, 0, func(e controlplane.Event) bool { return e.Kind == controlplane.StreamOpened }); err != nil {
		return "", err
	}
	leaf, err := p.certificateOnDisk()
	if err != nil {
		return "", err
	}
	if got := leaf.SerialNumber.Text(16); got != issued.Serial {
		return "", fmt.Errorf("certificate %s is on disk, %s was issued", got, issued.Serial)
	}
	p.serial = issued.Serial
	return fmt.Sprintf("%s\nuntil %s (%s), %d ms after the start, by the token", identity, leaf.NotAfter.Local().Format(clock),
		time.Until(leaf.NotAfter).Round(time.Second), took.Milliseconds()), nil
}

// certificateOnDisk reads /etc/certs as an application would, and checks it: key and chain match, the identity is
// ours, the roots vouch for it, and nobody else can read the key.
func (p *play) certificateOnDisk() (*x509.Certificate, error) {
	dir := filepath.Join(p.vm.root, "etc/certs")
	chain, key := filepath.Join(dir, "cert-chain.pem"), filepath.Join(dir, "key.pem")
	pair, err := tls.LoadX509KeyPair(chain, key)
	if err != nil {
		return nil, fmt.Errorf("/etc/certs: %w", err)
	}
	if len(pair.Leaf.URIs) != 1 || pair.Leaf.URIs[0].String() != identity {
		return nil, fmt.Errorf("/etc/certs: identity is %v, want %s", pair.Leaf.URIs, identity)
	}
	roots := x509.NewCertPool()
	text, err := os.ReadFile(filepath.Join(dir, "root-cert.pem"))
	if err != nil {
		return nil, err
	}
	roots.AppendCertsFromPEM(text)
	if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return nil, fmt.Errorf("/etc/certs: %w", err)
	}
	info, err := os.Stat(key)
	if err != nil {
		return nil, err
	}
	if owner := info.Sys().(*syscall.Stat_t).Uid; info.Mode().Perm()&^fs.FileMode(0o600) != 0 || owner != proxyUID {
		return nil, fmt.Errorf("key.pem has mode %s and owner %d, want %d alone to read it", info.Mode(), owner, proxyUID)
	}
	return pair.Leaf, nil
}

// awaitEvent is WaitEventAfter of the control plane, cut short when the daemon ends.
func (p *play) awaitEvent(ctx context.Context, after int, match func(controlplane.Event) bool) (controlplane.Event, error) {
	ctx, cancel := p.whileDaemon(ctx)
	defer cancel()
	return p.world.plane.WaitEventAfter(ctx, after, match)
}

// awaitEntry is WaitEntry of the control plane, cut short when the daemon ends.
func (p *play) awaitEntry(ctx context.Context, match func(controlplane.Entry) bool) (controlplane.Entry, error) {
	ctx, cancel := p.whileDaemon(ctx)
	defer cancel()
	return p.world.plane.WaitEntry(ctx, match)
}

// whileDaemon is ctx as long as the daemon runs.
func (p *play) whileDaemon(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-p.daemon.ended:
			cancel(fmt.Errorf("the daemon ended: %v", p.daemon.err))
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		cancel(nil)
		<-watched
	}
}
