package faults

import (
	"encoding/json"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"wingman/test/mesh/kube"
	"wingman/test/mesh/testbed"
)

// The agent of either machine restarts, in turns as by systemctl restart and as after a crash, while requests go between them.
func agentRestarts(t *testing.T, p *pair) {
	const restarts = 20
	load := p.client.Load(t, service, "/restarts")
	for n := range restarts {
		unit, vm := p.clientUnit, p.client
		if n%2 == 1 {
			unit, vm = p.serverUnit, p.server
		}
		signal := syscall.SIGTERM
		if n%4 >= 2 {
			signal = syscall.SIGKILL
		}
		unit.Restart(t, signal)
		vm.AwaitStatus(t, "the agent is back", joined)
		afterLoad(t, load, testbed.Rate/4)
	}
	o := load.Stop()
	t.Logf("%d restarts of an agent under %d requests/s: %v", restarts, testbed.Rate, o)
	if o.Failed() > 0 {
		t.Error("requests failed")
	}
	p.wellAgain(t)
}

// Without an agent Envoy goes on with what it has, and does not restart for an agent that is back.
func agentIsDead(t *testing.T, p *pair) {
	pids := [2]int{p.clientEnvoy.PID(t), p.serverEnvoy.PID(t)}
	load := p.client.LoadAt(t, p.serviceAddr(t), service, "/agent-dead")
	p.client.KillAgent()
	p.server.KillAgent()
	afterLoad(t, load, 3*testbed.Rate)
	p.client.StartAgent(t)
	p.server.StartAgent(t)
	p.wellAgain(t)
	o := load.Stop()
	t.Logf("no agent on either machine for %d s, then both again: %v", 3, o)
	if o.Failed() > 0 {
		t.Error("requests failed")
	}
	if now := [2]int{p.clientEnvoy.PID(t), p.serverEnvoy.PID(t)}; now != pids {
		t.Errorf("Envoys were %v and are %v: they restarted", pids, now)
	}
}

// New settings make a new node for istiod, under the Envoy that runs.
func agentReloads(t *testing.T, p *pair) {
	pid := p.serverEnvoy.PID(t)
	load := p.client.Load(t, service, "/reload")
	for _, path := range []string{"/mint", "/lemon", "/none"} {
		p.server.WriteSettings(t, fmt.Sprintf("probe: {periodSeconds: 1, httpGet: {port: 3000, path: %s}}\n", path))
		p.server.Reload(t)
		testbed.Await(t, "istiod has the new probe", func() error { return nodeHas(t, p, p.server, fmt.Sprintf("%q", path)) })
		afterLoad(t, load, testbed.Rate/4)
	}
	p.server.WriteSettings(t, "")
	p.server.Reload(t)
	p.wellAgain(t)
	o := load.Stop()
	t.Logf("4 reloads that change the probe: %v", o)
	if o.Failed() > 0 {
		t.Error("requests failed")
	}
	if now := p.serverEnvoy.PID(t); now != pid {
		t.Errorf("Envoy was %d and is %d: it restarted", pid, now)
	}
}

// A label counts only when the WorkloadEntry is made: a reload that changes one makes another entry, under the Envoy that runs.
func labelChanges(t *testing.T, p *pair) {
	vm := newcomer(t, p, "label", "10.99.8.2/24")
	vm.StartAgent(t)
	proxy := vm.StartProxy(t)
	vm.Healthy(t, "True")
	pid := proxy.PID(t)
	before := vm.Entry(t, "the entry", nil)
	vm.WriteSettings(t, "workload: {labels: {flavour: mint}}\n")
	vm.Reload(t)
	reloaded := time.Now()
	after := vm.Entry(t, "the entry with the new label", func(o kube.Object) bool { return o.Labels("spec", "labels")["flavour"] == "mint" })
	vm.Healthy(t, "True")
	t.Logf("another label: another entry after %s", seconds(time.Since(reloaded)))
	if uid(before) == uid(after) {
		t.Error("the entry is the old one")
	}
	testbed.Await(t, "istiod has the label of the stream too", func() error { return nodeHas(t, p, vm, `"flavour":"mint"`) })
	if now := proxy.PID(t); now != pid {
		t.Errorf("Envoy was %d and is %d: it restarted", pid, now)
	}
}

// nodeHas returns nil when istiod has one stream of a machine, whose node has this text in labels or metadata.
func nodeHas(t *testing.T, p *pair, vm *testbed.VM, text string) error {
	page, err := p.bed.Mesh.Debug(t.Context(), "/debug/adsz")
	if err != nil {
		return err
	}
	var dump struct {
		Clients []struct {
			ID               string `json:"connectionId"`
			Metadata, Labels json.RawMessage
		}
	}
	if err := json.Unmarshal(page, &dump); err != nil {
		t.Fatalf("read adsz: %v:\n%s", err, page)
	}
	var seen []string
	for _, c := range dump.Clients {
		if strings.HasPrefix(c.ID, vm.Proxy()+"-") {
			seen = append(seen, string(c.Labels)+string(c.Metadata))
		}
	}
	if len(seen) != 1 || !strings.Contains(seen[0], text) {
		return fmt.Errorf("no %s in %q", text, seen)
	}
	return nil
}

// Certificates that live for seconds are renewed under traffic, and every renewal reaches Envoy.
func certificatesRotate(t *testing.T, p *pair) {
	const life, rotations = 12 * time.Second, 4
	for _, vm := range []*testbed.VM{p.client, p.server} {
		vm.WriteSettings(t, fmt.Sprintf("identity: {ttl: %s}\n", life))
		vm.Reload(t)
	}
	load := p.client.Load(t, service, "/rotation")
	machines := map[*testbed.VM]*testbed.Envoy{p.client: p.clientEnvoy, p.server: p.serverEnvoy}
	seen := map[*testbed.VM]string{}
	for vm, envoy := range machines {
		seen[vm] = serialOf(t, envoy)
		if _, err := vm.Run(t.Context(), "/usr/local/bin/wingman", "cert", "renew"); err != nil { // from now on they are short
			t.Fatal(err)
		}
	}
	for range rotations {
		for vm, envoy := range machines {
			testbed.Await(t, vm.Name()+"'s Envoy has the next certificate", func() error {
				now := serialOf(t, envoy)
				if now == seen[vm] {
					return fmt.Errorf("it has %s", now)
				}
				seen[vm] = now
				return nil
			})
		}
	}
	o := load.Stop()
	t.Logf("certificates of %s, %d rotations on each machine: %v", life, rotations, o)
	if o.Failed() > 0 {
		t.Error("requests failed")
	}
	for _, vm := range []*testbed.VM{p.client, p.server} {
		vm.WriteSettings(t, "")
		vm.Reload(t)
		if _, err := vm.Run(t.Context(), "/usr/local/bin/wingman", "cert", "renew"); err != nil {
			t.Fatal(err)
		}
	}
	p.wellAgain(t)
}

// serialOf is the serial number of the certificate that Envoy presents.
func serialOf(t *testing.T, e *testbed.Envoy) string {
	t.Helper()
	var page struct {
		Certificates []struct {
			CertChain []struct {
				SerialNumber string `json:"serial_number"`
			} `json:"cert_chain"`
		}
	}
	text := e.Admin(t, "/certs")
	if err := json.Unmarshal([]byte(text), &page); err != nil {
		t.Fatalf("read /certs: %v:\n%s", err, text)
	}
	for _, c := range page.Certificates {
		if len(c.CertChain) > 0 {
			return c.CertChain[0].SerialNumber
		}
	}
	t.Fatalf("no certificate in %s", text)
	return ""
}
