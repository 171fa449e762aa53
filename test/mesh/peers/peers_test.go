// Package peers tests the members of the mesh that wingman has to get along with, and is measured by: Istio's own agent and
// the real Envoy on virtual machines, as a pod's sidecar, and as the gateway between two networks.
package peers

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"wingman/test/mesh"
	"wingman/test/mesh/testbed"
)

func TestMain(m *testing.M) { testbed.Main(m) }

// stock is a mesh that the unmodified Envoy can be a member of by pilot-agent, with access logs.
func stock(networks string) mesh.Options {
	return mesh.Options{
		IstiodEnv:    testbed.StockEnvoy,
		MeshConfig:   mesh.DefaultMeshConfig + testbed.AccessLog,
		MeshNetworks: networks,
	}
}

const (
	forumID  = "spiffe://cluster.local/ns/forum-services/sa/forum-sa"
	webappID = "spiffe://cluster.local/ns/istioinaction/sa/webapp"
)

func TestMachinesWithIstiosAgentTalkMutualTLS(t *testing.T) {
	bed := testbed.New(t, stock(""))
	forum, catalog := testbed.Forum, testbed.Catalog
	forum.Envoy, catalog.Envoy = true, true
	client, server := bed.VM(t, forum), bed.VM(t, catalog)
	client.App(t, 8080)
	server.App(t, 3000)
	client.StartIstio(t)
	envoy := server.StartIstio(t)
	client.Healthy(t, "True")
	server.Healthy(t, "True")
	reaches(t, client, "catalog.istioinaction", "catalog-vm", "/to-catalog")
	sentBy(t, envoy, "/to-catalog", forumID)
}

func TestMachineAndPodTalkMutualTLS(t *testing.T) {
	bed := testbed.New(t, stock(""))
	spec := testbed.Forum
	spec.Envoy = true
	vm := bed.VM(t, spec)
	vm.App(t, 8080)
	envoy := vm.StartIstio(t)
	webapp := bed.Pod(t, webappPod)
	webapp.App(t, 8080)
	vm.Healthy(t, "True")
	reaches(t, vm, "webapp.istioinaction", "webapp", "/to-pod")
	sentBy(t, webapp.Istio, "/to-pod", forumID)
	reaches(t, webapp, "forum.forum-services", "forum-vm", "/to-machine")
	sentBy(t, envoy, "/to-machine", webappID)
}

// The machine knows nothing but the gateway: istiod is there by its hosts file, services of the cluster by their SNI.
func TestMachineReachesIstiodAndPodsThroughTheGateway(t *testing.T) {
	bed := testbed.New(t, stock(testbed.TwoNetworks))
	gateway := bed.EastWestGateway(t)
	pod := webappPod
	pod.Network = testbed.ClusterNetwork
	webapp := bed.Pod(t, pod)
	webapp.App(t, 8080)

	spec := testbed.Forum
	spec.Envoy, spec.Istiod = true, testbed.GatewayIP
	vm := bed.VM(t, spec)
	bed.Reject(t, vm.IP(), vm.Gateway())
	bed.Reject(t, vm.IP(), webapp.IP())
	vm.App(t, 8080)
	vm.StartIstio(t)
	vm.Healthy(t, "True")
	reaches(t, vm, "webapp.istioinaction", "webapp", "/across")
	sentBy(t, webapp.Istio, "/across", forumID)

	gateway.Process().Kill()
	testbed.Await(t, "without the gateway there is no way", func() error {
		if r, err := vm.Get(t.Context(), "webapp.istioinaction", "/across"); err == nil && r.Status == 200 {
			return errors.New("the pod still answers")
		}
		return nil
	})
}

var webappPod = testbed.PodSpec{
	Name: "webapp", Addr: "10.99.2.2/24", Namespace: "istioinaction", Account: "webapp", Labels: map[string]string{"app": "webapp"},
	Service: "webapp", Ports: map[string]int{"http": 8080},
}

// client is a machine that an application asks from.
type client interface {
	Name() string
	Get(ctx context.Context, host, path string) (testbed.Reply, error)
}

// reaches waits until a machine's application gets an answer of the one on another machine, through Envoy.
func reaches(t *testing.T, from client, host, app, path string) {
	t.Helper()
	testbed.Await(t, from.Name()+" reaches "+host, func() error {
		r, err := from.Get(t.Context(), host, path)
		if err != nil {
			return err
		}
		if r.Status != 200 || r.Body != app+" "+path || r.Header.Get("Server") != "envoy" {
			return fmt.Errorf("got %+v", r)
		}
		return nil
	})
}

// sentBy fails unless a request came to a server over mutual TLS, from this identity.
func sentBy(t *testing.T, server *testbed.Istio, path, want string) {
	t.Helper()
	if got := server.Peer(t, path); got != want {
		t.Errorf("%s was sent by %q, want %q", path, got, want)
	}
}
