package capture

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"wingman/test/mesh"
	"wingman/test/mesh/testbed"
)

// Containers on the machine ask the resolvers that docker gave them. With their bridge named in the settings they have the mesh's names too, also
// when the bridge comes up after the agent, and lose nothing when it goes.
func TestContainersHaveTheMeshsNames(t *testing.T) {
	bed := testbed.New(t, mesh.Options{})
	spec := testbed.Forum
	spec.Sidecar = "KUBE_VIRT_INTERFACES=br0\n"
	vm := bed.VM(t, spec)
	vm.App(t, 8080)
	vm.StartAgent(t)
	vm.AwaitStatus(t, "the agent joins", joined)

	ip := func(args string) {
		t.Helper()
		if out, err := vm.Run(t.Context(), "/usr/sbin/ip", strings.Fields(args)...); err != nil {
			t.Fatalf("ip %s: %v: %s", args, err, out)
		}
	}
	for _, step := range []string{
		"link add br0 type bridge", "addr add 172.31.0.1/24 dev br0", "link set br0 up",
		"netns add box", "link add box0 type veth peer name eth0 netns box", "link set box0 master br0 up",
		"-n box addr add 172.31.0.2/24 dev eth0", "-n box link set eth0 up", "-n box route add default via 172.31.0.1",
	} {
		ip(step)
	}
	for _, transport := range []string{"+notcp", "+tcp"} {
		testbed.Await(t, "a container resolves a mesh name by "+transport, func() error {
			out, err := vm.Run(t.Context(), "/usr/sbin/ip", "netns", "exec", "box", "/usr/bin/dig", "+short", "+time=1", "+tries=1", transport,
				"@203.0.113.53", "webapp.istioinaction.svc.cluster.local")
			if err != nil {
				return err
			}
			if !strings.HasPrefix(out, "10.") {
				return fmt.Errorf("got %q", out)
			}
			return nil
		})
	}
	ip("link del br0")
	testbed.Await(t, "the agent notices that the bridge has gone", func() error {
		if !strings.Contains(vm.AgentLog(t), "DNS is not answered on a container bridge any more") {
			return errors.New("not yet")
		}
		return nil
	})
	vm.AwaitStatus(t, "all is well", func(s testbed.Status) error {
		if len(s.Degraded) > 0 {
			return errors.New(strings.Join(s.Degraded, "; "))
		}
		return joined(s)
	})
}
