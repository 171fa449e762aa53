package faults

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"wingman/test/mesh/kube"
	"wingman/test/mesh/testbed"
)

// A crash of Envoy, on the client's side and on the server's: the supervisor starts it again, the agent feeds it, the entry stays healthy.
func envoyCrashes(t *testing.T, p *pair) {
	const kills = 3 // of each: the supervisor waits twice as long each time
	unhealthy := p.bed.WatchEntries(t, "istioinaction", func(all []kube.Object) bool {
		if len(all) != 1 {
			return true
		}
		status, _ := all[0].Condition("Healthy")
		return status != "True"
	})
	for _, side := range []struct {
		name  string
		envoy *testbed.Envoy
	}{{"client", p.clientEnvoy}, {"server", p.serverEnvoy}} {
		var gaps []time.Duration
		for n := range kills {
			pid := side.envoy.PID(t)
			load := p.client.Load(t, service, "/crash")
			afterLoad(t, load, testbed.Rate/4)
			killed := time.Now()
			side.envoy.Signal(t, pid, syscall.SIGKILL)
			testbed.Await(t, "another Envoy at the "+side.name, func() error {
				if side.envoy.PID(t) == pid {
					return errors.New("it is the one that was killed")
				}
				return nil
			})
			gap := awaitGap(t, load, killed)
			o := load.Stop()
			t.Logf("kill -9 no. %d of Envoy at the %s: traffic back after %s; %v", n+1, side.name, seconds(gap), o)
			gaps = append(gaps, gap)
		}
		withinASecond(t, "traffic is back after a crash at the "+side.name, gaps)
	}
	if seen, was := unhealthy(); was {
		t.Errorf("the server's entry was not healthy all the time: %v", seen)
	}
	p.wellAgain(t)
}

// awaitGap waits until traffic is there for a while, with the Envoy that serves now, and returns how long it was away after t0. That is zero
// when no request failed: those in flight at the server were tried again by the client's Envoy, those that came later waited.
func awaitGap(t *testing.T, load *testbed.Load, t0 time.Time) (gap time.Duration) {
	t.Helper()
	began := time.Now()
	testbed.Await(t, "traffic is back", func() error {
		var ok bool
		if gap, ok = load.Outcome().Gap(t0); !ok {
			return errors.New("it is not")
		}
		if time.Since(t0.Add(gap)) < 300*time.Millisecond || time.Since(began) < 300*time.Millisecond {
			return errors.New("it may have been chance")
		}
		return nil
	})
	return gap
}

// What the agent does for the machine does not wait for Envoy: names and health go on while Envoy hangs, and while there is none.
func envoyHangs(t *testing.T, p *pair) {
	pid := p.serverEnvoy.PID(t)
	p.serverEnvoy.Signal(t, pid, syscall.SIGSTOP)
	p.resolvesNew(t, "while-it-hangs")
	p.serverApp.Kill()
	p.server.Healthy(t, "False")
	p.serverApp.Start(t)
	p.server.Healthy(t, "True")
	p.serverEnvoy.Signal(t, pid, syscall.SIGCONT)
	p.wellAgain(t)
	if now := p.serverEnvoy.PID(t); now != pid {
		t.Errorf("Envoy was %d and is %d", pid, now)
	}

	p.serverEnvoy.Stop(t)
	p.resolvesNew(t, "while-it-is-dead")
	p.server.Healthy(t, "False") // the mesh was told that Envoy takes the traffic
	status, said := p.server.Entry(t, "it says why", nil).Condition("Healthy")
	if status != "False" || !strings.Contains(said, "Envoy") {
		t.Errorf("the entry's condition is %s: %q, want one that names Envoy", status, said)
	}
	p.serverEnvoy.Start(t)
	p.wellAgain(t)
}

// resolvesNew makes a Service and waits until both machines resolve it.
func (p *pair) resolvesNew(t *testing.T, name string) {
	t.Helper()
	addr := p.bed.Service(t, "istioinaction", name)
	for _, vm := range []*testbed.VM{p.client, p.server} {
		took := testbed.Await(t, vm.Name()+" resolves "+name, func() error { return vm.Resolves(t.Context(), name+".istioinaction", addr) })
		t.Logf("%s: %s resolves the new Service after %s", name, vm.Name(), seconds(took))
	}
}

// Filters that Envoy refuses: a cluster that is wrong in itself, and a second listener on the port of another.
const refused = `
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: refused, namespace: istioinaction}
spec:
  configPatches:
  - applyTo: CLUSTER
    patch:
      operation: ADD
      value:
        name: wrong-in-itself
        type: STATIC
        connect_timeout: 1s
        lb_policy: RING_HASH
        ring_hash_lb_config: {minimum_ring_size: 100, maximum_ring_size: 10}
  - applyTo: LISTENER
    patch:
      operation: ADD
      value:
        name: same-address-as-another
        address: {socket_address: {address: 0.0.0.0, port_value: 15006}}
        filter_chains: [{filters: [{name: envoy.filters.network.echo, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo}}]}]
`

// A push that Envoy refuses changes nothing for traffic. Everybody is told: istiod with Envoy's reason, the operator by status and its exit code.
func pushIsRefused(t *testing.T, p *pair) {
	load := p.client.Load(t, service, "/refused")
	p.bed.Apply(t, refused)
	var said string
	testbed.Await(t, "status says that Envoy refuses both", func() error {
		out, err := p.server.Run(t.Context(), "/usr/local/bin/wingman", "status")
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 3 {
			return fmt.Errorf("wingman status: %v, want exit status 3", err)
		}
		said = out
		for _, want := range []string{"Envoy refused istiod's last push of", "wrong-in-itself", "same-address-as-another"} {
			if !strings.Contains(out, want) {
				return fmt.Errorf("no %q in\n%s", want, out)
			}
		}
		return nil
	})
	for line := range strings.Lines(said) {
		if strings.HasPrefix(line, "DEGRADED") {
			t.Logf("wingman status: %s", line)
		}
	}
	testbed.Await(t, "istiod has both reasons", func() error {
		log, err := os.ReadFile(p.bed.Mesh.IstiodLog())
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"ADS:CDS: ACK ERROR", "ADS:LDS: ACK ERROR"} {
			if !strings.Contains(string(log), want) {
				return fmt.Errorf("no %q in istiod's log", want)
			}
		}
		return nil
	})
	p.resolvesNew(t, "while-it-refuses")
	afterLoad(t, load, testbed.Rate)
	if err := p.bed.Mesh.Kube.Delete(t.Context(), kube.Ref{APIVersion: "networking.istio.io/v1alpha3", Kind: "EnvoyFilter", Namespace: "istioinaction", Name: "refused"}); err != nil {
		t.Fatal(err)
	}
	p.wellAgain(t) // which wants a status that is not degraded
	o := load.Stop()
	t.Logf("pushes refused and taken again: %v", o)
	if o.Failed() > 0 {
		t.Error("requests failed")
	}
}
