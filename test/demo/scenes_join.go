package main

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"time"

	"wingman/test/controlplane"
)

// workloadEntry waits for the machine's row in the mesh.
func (p *play) workloadEntry(ctx context.Context) (string, error) {
	e, err := p.awaitEntry(ctx, func(e controlplane.Entry) bool { return e.Name == entryName })
	if err != nil {
		return "", err
	}
	const tlsMode = "security.istio.io/tlsMode"
	switch {
	case e.Namespace != "forum-services" || e.Address != machineAddr || e.Network != "vm-network" || !e.HealthChecked:
		return "", fmt.Errorf("entry is %+v", e)
	case e.Labels[tlsMode] != "disabled":
		return "", fmt.Errorf("label %s is %q: without Envoy nobody may send this machine TLS", tlsMode, e.Labels[tlsMode])
	}
	return fmt.Sprintf("%s/%s, network %s, labels app=%s, %s=%s", e.Namespace, e.Name, e.Network, e.Labels["app"], tlsMode, e.Labels[tlsMode]), nil
}

// healthy waits for the application's first good verdict.
func (p *play) healthy(ctx context.Context) (string, error) {
	if _, err := p.awaitEntry(ctx, func(e controlplane.Entry) bool { return e.Condition != nil && e.Condition.Status == "True" }); err != nil {
		return "", err
	}
	return "GET :8080/api/healthz is well: condition Healthy=True at the control plane", nil
}

// capture waits until the kernel sends port 53 to the daemon, and shows the rules that do.
func (p *play) capture(ctx context.Context) (string, error) {
	// The rules go in after the first table; the daemon tells nobody outside when, so the wire is asked until it does.
	if _, err := p.vm.ask(ctx, userUID, int((stepLimit - time.Second).Milliseconds()), meshName); err != nil {
		return "", err
	}
	rules, err := p.vm.rules(ctx)
	if err != nil {
		return "", err
	}
	var shown []string
	for _, r := range rules.redirects() {
		shown = append(shown, "-t "+r.table+" "+r.text)
	}
	if len(shown) < 2 {
		return "", fmt.Errorf("want rules that redirect UDP and TCP port 53 to %s, the kernel has:\n%s", dnsPort, rules)
	}
	for _, r := range rules.rules {
		if strings.Contains(r.text, "15001") || strings.Contains(r.text, "15006") {
			return "", fmt.Errorf("a rule sends traffic to an Envoy that is not there: %s", r.text)
		}
	}
	return fmt.Sprintf("%d rules in the kernel, these take DNS:\n%s", len(rules.rules), strings.Join(shown, "\n")), nil
}

// meshName resolves a service of the mesh by port 53, and proves which way the query went: the kernel's counter says that
// it was redirected, and the resolver it was sent to never saw it. The daemon's own user is let through to that resolver.
func (p *play) meshName(ctx context.Context) (string, error) {
	before, err := p.vm.rules(ctx)
	if err != nil {
		return "", err
	}
	seen := p.world.resolver.saw(meshName)
	answers, err := p.vm.ask(ctx, userUID, 0, meshName)
	if err != nil {
		return "", err
	}
	if err := wantAddrs(answers[0], meshAddr); err != nil {
		return "", err
	}
	after, err := p.vm.rules(ctx)
	if err != nil {
		return "", err
	}
	taken := after.redirected() - before.redirected()
	if taken < 1 {
		return "", fmt.Errorf("no query was counted by the redirect: %d before, %d after", before.redirected(), after.redirected())
	}
	if n := p.world.resolver.saw(meshName) - seen; n != 0 {
		return "", fmt.Errorf("the resolver saw the query %d times, want it to end on this machine", n)
	}
	exempt, err := p.vm.ask(ctx, proxyUID, 0, meshName)
	if err != nil {
		return "", err
	}
	if exempt[0].Error == "" || p.world.resolver.saw(meshName) == seen {
		return "", fmt.Errorf("a query of the daemon's own user did not reach %s: %+v", resolverAddr, exempt[0])
	}
	return fmt.Sprintf("%s is %s, %.1f ms: sent to %s:53 by uid %d, %d packets redirected to %s by the kernel,\nnone seen by %s; uid %d is let through to it",
		meshName, meshAddr, answers[0].Millis, resolverAddr, userUID, taken, dnsPort, resolverAddr, proxyUID), nil
}

// externalName resolves what the mesh does not know.
func (p *play) externalName(ctx context.Context) (string, error) {
	seen := p.world.resolver.saw(externalName)
	before, err := p.vm.rules(ctx)
	if err != nil {
		return "", err
	}
	answers, err := p.vm.ask(ctx, userUID, 0, externalName)
	if err != nil {
		return "", err
	}
	if err := wantAddrs(answers[0], externalAddr); err != nil {
		return "", err
	}
	after, err := p.vm.rules(ctx)
	if err != nil {
		return "", err
	}
	if p.world.resolver.saw(externalName) == seen {
		return "", fmt.Errorf("%s was answered without the upstream resolver", externalName)
	}
	if after.redirected() == before.redirected() {
		return "", fmt.Errorf("the query for %s did not go through the agent", externalName)
	}
	return fmt.Sprintf("%s is %s, %.1f ms: through the agent from the upstream resolver", externalName, externalAddr, answers[0].Millis), nil
}

// appStopped ends the application and waits for the verdict.
func (p *play) appStopped(ctx context.Context) (string, error) {
	begun := time.Now()
	if err := p.app.end(ctx, syscall.SIGTERM); err != nil {
		return "", err
	}
	e, err := p.awaitEntry(ctx, func(e controlplane.Entry) bool { return e.Condition != nil && e.Condition.Status == "False" })
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("Healthy=False at the control plane after %.1f s: %s", time.Since(begun).Seconds(), e.Condition.Message), nil
}

// appStarted brings it back.
func (p *play) appStarted(ctx context.Context) (string, error) {
	begun := time.Now()
	var err error
	if p.app, err = p.vm.start(userUID, nil, p.log, "demo", roleApp, ":8080"); err != nil {
		return "", err
	}
	if _, err := p.awaitEntry(ctx, func(e controlplane.Entry) bool { return e.Condition != nil && e.Condition.Status == "True" }); err != nil {
		return "", err
	}
	return fmt.Sprintf("Healthy=True again after %.1f s", time.Since(begun).Seconds()), nil
}
