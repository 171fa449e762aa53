package faults

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"wingman/test/mesh/machine"
	"wingman/test/mesh/proc"
	"wingman/test/mesh/testbed"
)

// Ports that Envoy needs belong to somebody else: who that is can be read, and Envoy starts once they are free. Sockets that a killed agent left in the
// agent's folder are in nobody's way, and a second supervisor goes.
func startIsObstructed(t *testing.T, p *pair) {
	vm := newcomer(t, p, "desk", "10.99.6.2/24")
	for _, name := range []string{"/run/wingman/xds.sock", "/run/wingman/sds.sock", "/run/wingman/admin.sock"} {
		leaveSocket(t, vm, name)
	}
	squatter := squat(t, vm, 15001, 15006, 15021)
	vm.StartAgent(t)
	proxy := vm.StartProxy(t)
	want := fmt.Sprintf("python3 (pid %d)", squatter.PID())
	vm.AwaitStatus(t, "it says who has the ports", func(s testbed.Status) error {
		for _, port := range []string{"15001", "15006", "15021"} {
			if !strings.Contains(s.Envoy.Cause, "port "+port+", ") {
				return fmt.Errorf("no port %s in %q", port, s.Envoy.Cause)
			}
		}
		if !strings.Contains(s.Envoy.Cause, want) {
			return fmt.Errorf("no %q in %q", want, s.Envoy.Cause)
		}
		return nil
	})
	squatter.Kill()
	freed := time.Now()
	proxy.Await(t)
	t.Logf("ports are free: Envoy serves after %s", seconds(time.Since(freed)))
	vm.Healthy(t, "True")

	second, err := vm.Start(proc.Spec{
		Path: "/usr/local/bin/wingman", Args: []string{"proxy"}, Env: []string{"PATH=/usr/bin:/bin"}, Dir: "/", Log: proxy.Log() + ".second",
		Credential: &syscall.Credential{Uid: machine.ProxyID, Gid: machine.ProxyID},
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("pid %d", proxy.Process().PID()); second.Err() == nil || !strings.Contains(second.Tail(5), want) {
		t.Errorf("a second supervisor ended with %v, want an error that names %s", second.Err(), want)
	}
	proxy.Await(t)
}

// newcomer makes a machine with Envoy, its application, and a namespace for it.
func newcomer(t *testing.T, p *pair, name, addr string) *testbed.VM {
	t.Helper()
	p.bed.Apply(t, strings.ReplaceAll(outsiders, "shop", name))
	vm := p.bed.VM(t, testbed.Spec{Host: name + "-vm", Addr: addr, Namespace: name, Group: name, Envoy: true})
	vm.App(t, 8080)
	return vm
}

// leaveSocket leaves a socket where a process that was killed had it.
func leaveSocket(t *testing.T, vm *testbed.VM, name string) {
	t.Helper()
	err := vm.Visit(func() error {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"})
		if err != nil {
			return err
		}
		l.SetUnlinkOnClose(false)
		return errors.Join(os.Chown(name, machine.ProxyID, machine.ProxyID), l.Close())
	})
	if err != nil {
		t.Fatal(err)
	}
}

// squat starts a program of the proxy's user that listens on ports, and waits until it does.
func squat(t *testing.T, vm *testbed.VM, ports ...int) *proc.Process {
	t.Helper()
	const program = "import socket, sys, time\nopen = [socket.create_server(('', int(p))) for p in sys.argv[1:]]\ntime.sleep(3600)\n"
	args := []string{"-c", program}
	for _, p := range ports {
		args = append(args, fmt.Sprint(p))
	}
	squatter, err := vm.Start(proc.Spec{
		Path: "/usr/bin/python3", Args: args, Dir: "/", Log: machine.Scratch(t) + "/squatter.log",
		Credential: &syscall.Credential{Uid: machine.ProxyID, Gid: machine.ProxyID},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, port := range ports {
		testbed.Await(t, "the ports are taken", func() error {
			c, err := vm.Dial(t.Context(), "tcp", fmt.Sprintf("127.0.0.1:%d", port))
			if err == nil {
				c.Close()
			}
			return err
		})
	}
	return squatter
}

// nowhere is a host outside the mesh whose name nobody knows: Envoy holds all listeners back until it has heard of it.
const nowhere = `
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: %[1]s, namespace: %[1]s}
spec:
  hosts: [%[1]s.nowhere.example]
  exportTo: ["."]
  ports: [{number: 443, name: tls, protocol: TLS}]
  location: MESH_EXTERNAL
  resolution: DNS
`

// The machine's resolver says nothing at all. Envoy holds its listeners back until it has heard about a host that a ServiceEntry names, or given up: by
// istiod's configuration as it is, after a minute.
func resolverIsSilent(t *testing.T, p *pair) {
	const patience = 30 * time.Second
	vm := newcomer(t, p, "quiet", "10.99.7.2/24")
	p.bed.Apply(t, fmt.Sprintf(nowhere, "quiet"))
	p.bed.Silence(t, vm)
	vm.StartAgent(t)
	proxy := vm.StartProxy(t)
	testbed.Await(t, "Envoy runs", func() error { return listens(t, vm, 15000) })
	took := testbed.AwaitFor(t, 2*time.Minute, "the application's listener is warm", func() error { return listens(t, vm, 15006) })
	t.Logf("listeners are warm behind a silent resolver after %s", seconds(took))
	if took > patience {
		t.Errorf("that is more than %s", patience)
	}
	proxy.Await(t)
	vm.Healthy(t, "True")
}

// listens returns nil when somebody on the machine accepts connections at a port.
func listens(t *testing.T, vm *testbed.VM, port int) error {
	c, err := vm.Dial(t.Context(), "tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err == nil {
		c.Close()
	}
	return err
}
