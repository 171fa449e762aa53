package faults

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"wingman/test/mesh"
	"wingman/test/mesh/testbed"
)

// hosts of the world outside, in ServiceEntries of a hundred each: to istiod and its pushes they are services, a cluster each. With them a push of
// clusters has 10 MB.
const hosts = 10_000

func serviceEntries(first, last int) string {
	var b strings.Builder
	for ; first < last; first += 100 {
		var names []string
		for n := range 100 {
			names = append(names, fmt.Sprintf("service-%05d.many.example", first+n))
		}
		fmt.Fprintf(&b, `---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: many-%05d, namespace: istioinaction}
spec:
  hosts: [%s]
  ports: [{number: 80, name: http, protocol: HTTP}]
  location: MESH_EXTERNAL
  resolution: STATIC
  endpoints: [{address: 192.0.2.10}]
`, first, strings.Join(names, ", "))
	}
	return b.String()
}

// padding makes each cluster of the client's Envoy larger: all of them are 50 MB.
const padding = `
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: padding, namespace: forum-services}
spec:
  workloadSelector: {labels: {app: forum}}
  configPatches:
  - applyTo: CLUSTER
    match: {context: SIDECAR_OUTBOUND}
    patch:
      operation: MERGE
      value: {metadata: {filter_metadata: {padding: {text: %q}}}}
`

// Large pushes, and Envoys that are killed while they have taken in half of one.
func TestLargePushes(t *testing.T) {
	p := newPair(t, mesh.Options{})
	// Pushes of this size keep both processors busy: an application that answers a second late must not count as unhealthy.
	for vm, probe := range map[*testbed.VM]string{p.client: "port: 8080, path: /api/healthz", p.server: "port: 3000, path: /health"} {
		vm.WriteSettings(t, "probe: {periodSeconds: 1, timeoutSeconds: 20, httpGet: {"+probe+"}}\n")
		vm.Reload(t)
	}
	p.wellAgain(t)
	t.Run("ten kills during a push of 10 MB", func(t *testing.T) { killsDuringPush(t, p) })
	t.Run("a push of 50 MB", func(t *testing.T) { hugePush(t, p) })
}

func killsDuringPush(t *testing.T, p *pair) {
	const kills = 10
	names := p.watchNames(t)
	applied := make(chan error, 1)
	go func() { applied <- p.bed.Mesh.Kube.Apply(t.Context(), serviceEntries(0, hosts)) }()
	began := time.Now()
	for n := range kills {
		vm, envoy := p.client, p.clientEnvoy
		if n%2 == 1 {
			vm, envoy = p.server, p.serverEnvoy
		}
		p.awaitPush(t, vm)
		envoy.Kill(t)
	}
	if err := <-applied; err != nil {
		t.Fatal(err)
	}
	p.settled(t)
	t.Logf("%d kills of Envoy while istiod sent %d clusters: all warm and acknowledged %s after the first ServiceEntry; the last Envoys were sent %s and %s",
		kills, hosts, seconds(time.Since(began)), received(t, p.clientEnvoy), received(t, p.serverEnvoy))
	asked, failed := names()
	t.Logf("names were asked for %d times meanwhile, %d without the right answer", asked, len(failed))
	if len(failed) > 0 {
		t.Errorf("DNS: %v", failed[0])
	}
	if rows, want := p.bed.ProxyRows(t), []string{p.server.Proxy(), p.client.Proxy()}; !slices.Equal(rows, want) {
		t.Errorf("istioctl proxy-status has rows for %v, want %v", rows, want)
	}
	p.wholeAgain(t)
	for _, envoy := range []*testbed.Envoy{p.clientEnvoy, p.serverEnvoy} {
		after := resourcesOf(t, envoy)
		if len(after) < hosts {
			t.Errorf("%s: Envoy has %d resources, want more than %d", envoy.Name(), len(after), hosts)
		}
		envoy.Stop(t)
		envoy.Start(t)
		p.wholeAgain(t)
		sameResources(t, envoy.Name(), after, resourcesOf(t, envoy))
	}
	p.wellAgain(t)
}

// hugePush makes the client's clusters a push of 50 MB, and kills its Envoy while that is under way.
func hugePush(t *testing.T, p *pair) {
	names := p.watchNames(t)
	load := p.client.Load(t, service, "/huge")
	began := time.Now()
	p.bed.Apply(t, fmt.Sprintf(padding, strings.Repeat("x", 4<<10)))
	p.awaitPush(t, p.client)
	testbed.AwaitFor(t, 2*time.Minute, "50 MB are acknowledged", func() error { return p.bed.Acknowledged(t, p.client.Proxy(), types...) })
	o := load.Stop()
	t.Logf("50 MB: acknowledged %s after the change; agent's memory at most %s; %v", seconds(time.Since(began)), peakMemory(t, p.client), o)
	if o.Failed() > 0 {
		t.Error("requests failed")
	}

	// A restarted Envoy is sent all of it at once.
	began = time.Now()
	p.clientEnvoy.Kill(t)
	p.awaitPush(t, p.client)
	p.clientEnvoy.Kill(t)
	p.settled(t)
	t.Logf("Envoy killed, and its successor in the middle of 50 MB: all warm and acknowledged after %s; the last Envoy was sent %s; agent's memory at most %s",
		seconds(time.Since(began)), received(t, p.clientEnvoy), peakMemory(t, p.client))
	if asked, failed := names(); len(failed) > 0 {
		t.Errorf("DNS: %d of %d questions had no right answer: %v", len(failed), asked, failed[0])
	}
	padded := 0
	for _, r := range resourcesOf(t, p.clientEnvoy) {
		if strings.Contains(r, `"padding"`) {
			padded++
		}
	}
	if padded < hosts {
		t.Errorf("%d of Envoy's resources are padded, want at least %d", padded, hosts)
	}
	p.wellAgain(t)
}

// types that a machine with Envoy is sent.
var types = []string{"Cluster", "ClusterLoadAssignment", "Listener", "RouteConfiguration", "NameTable"}

// received is how much the agent has sent an Envoy since that started.
func received(t *testing.T, e *testbed.Envoy) string {
	t.Helper()
	stat := strings.TrimSpace(e.Admin(t, "/stats?filter=xds-grpc.*upstream_cx_rx_bytes_total"))
	_, value, _ := strings.Cut(stat, ": ")
	n, err := strconv.Atoi(value)
	if err != nil {
		t.Fatalf("%s: read %q: %v", e.Name(), stat, err)
	}
	return fmt.Sprintf("%.1f MB", float64(n)/1e6)
}

// awaitPush waits until istiod has sent a machine something that it has not acknowledged yet.
func (p *pair) awaitPush(t *testing.T, vm *testbed.VM) {
	t.Helper()
	testbed.Await(t, "istiod sends something to "+vm.Name(), func() error {
		err := p.bed.Acknowledged(t, vm.Proxy())
		if err == nil {
			return errors.New("all is acknowledged")
		}
		if said := err.Error(); !strings.Contains(said, `acknowledged "`) || strings.Contains(said, `sent ""`) {
			return err
		}
		return nil
	})
}

// settled waits until both Envoys serve, have nothing that still warms, and have acknowledged all that istiod sent.
func (p *pair) settled(t *testing.T) {
	t.Helper()
	for vm, envoy := range map[*testbed.VM]*testbed.Envoy{p.client: p.clientEnvoy, p.server: p.serverEnvoy} {
		testbed.AwaitFor(t, 2*time.Minute, vm.Name()+" has taken in everything", func() error {
			if err := p.bed.Acknowledged(t, vm.Proxy(), types...); err != nil {
				return err
			}
			s, err := vm.Status(t.Context())
			if err == nil {
				err = joined(s)
			}
			if err == nil && !s.Envoy.Live {
				err = fmt.Errorf("Envoy: %+v", s.Envoy)
			}
			return err
		})
		testbed.Await(t, vm.Name()+" has nothing that warms", func() error {
			stats := envoy.Admin(t, "/stats?filter=^(cluster_manager.warming_clusters|listener_manager.total_listeners_warming)$")
			if strings.TrimSpace(stats) != "cluster_manager.warming_clusters: 0\nlistener_manager.total_listeners_warming: 0" {
				return errors.New(stats)
			}
			return nil
		})
	}
}

// wholeAgain waits until both Envoys have both machines' endpoints, too: one that is away for long takes its machine's out of all of them.
func (p *pair) wholeAgain(t *testing.T) {
	t.Helper()
	p.wellAgain(t)
	for _, envoy := range []*testbed.Envoy{p.clientEnvoy, p.serverEnvoy} {
		testbed.Await(t, envoy.Name()+" has both machines' endpoints", func() error {
			page := envoy.Admin(t, "/config_dump?include_eds&resource=dynamic_endpoint_configs&name_regex=outbound.80..(forum|catalog).*")
			for _, vm := range []*testbed.VM{p.client, p.server} {
				if !strings.Contains(page, vm.IP().String()) {
					return fmt.Errorf("no %s in %s", vm.IP(), page)
				}
			}
			return nil
		})
	}
	p.settled(t)
}

// watchNames asks both machines' resolvers for a name of the mesh and one of the world until stop is called.
func (p *pair) watchNames(t *testing.T) (stop func() (asked int, failed []error)) {
	ctx, cancel := context.WithCancel(t.Context())
	want := map[string]string{service: p.serviceAddr(t), "www.example.com": testbed.World["www.example.com."].String()}
	done := make(chan struct{})
	var asked int
	var failed []error
	go func() {
		defer close(done)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			for _, vm := range []*testbed.VM{p.client, p.server} {
				for name, addr := range want {
					asked++
					if err := vm.Resolves(t.Context(), name, addr); err != nil {
						failed = append(failed, err)
					}
				}
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
	}()
	return func() (int, []error) {
		cancel()
		<-done
		return asked, failed
	}
}

// resourcesOf are the clusters, listeners and routes of istiod that an Envoy has, by kind and name, without times and versions.
func resourcesOf(t *testing.T, e *testbed.Envoy) map[string]string {
	t.Helper()
	var dump struct {
		Configs []map[string]any
	}
	if err := json.Unmarshal([]byte(e.Admin(t, "/config_dump?include_eds")), &dump); err != nil {
		t.Fatalf("read %s's config dump: %v", e.Name(), err)
	}
	resources := map[string]string{}
	for _, part := range dump.Configs {
		kind, _ := part["@type"].(string)
		kind = kind[strings.LastIndexByte(kind, '.')+1:]
		for list, v := range part {
			items, ok := v.([]any)
			if !ok || !strings.HasPrefix(list, "dynamic_") || kind == "SecretsConfigDump" {
				continue
			}
			for _, item := range items {
				item := item.(map[string]any)
				strip(item)
				b, err := json.Marshal(item)
				if err != nil {
					t.Fatal(err)
				}
				resources[kind+" "+nameOf(item)] = string(b)
			}
		}
	}
	return resources
}

// nameOf finds the name of a resource in an entry of a config dump.
func nameOf(item map[string]any) string {
	for _, key := range []string{"name", "cluster_name"} {
		if name, ok := item[key].(string); ok {
			return name
		}
	}
	for _, key := range slices.Sorted(maps.Keys(item)) {
		if inner, ok := item[key].(map[string]any); ok {
			return nameOf(inner)
		}
	}
	return ""
}

// strip takes times and versions out of an entry of a config dump.
func strip(item map[string]any) {
	for key, v := range item {
		switch inner, ok := v.(map[string]any); {
		case key == "last_updated" || key == "version_info":
			delete(item, key)
		case ok:
			strip(inner)
		}
	}
}

// sameResources fails unless an Envoy has what a cold start gave it.
func sameResources(t *testing.T, name string, got, cold map[string]string) {
	t.Helper()
	kinds := map[string]int{}
	for r, want := range cold {
		kinds[strings.Fields(r)[0]]++
		if got[r] != want {
			t.Errorf("%s: %s is\n%.2000s\nafter a cold start it is\n%.2000s", name, r, got[r], want)
			return
		}
	}
	for r := range got {
		if _, ok := cold[r]; !ok {
			t.Errorf("%s: %s is not there after a cold start", name, r)
		}
	}
	t.Logf("%s: %d resources are those of a cold start: %v", name, len(cold), kinds)
}

// peakMemory is the most memory that the agent has had since its start.
func peakMemory(t *testing.T, vm *testbed.VM) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", vm.Agent().PID()))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			return strings.TrimSpace(v)
		}
	}
	return "unknown"
}
