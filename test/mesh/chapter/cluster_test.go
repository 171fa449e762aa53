package chapter

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"wingman/test/mesh/kube"
	"wingman/test/mesh/testbed"
)

// webappPod is the book's web application.
var webappPod = testbed.PodSpec{
	Name: "webapp", Addr: "10.99.2.2/24", Namespace: "istioinaction", Account: "webapp", Labels: map[string]string{"app": "webapp"},
	Service: "webapp", Ports: map[string]int{"http": 8080},
}

// forumPod is the forum, moved into the cluster.
var forumPod = testbed.PodSpec{
	Name: "forum-pod", Addr: "10.99.3.2/24", Namespace: "forum-services", Account: "forum-sa",
	Labels:  map[string]string{"app": "forum", "version": "pod"},
	Service: "forum", Ports: map[string]int{"http": 8080},
}

// The book's machine and the cluster's pods, which have Istio's own agent.
func TestTheMachineAndTheCluster(t *testing.T) {
	bed := testbed.New(t, stock())
	bed.Apply(t, `
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {name: forum, namespace: forum-services}
spec:
  metadata: {labels: {app: forum, version: machine}}
  template: {serviceAccount: forum-sa, network: vm-network}
  probe:
    initialDelaySeconds: 1
    periodSeconds: 1
    httpGet: {port: 8080, path: /api/healthz}
`)
	forum := prepare(t, bed, testbed.Forum, 8080)
	forum.start(t)
	webapp := bed.Pod(t, webappPod)
	webapp.App(t, 8080)
	forum.awaitMember(t)

	t.Run("a machine and a pod ask each other", func(t *testing.T) {
		reaches(t, forum, webappHost, "webapp", "/to-pod")
		reaches(t, webapp, forumHost, "forum-vm", "/to-machine")
		sentBy(t, webapp, "/to-pod", forumID)
		sentBy(t, forum.envoy, "/to-machine", webappID)
	})
	t.Run("a request through the ingress follows the application", func(t *testing.T) { throughIngress(t, bed, forum) })
	t.Run("a service moves from the machine to a pod and back", func(t *testing.T) { migrate(t, bed, forum, webapp) })
}

// throughIngress asks for the machine's application from outside the mesh, at the ingress gateway.
func throughIngress(t *testing.T, bed *testbed.Bed, forum *member) {
	bed.Apply(t, `
apiVersion: v1
kind: Service
metadata: {name: istio-ingressgateway, namespace: istio-system, labels: {istio: ingressgateway}}
spec:
  selector: {istio: ingressgateway}
  ports: [{name: http2, port: 80, targetPort: 8080}]
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: forum, namespace: forum-services}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {port: {number: 80, name: http, protocol: HTTP}, hosts: [forum.istioinaction.io]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: forum-from-outside, namespace: forum-services}
spec:
  hosts: [forum.istioinaction.io]
  gateways: [forum]
  http:
  - route: [{destination: {host: forum.forum-services.svc.cluster.local, port: {number: 80}}}]
`)
	ingress := bed.Gateway(t, testbed.PodSpec{
		Name: "ingress", Addr: "10.99.240.2/24", Namespace: "istio-system", Account: "istio-ingressgateway-service-account",
		Labels: map[string]string{"istio": "ingressgateway"}, Service: "istio-ingressgateway", Ports: map[string]int{"http2": 8080},
	})
	get := func(path string) (testbed.Reply, error) {
		return bed.Plain(t.Context(), ingress.IP().String()+":8080", "forum.istioinaction.io", path)
	}
	answers := func(path string) {
		t.Helper()
		testbed.Await(t, "the ingress answers", func() error {
			r, err := get(path)
			return answered(r, err, "forum-vm "+path, "istio-envoy")
		})
	}
	answers("/from-outside")
	sentBy(t, forum.envoy, "/from-outside", "spiffe://cluster.local/ns/istio-system/sa/istio-ingressgateway-service-account")

	forum.app.Kill()
	forum.Healthy(t, "False")
	testbed.Await(t, "the ingress says 503", func() error {
		r, err := get("/while-dead")
		if err == nil && (r.Status != 503 || r.Body != "no healthy upstream") {
			err = fmt.Errorf("got %+v, want 503 of Envoy", r)
		}
		return err
	})
	testbed.AwaitAccess(t, ingress, "503 UH", func(a testbed.Access) bool {
		return a.Path == "/while-dead" && a.Status == "503" && a.Flags == "UH"
	})
	forum.app.Start(t)
	forum.Healthy(t, "True")
	answers("/from-outside-again")
}

// migrate moves the forum from the machine to a pod of the same Service and back, first by weights, then by who is there. No
// request may fail meanwhile.
func migrate(t *testing.T, bed *testbed.Bed, forum *member, webapp *testbed.Pod) {
	// Before there is a pod, all requests are the machine's: so it shall be until somebody says otherwise.
	bed.Apply(t, `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: forum, namespace: forum-services}
spec:
  host: forum.forum-services.svc.cluster.local
  subsets:
  - {name: machine, labels: {version: machine}}
  - {name: pod, labels: {version: pod}}
`)
	// istiod does not wait until Envoy has a new cluster before it sends routes to it: somebody has to (503 NC).
	testbed.Await(t, "the web application's Envoy has the subsets", func() error {
		clusters := webapp.Admin(t, "/clusters")
		for _, subset := range []string{"machine", "pod"} {
			if name := "outbound|80|" + subset + "|forum.forum-services.svc.cluster.local::"; !strings.Contains(clusters, name) {
				return fmt.Errorf("there is no %s", name)
			}
		}
		return nil
	})
	shift(t, bed, 100, 0)
	answeredBy(t, webapp, "forum-vm")
	stop := keepAsking(t, webapp)
	defer stop()
	pod := bed.Pod(t, forumPod)
	pod.App(t, 8080)
	answeredBy(t, webapp, "forum-vm")

	shift(t, bed, 50, 50)
	answeredBy(t, webapp, "forum-vm", "forum-pod")
	shift(t, bed, 0, 100)
	answeredBy(t, webapp, "forum-pod")
	shift(t, bed, 100, 0)
	answeredBy(t, webapp, "forum-vm")

	// Without rules whoever is there and healthy answers: both, the pod alone while the machine is out, the machine alone without a pod.
	remove(t, bed, kube.Ref{APIVersion: "networking.istio.io/v1", Kind: "VirtualService", Namespace: "forum-services", Name: "forum"})
	answeredBy(t, webapp, "forum-vm", "forum-pod")
	forum.StopAgent(t)
	answeredBy(t, webapp, "forum-pod")
	bed.Entries(t, "forum-services", "the entry goes", func(all []kube.Object) bool { return len(all) == 0 })
	forum.StartAgent(t)
	answeredBy(t, webapp, "forum-vm", "forum-pod")
	remove(t, bed, kube.Ref{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice", Namespace: "forum-services", Name: forumPod.Name})
	answeredBy(t, webapp, "forum-vm")
}

func remove(t *testing.T, bed *testbed.Bed, object kube.Ref) {
	t.Helper()
	if err := bed.Mesh.Kube.Delete(t.Context(), object); err != nil {
		t.Fatal(err)
	}
}

// shift says how many of a hundred requests go to the machine and to the pod.
func shift(t *testing.T, bed *testbed.Bed, machine, pod int) {
	t.Helper()
	bed.Apply(t, fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: forum, namespace: forum-services}
spec:
  hosts: [forum.forum-services.svc.cluster.local]
  http:
  - route:
    - {destination: {host: forum.forum-services.svc.cluster.local, subset: machine}, weight: %d}
    - {destination: {host: forum.forum-services.svc.cluster.local, subset: pod}, weight: %d}
`, machine, pod))
}

// answeredBy waits until just these machines answer a client's requests to the forum: each of them, and nobody else, in a row that
// is long enough to be no accident.
func answeredBy(t *testing.T, from client, want ...string) {
	t.Helper()
	const row = 30
	testbed.Await(t, fmt.Sprintf("%v answer", want), func() error {
		got := map[string]int{}
		for range row {
			r, err := from.Get(t.Context(), forumHost, "/")
			if err != nil {
				return err
			}
			got[r.Body]++
		}
		for _, app := range want {
			if got[app+" /"] == 0 {
				return fmt.Errorf("%d requests were answered by %v", row, got)
			}
		}
		if len(got) != len(want) {
			return fmt.Errorf("others answer too: %v", got)
		}
		return nil
	})
}

// keepAsking asks for the forum a hundred times a second, until the function that it returns ends that. A request that gets no good
// answer fails the test.
func keepAsking(t *testing.T, from client) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var asking sync.WaitGroup
	asking.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		all, failed := 0, 0
		for {
			select {
			case <-ctx.Done():
				t.Logf("%d of %d requests failed", failed, all)
				return
			case <-tick.C:
			}
			r, err := from.Get(context.Background(), forumHost, "/steady") // the end does not interrupt it
			all++
			if err == nil && r.Status == 200 {
				continue
			}
			if failed++; failed <= 3 {
				t.Errorf("request %d failed: %+v, %v", all, r, err)
			}
		}
	})
	return func() {
		cancel()
		asking.Wait()
	}
}
