// Package chapter is the book's chapter on virtual machines (Istio in Action, chapter 13) as tests, with nothing stood in for: the
// machines run wingman and the unmodified Envoy, which gets its configuration from the real istiod; a pod and the gateways run
// Istio's own agent.
//
//	story_test.go    the chapter in its order, in three settings of the mesh
//	tools_test.go    what the book looks at: istioctl proxy-config, proxy-status, istiod's debug pages
//	cluster_test.go  a machine with pods: both ways, a migration from one to the other, through the ingress
//	hbone_test.go    ENABLE_HBONE
package chapter

import (
	"context"
	"fmt"
	"maps"
	"testing"
	"time"

	"wingman/test/mesh"
	"wingman/test/mesh/testbed"
)

func TestMain(m *testing.M) { testbed.Main(m) }

const (
	forumID   = "spiffe://cluster.local/ns/forum-services/sa/forum-sa"
	catalogID = "spiffe://cluster.local/ns/istioinaction/sa/catalog-sa"
	webappID  = "spiffe://cluster.local/ns/istioinaction/sa/webapp"

	forumHost   = "forum.forum-services"
	catalogHost = "catalog.istioinaction"
	webappHost  = "webapp.istioinaction"
	catalogFQDN = catalogHost + ".svc.cluster.local"
)

// shortGrace lets an entry go soon after its last stream; istiod's default is ten seconds.
const shortGrace = "1s"

// quickStop is how long a machine that leaves gives the news to reach its peers: here they have it in a quarter of a second.
const quickStop = "drain: {propagation: 1s}\n"

// member is a machine with everything on it: the application, wingman, Envoy.
type member struct {
	*testbed.VM
	app   *testbed.App
	envoy *testbed.Envoy
}

// prepare makes a machine with istioctl's files and its application, and starts neither agent nor Envoy.
func prepare(t *testing.T, bed *testbed.Bed, spec testbed.Spec, port int) *member {
	t.Helper()
	spec.Envoy = true
	m := &member{VM: bed.VM(t, spec)}
	if err := m.WriteFile("/etc/wingman/wingman.yaml", quickStop, 0o644, 0); err != nil {
		t.Fatal(err)
	}
	m.app = m.App(t, port)
	return m
}

// start starts wingman and Envoy.
func (m *member) start(t *testing.T) {
	t.Helper()
	m.StartAgent(t)
	m.envoy = m.StartProxy(t)
}

// awaitMember waits until a machine that was started is a healthy member whose traffic goes through Envoy.
func (m *member) awaitMember(t *testing.T) {
	t.Helper()
	m.envoy.Await(t)
	m.AwaitStatus(t, "traffic is captured", func(s testbed.Status) error {
		if s.Capture.Level != "all" {
			return fmt.Errorf("capture is %q: %s", s.Capture.Level, s.Capture.Why)
		}
		return nil
	})
	m.Healthy(t, "True")
}

// client is a machine, or a pod, that an application asks from.
type client interface {
	Name() string
	Get(ctx context.Context, host, path string) (testbed.Reply, error)
}

// reaches waits until a client gets an answer of the application on another machine, through Envoy.
func reaches(t *testing.T, from client, host, app, path string) {
	t.Helper()
	testbed.Await(t, from.Name()+" reaches "+host, func() error { return ask(t, from, host, app, path) })
}

// ask returns nil when a client gets an answer of the application on another machine, through Envoy.
func ask(t *testing.T, from client, host, app, path string) error {
	t.Helper()
	r, err := from.Get(t.Context(), host, path)
	return answered(r, err, app+" "+path, "envoy")
}

// answered returns nil when a reply came through Envoy and has this body.
func answered(r testbed.Reply, err error, body, server string) error {
	if err != nil {
		return err
	}
	if r.Status != 200 || r.Body != body || r.Header.Get("Server") != server {
		return fmt.Errorf("got %+v, want 200 of %s with %q", r, server, body)
	}
	return nil
}

// noneLeft waits until a client's Envoy itself answers for a service: there is nobody healthy to send the request to. It returns how
// long that took.
func noneLeft(t *testing.T, from client, host string) (took time.Duration) {
	t.Helper()
	return testbed.Await(t, from.Name()+" gets 503 for "+host, func() error {
		r, err := from.Get(t.Context(), host, "/")
		if err != nil {
			return err
		}
		if r.Status != 503 || r.Body != "no healthy upstream" {
			return fmt.Errorf("got %+v, want 503 of Envoy", r)
		}
		return nil
	})
}

// server has an Envoy that says who sent a request.
type server interface {
	Peer(t testing.TB, path string) (id string)
}

// sentBy fails unless a request came to a server over mutual TLS, from this identity; "-" is nobody's, plain text.
func sentBy(t *testing.T, to server, path, want string) {
	t.Helper()
	if got := to.Peer(t, path); got != want {
		t.Errorf("%s was sent by %q, want %q", path, got, want)
	}
}

// stock is a mesh that the unmodified Envoy can be a member of by pilot-agent too, with access logs.
func stock() mesh.Options {
	env := map[string]string{"PILOT_WORKLOAD_ENTRY_GRACE_PERIOD": shortGrace}
	maps.Copy(env, testbed.StockEnvoy)
	return mesh.Options{IstiodEnv: env, MeshConfig: mesh.DefaultMeshConfig + testbed.AccessLog}
}
