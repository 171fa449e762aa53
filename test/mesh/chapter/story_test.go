package chapter

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"wingman/test/mesh"
	"wingman/test/mesh/kube"
	"wingman/test/mesh/testbed"
)

// A world is a mesh that the story is told in.
type world struct {
	name    string
	options mesh.Options
	// istioOnly: istiod sends what only Istio's build of Envoy has.
	istioOnly bool
	// apart: the book's machine has a network of its own, and knows nothing of the cluster's but the east-west gateway.
	apart bool
}

// metrics is a mesh with a metrics provider, as the charts install it: istiod adds istio.stats to everything.
const metrics = `extensionProviders: [{name: prometheus, prometheus: {}}]
defaultProviders: {metrics: [prometheus]}
`

func worlds() []world {
	defaults := mesh.Options{
		IstiodEnv:  map[string]string{"PILOT_WORKLOAD_ENTRY_GRACE_PERIOD": shortGrace},
		MeshConfig: mesh.DefaultMeshConfig + testbed.AccessLog + metrics,
		Objects:    moreServices,
	}
	apart := stock()
	apart.MeshNetworks = testbed.TwoNetworks
	return []world{
		{name: "one network, istiod's defaults and a metrics provider", options: defaults, istioOnly: true},
		{name: "one network, istiod told that Envoy is not Istio's", options: stock()},
		{name: "two networks and the east-west gateway", options: apart, apart: true},
	}
}

func TestTheChapter(t *testing.T) {
	for _, w := range worlds() {
		t.Run(w.name, func(t *testing.T) { tell(t, w) })
	}
}

func tell(t *testing.T, w world) {
	// The control plane is there, with namespaces, service accounts, WorkloadGroups and Services of the book. istioctl writes the
	// files of each machine (istioctl x workload entry configure), which are copied to where Istio's package wants them.
	bed := testbed.New(t, w.options)
	forum, catalog := machines(t, bed, w)

	// The machines start. Each registers itself: its WorkloadEntry appears, and turns healthy when Envoy and the application serve.
	forum.start(t)
	catalog.start(t)
	checkEntry(t, forum.Entry(t, "the entry of forum appears", nil), forum, "app=forum", "forum-sa")
	checkEntry(t, catalog.Entry(t, "the entry of catalog appears", nil), catalog, "app=catalog", "catalog-sa")
	forum.awaitMember(t)
	catalog.awaitMember(t)

	// forum$ curl http://catalog.istioinaction/
	testbed.Await(t, "curl gets an answer", func() error {
		r, err := forum.Curl(t.Context(), "http://"+catalogHost+"/items")
		return answered(r, err, "catalog-vm /items", "envoy")
	})
	reaches(t, catalog, forumHost, "forum-vm", "/threads")
	sentBy(t, catalog.envoy, "/items", forumID)
	sentBy(t, forum.envoy, "/threads", catalogID)
	catalogAt := catalog.IP().String() + ":3000"
	if w.apart {
		catalogAt = gatewayAt
	}
	wentTo(t, forum, "/items", catalogAt)
	if w.apart {
		withPod(t, bed, forum)
	}

	// What the book looks at, at this point.
	look(t, bed, forum, catalog, catalogAt)
	if w.istioOnly {
		checkProtocols(t, forum, catalog)
	}

	// STRICT stops plain text from outside and leaves the mesh, and the agents' probes, alone.
	onlyMutualTLS(t, bed, forum, catalog)

	// The application dies and comes back.
	catalog.app.Kill()
	catalog.Healthy(t, "False")
	t.Logf("with catalog unhealthy forum got 503 after %s", noneLeft(t, forum, catalogHost))
	catalog.app.Start(t)
	catalog.Healthy(t, "True")
	reaches(t, forum, catalogHost, "catalog-vm", "/back")

	// A new Service is resolvable at once.
	addr := bed.Service(t, "istioinaction", "recommendation")
	took := testbed.Await(t, "a new Service resolves", func() error {
		return forum.Resolves(t.Context(), "recommendation.istioinaction", addr)
	})
	t.Logf("a new Service was resolvable after %s", took)

	// In all of this Envoy has refused nothing.
	noneRejected(t, w, forum)
	noneRejected(t, w, catalog)

	// The machine leaves: first unhealthy, then gone, and nothing stays in its kernel.
	unhealthy := forum.ExpectHealthy(t, "False")
	forum.StopAgent(t)
	forum.envoy.Stop(t)
	unhealthy()
	bed.Entries(t, "forum-services", "the entry goes", func(all []kube.Object) bool { return len(all) == 0 })
	noneLeft(t, catalog, forumHost)
	if rules := forum.Rules(t); len(rules) > 0 {
		t.Errorf("the kernel still has rules: %v", rules)
	}
}

// gatewayAt is where the east-west gateway takes requests for services.
const gatewayAt = testbed.GatewayIP + ":15443"

// machines makes the world's two machines: forum with the book's sidecar.env, and catalog without one. In a world of two networks
// catalog is on the cluster's.
func machines(t *testing.T, bed *testbed.Bed, w world) (forum, catalog *member) {
	t.Helper()
	f, c := testbed.Forum, testbed.Catalog
	f.Sidecar = bookSettings
	if w.apart {
		bed.EastWestGateway(t)
		f.Istiod, c.Network = testbed.GatewayIP, testbed.ClusterNetwork
		bed.Apply(t, strings.ReplaceAll(testbed.Objects, "serviceAccount: catalog-sa, network: vm-network", "serviceAccount: catalog-sa, network: "+testbed.ClusterNetwork))
	}
	forum, catalog = prepare(t, bed, f, 8080), prepare(t, bed, c, 3000)
	if w.apart {
		bed.Reject(t, forum.IP(), forum.Gateway())
		bed.Forbid(t, forum.IP(), catalog.IP())
	}
	return forum, catalog
}

func checkEntry(t *testing.T, entry kube.Object, m *member, label, account string) {
	t.Helper()
	if got := entry.String("spec", "address"); got != m.IP().String() {
		t.Errorf("the entry's address is %q, want %s", got, m.IP())
	}
	if got := entry.String("spec", "serviceAccount"); got != account {
		t.Errorf("the entry's service account is %q, want %s", got, account)
	}
	labels := entry.Labels("spec", "labels")
	if key, value, _ := strings.Cut(label, "="); labels[key] != value {
		t.Errorf("the entry's labels are %v, want %s", labels, label)
	}
	if _, ok := labels["security.istio.io/tlsMode"]; ok {
		t.Errorf("the entry's labels %v say something of mutual TLS, which this machine takes", labels)
	}
}

// wentTo fails unless a machine's Envoy sent a request to this address and port.
func wentTo(t *testing.T, from *member, path, want string) {
	t.Helper()
	sent := testbed.AwaitAccess(t, from.envoy, "that it sent "+path, func(a testbed.Access) bool {
		return !a.Inbound() && a.Path == path && a.Status == "200"
	})
	if sent.Upstream != want {
		t.Errorf("%s sent %s to %s, want %s", from.Name(), path, sent.Upstream, want)
	}
}

// withPod has forum and a pod of the cluster ask each other: forum by the gateway, the pod directly.
func withPod(t *testing.T, bed *testbed.Bed, forum *member) {
	t.Helper()
	spec := webappPod
	spec.Network = testbed.ClusterNetwork
	webapp := bed.Pod(t, spec)
	webapp.App(t, 8080)
	bed.Forbid(t, forum.IP(), webapp.IP())
	reaches(t, forum, webappHost, "webapp", "/across")
	reaches(t, webapp, forumHost, "forum-vm", "/back-across")
	sentBy(t, webapp, "/across", forumID)
	sentBy(t, forum.envoy, "/back-across", webappID)
	wentTo(t, forum, "/across", gatewayAt)
}

// onlyMutualTLS turns STRICT on for the mesh and leaves it so.
func onlyMutualTLS(t *testing.T, bed *testbed.Bed, forum, catalog *member) {
	t.Helper()
	plain := func(path string) (testbed.Reply, error) {
		return bed.Plain(t.Context(), catalog.IP().String()+":3000", catalogHost, path)
	}
	if r, err := plain("/plain"); err != nil || r.Status != 200 {
		t.Errorf("before STRICT plain text got %+v, %v, want 200", r, err)
	}
	fell := bed.WatchEntries(t, "istioinaction", func(all []kube.Object) bool {
		if len(all) != 1 {
			return true
		}
		status, _ := all[0].Condition("Healthy")
		return status != "True"
	})
	bed.Apply(t, `
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
`)
	testbed.Await(t, "plain text is refused", func() error {
		if r, err := plain("/plain-again"); err == nil {
			return fmt.Errorf("got %+v", r)
		}
		return nil
	})
	if err := ask(t, forum, catalogHost, "catalog-vm", "/strict"); err != nil {
		t.Errorf("with STRICT forum asks catalog: %v", err)
	}
	sentBy(t, catalog.envoy, "/plain", "-")
	sentBy(t, catalog.envoy, "/strict", forumID)
	if seen, was := fell(); was {
		t.Errorf("with STRICT the entry was not healthy all the time: %v", seen)
	}
}

// checkProtocols looks at what is left of Istio's own filters when the agent has taken them out: a port whose protocol Envoy finds out
// still sees HTTP, which needs a client that says so by ALPN, and a plain TCP stream has nothing in it that the client did not send.
// The mesh has moreServices.
func checkProtocols(t *testing.T, forum, catalog *member) {
	t.Helper()
	catalog.App(t, 3001)
	catalog.App(t, 3002)
	reaches(t, forum, "found-out.istioinaction", "catalog-vm", "/found-out")
	r, err := forum.Get(t.Context(), "stream.istioinaction", "/stream")
	if err := answered(r, err, "catalog-vm /stream", ""); err != nil {
		t.Errorf("the stream: %v", err)
	}
	sentBy(t, catalog.envoy, "/found-out", forumID)
	stream := testbed.AwaitAccess(t, catalog.envoy, "the stream", func(a testbed.Access) bool { return a.Cluster == "inbound|3002||" && a.Path == "-" })
	if stream.Peer != forumID {
		t.Errorf("the stream was sent by %q, want %q", stream.Peer, forumID)
	}
}

// moreServices are ports of the catalog machine: one without a protocol, and one that is TCP.
const moreServices = `
apiVersion: v1
kind: Service
metadata: {name: found-out, namespace: istioinaction}
spec: {selector: {app: catalog}, ports: [{port: 80, targetPort: 3001}]}
---
apiVersion: v1
kind: Service
metadata: {name: stream, namespace: istioinaction}
spec: {selector: {app: catalog}, ports: [{name: tcp, port: 80, targetPort: 3002}]}
`

const (
	// lacking is what the agent logs of an unmodified Envoy, once a stream, whatever istiod sends.
	lacking = "this Envoy lacks Istio's extensions"
	// removals begins the series of what was taken out; there is none before the first.
	removals = "\nwingman_envoy_removed_total{"
)

// noneRejected fails when Envoy has refused anything, and unless the agent took out what this Envoy lacks: just where istiod sent it.
func noneRejected(t *testing.T, w world, m *member) {
	t.Helper()
	s, err := m.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if s.XDS.EnvoyNacks != 0 {
		t.Errorf("%s: Envoy has refused %d pushes: %v", m.Name(), s.XDS.EnvoyNacks, s.XDS.EnvoyNack)
	}
	stats := m.envoy.Admin(t, "/stats?filter=update_(rejected|success)$")
	for line := range strings.Lines(stats) {
		if name, n, _ := strings.Cut(strings.TrimSpace(line), ": "); strings.HasSuffix(name, "rejected") && n != "0" {
			t.Errorf("%s: Envoy counts %s %s", m.Name(), n, name)
		}
	}
	for _, kind := range []string{"cluster_manager.cds", "listener_manager.lds"} {
		if strings.Contains(stats, kind+".update_success: 0\n") || !strings.Contains(stats, kind+".update_success: ") {
			t.Errorf("%s: Envoy took nothing by %s:\n%s", m.Name(), kind, stats)
		}
	}
	if !strings.Contains(m.AgentLog(t), lacking) {
		t.Errorf("%s: the log does not say what this Envoy lacks", m.Name())
	}
	counts, err := m.Curl(t.Context(), "http://127.0.0.1:15020/metrics")
	if err != nil || counts.Status != http.StatusOK {
		t.Errorf("%s: metrics of the agent: status %d, %v", m.Name(), counts.Status, err)
	}
	if removed := strings.Contains(counts.Body, removals); removed != w.istioOnly {
		t.Errorf("%s: extensions were taken out: %t, want %t", m.Name(), removed, w.istioOnly)
	}
	if len(s.Degraded) > 0 {
		t.Errorf("%s is degraded: %q", m.Name(), s.Degraded)
	}
}
