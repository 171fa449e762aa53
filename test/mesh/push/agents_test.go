package push

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"wingman/test/mesh/machine"
	"wingman/test/mesh/testbed"
)

// An agent is one of those that are compared, on its machine.
type agent struct {
	vm        *testbed.VM
	socket    string // serves ADS to Envoy
	bootstrap string // the file that it makes for Envoy
	start     func(testing.TB) process
	stop      func() // what start started
}

// idle stands where pilot-agent looks for Envoy; the player takes Envoy's part.
const idle = "/home/istio-proxy/envoy"

// istios is pilot-agent on a machine of the book's group.
func istios(b *testing.B, bed *testbed.Bed) *agent {
	spec := testbed.Forum
	spec.Envoy = true
	a := &agent{vm: bed.VM(b, spec), socket: "/etc/istio/proxy/XDS", bootstrap: "/etc/istio/proxy/envoy-rev.json"}
	a.vm.App(b, 8080)
	if err := a.vm.WriteFile(idle, "#!/bin/sh\nexec sleep infinity\n", 0o755, machine.ProxyID); err != nil {
		b.Fatal(err)
	}
	a.start = func(t testing.TB) process {
		shell := a.vm.StartIstioAgent(t, idle)
		a.stop = shell.Kill
		return child(t, shell.PID(), "pilot-agent")
	}
	return a
}

// ours is wingman on another one.
func ours(b *testing.B, bed *testbed.Bed) *agent {
	spec := testbed.Forum
	spec.Host, spec.Addr = "forum-vm-2", "10.99.1.2/24"
	a := &agent{vm: bed.VM(b, spec), socket: "/run/wingman/xds.sock", bootstrap: "/run/wingman/envoy/bootstrap.json"}
	a.vm.App(b, 8080)
	a.start = func(t testing.TB) process {
		a.vm.StartAgent(t)
		return process(a.vm.Agent().PID())
	}
	a.stop = a.vm.KillAgent
	return a
}

// child waits for a process's child of the given name.
func child(t testing.TB, parent int, name string) (found process) {
	t.Helper()
	testbed.Await(t, name+" is running", func() error {
		list, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", parent, parent))
		if err != nil {
			t.Fatal(err)
		}
		for _, pid := range strings.Fields(string(list)) {
			comm, err := os.ReadFile("/proc/" + pid + "/comm")
			if err == nil && strings.TrimSpace(string(comm)) == name {
				_, err = fmt.Sscan(pid, &found)
				return err
			}
		}
		return errors.New("it is not there yet")
	})
	return found
}

// node waits until the agent has made Envoy's bootstrap file and serves ADS, and returns the node in the file.
func (a *agent) node(t testing.TB) *corev3.Node {
	t.Helper()
	node := new(corev3.Node)
	testbed.Await(t, a.vm.Name()+" is ready for Envoy", func() error {
		c, err := a.dial(t.Context())
		if err != nil {
			return err
		}
		c.Close()
		var raw []byte
		if err := a.vm.Visit(func() (err error) { raw, err = os.ReadFile(a.bootstrap); return err }); err != nil {
			return err
		}
		var file struct{ Node json.RawMessage } // the rest is a matter between the agent and Envoy
		if err := json.Unmarshal(raw, &file); err != nil {
			return err
		}
		return protojson.Unmarshal(file.Node, node)
	})
	return node
}

func (a *agent) dial(ctx context.Context) (net.Conn, error) { return a.vm.Dial(ctx, "unix", a.socket) }

// firstRequest is the first one of an unmodified Envoy 1.40, which has 61 kB: its node lists all that Envoy was built with.
const firstRequest = "../../../agent/envoy/stock/testdata/envoy-1.40.0.request.binpb"

// asStock makes a node that of the unmodified Envoy.
func asStock(b *testing.B, node *corev3.Node) *corev3.Node {
	b.Helper()
	raw, err := os.ReadFile(firstRequest)
	if err != nil {
		b.Fatal(err)
	}
	r := new(discoveryv3.DeltaDiscoveryRequest)
	if err := proto.Unmarshal(raw, r); err != nil {
		b.Fatal(err)
	}
	node = proto.CloneOf(node)
	node.UserAgentName, node.UserAgentVersionType, node.Extensions, node.ClientFeatures =
		r.Node.UserAgentName, r.Node.UserAgentVersionType, r.Node.Extensions, r.Node.ClientFeatures
	return node
}

// asIstios makes a node that of Istio's build of the same Envoy.
func asIstios(b *testing.B, node *corev3.Node) *corev3.Node {
	b.Helper()
	node = asStock(b, node)
	for _, x := range []*corev3.Extension{
		{Category: "envoy.filters.http", Name: "istio.alpn", TypeUrls: []string{"istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig"}},
		{Category: "envoy.filters.http", Name: "envoy.filters.http.peer_metadata", TypeUrls: []string{"io.istio.http.peer_metadata.Config"}},
		{Category: "envoy.filters.http", Name: "envoy.filters.http.istio_stats", TypeUrls: []string{"stats.PluginConfig"}},
		{Category: "envoy.filters.network", Name: "envoy.filters.network.metadata_exchange", TypeUrls: []string{"envoy.tcp.metadataexchange.config.MetadataExchange"}},
		{Category: "envoy.filters.network", Name: "envoy.filters.network.peer_metadata", TypeUrls: []string{"envoy.extensions.network_filters.peer_metadata.Config"}},
		{Category: "envoy.filters.upstream_network", Name: "envoy.filters.network.upstream.peer_metadata", TypeUrls: []string{"envoy.extensions.network_filters.peer_metadata.UpstreamConfig"}},
	} {
		node.Extensions = append(node.Extensions, x)
	}
	return node
}
