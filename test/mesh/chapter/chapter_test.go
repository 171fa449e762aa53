// Package chapter is the book's chapter on virtual machines (Istio in Action, chapter 13) as tests, with nothing stood in for:
// both machines run wingman and the real Envoy, which gets its configuration from the real istiod.
package chapter

import (
	"context"
	"fmt"
	"testing"

	"wingman/test/mesh"
	"wingman/test/mesh/testbed"
)

func TestMain(m *testing.M) { testbed.Main(m) }

const (
	forumID   = "spiffe://cluster.local/ns/forum-services/sa/forum-sa"
	catalogID = "spiffe://cluster.local/ns/istioinaction/sa/catalog-sa"
)

func TestChapterOnOneNetwork(t *testing.T) {
	bed := testbed.New(t, mesh.Options{MeshConfig: mesh.DefaultMeshConfig + testbed.AccessLog})
	forum, catalog := testbed.Forum, testbed.Catalog
	forum.Envoy, catalog.Envoy = true, true
	client, server := bed.VM(t, forum), bed.VM(t, catalog)
	client.App(t, 8080)
	server.App(t, 3000)
	for _, vm := range []*testbed.VM{client, server} {
		vm.StartAgent(t)
	}
	clientEnvoy, serverEnvoy := client.StartProxy(t), server.StartProxy(t)
	clientEnvoy.Await(t)
	serverEnvoy.Await(t)
	client.Healthy(t, "True")
	server.Healthy(t, "True")
	reaches(t, client, "catalog.istioinaction", "catalog-vm", "/to-catalog")
	sentBy(t, serverEnvoy, "/to-catalog", forumID)
	reaches(t, server, "forum.forum-services", "forum-vm", "/to-forum")
	sentBy(t, clientEnvoy, "/to-forum", catalogID)
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

// server has an Envoy that tells who sent a request.
type server interface {
	Peer(t testing.TB, path string) (id string)
}

// sentBy fails unless a request came to a server over mutual TLS, from this identity.
func sentBy(t *testing.T, to server, path, want string) {
	t.Helper()
	if got := to.Peer(t, path); got != want {
		t.Errorf("%s was sent by %q, want %q", path, got, want)
	}
}
