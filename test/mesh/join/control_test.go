package join

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"wingman/test/mesh"
	"wingman/test/mesh/kube"
	"wingman/test/mesh/testbed"
)

// What an operator sees of two machines with istioctl and istiod's debug pages: one row each, nothing unacknowledged, the same
// names here as there.
func TestOperatorSeesOneRowForEachMachineAndTheNamesItHas(t *testing.T) {
	bed := testbed.New(t, mesh.Options{})
	forum, catalog := bed.VM(t, testbed.Forum), bed.VM(t, testbed.Catalog)
	forum.App(t, 8080)
	catalog.App(t, 3000)
	vms := []*testbed.VM{catalog, forum}
	for _, vm := range vms {
		vm.StartAgent(t)
	}
	var want []string
	for _, vm := range vms {
		vm.AwaitStatus(t, "the agent joins", joined)
		vm.Healthy(t, "True")
		want = append(want, vm.Proxy())
	}
	if rows := bed.ProxyRows(t); !slices.Equal(rows, want) {
		t.Errorf("istioctl proxy-status has rows for %v, want %v", rows, want)
	}
	for _, vm := range vms {
		testbed.Await(t, "every push to "+vm.Name()+" is acknowledged", func() error { return bed.Acknowledged(t, vm.Proxy()) })
		testbed.Await(t, vm.Name()+" has istiod's names", func() error { return bed.SameNames(t, vm) })
	}
}

// istiod in the charts ends every connection after half an hour. A machine must not notice: no warning, the entry and its health
// as they were, the names up to date.
func TestConnectionAgeIsNoEvent(t *testing.T) {
	// istiod gives a stream ten seconds more than this. The grace period is its default: every ten of them it takes an entry
	// for left over whose connection is older than one and a half times the age (autoregistration.shouldCleanupEntry).
	bed := testbed.New(t, mesh.Options{IstiodArgs: []string{"--keepaliveMaxServerConnectionAge=1s"}})
	vm := bed.VM(t, testbed.Forum)
	vm.App(t, 8080)
	vm.StartAgent(t)
	vm.AwaitStatus(t, "the agent joins", joined)
	vm.Healthy(t, "True")
	vanished := bed.WatchEntries(t, "forum-services", func(all []kube.Object) bool {
		if len(all) != 1 {
			return true
		}
		status, _ := all[0].Condition("Healthy")
		return status != "True"
	})
	vm.AwaitStatus(t, "a stream was ended and another one opened", func(s testbed.Status) error {
		if s.XDS.Streams < 2 {
			return fmt.Errorf("%d streams so far", s.XDS.Streams)
		}
		return joined(s)
	})
	resolvesNew(t, bed, vm, "new-one")
	if seen, gone := vanished(); gone {
		t.Errorf("the entry was not there and healthy all the time: %v", seen)
	}
	for _, line := range vm.Warnings(t) {
		// One warning is istiod's own doing: it notes the end of the old stream in the entry while the new stream registers, and
		// when it loses to itself it ends the new one (Unknown: "Operation cannot be fulfilled on workloadentries").
		if !strings.Contains(line, "Operation cannot be fulfilled") {
			t.Errorf("the agent made noise of a graceful end: %s", line)
		}
	}
}

// A machine that was away for longer than the grace period has lost its entry. The new one must be healthy again by itself:
// istiod remembers nothing of the old one.
func TestMachineThatWasAwayComesBackHealthy(t *testing.T) {
	bed := testbed.New(t, mesh.Options{IstiodEnv: shortGrace})
	vm := bed.VM(t, testbed.Forum)
	vm.App(t, 8080)
	vm.StartAgent(t)
	vm.AwaitStatus(t, "the agent joins", joined)
	vm.Healthy(t, "True")
	webapp := clusterIP(t, bed, "istioinaction", "webapp")

	reconnect := bed.Reject(t, vm.IP(), vm.Gateway())
	bed.Service(t, "istioinaction", "new-one") // its push runs into the firewall, so that both ends notice
	bed.Entries(t, "forum-services", "the entry goes", func(all []kube.Object) bool { return len(all) == 0 })
	checkNames(t, vm, map[string]string{"webapp.istioinaction": webapp, "www.example.com": "192.0.2.80"})
	reconnect()
	vm.AwaitStatus(t, "the agent is back", joined)
	vm.Healthy(t, "True")
}

// An istiod that hangs keeps its sockets open and says nothing. DNS must not care, and the agent must find out by itself.
func TestFrozenControlPlane(t *testing.T) {
	bed := testbed.New(t, mesh.Options{IstiodEnv: shortGrace})
	vm := bed.VM(t, testbed.Forum)
	app := vm.App(t, 8080)
	vm.StartAgent(t)
	vm.AwaitStatus(t, "the agent joins", joined)
	vm.Healthy(t, "True")
	webapp := clusterIP(t, bed, "istioinaction", "webapp")

	if err := bed.Mesh.FreezeIstiod(); err != nil {
		t.Fatal(err)
	}
	app.Kill()
	names := map[string]string{"webapp.istioinaction": webapp, "www.example.com": "192.0.2.80"}
	checkNames(t, vm, names)
	vm.KillAgent()
	vm.StartAgent(t)
	vm.AwaitStatus(t, "the agent restarts while istiod hangs", func(s testbed.Status) error {
		if s.Capture.Level != "dns" {
			return fmt.Errorf("capture is %q: %s", s.Capture.Level, s.Capture.Why)
		}
		return nil
	})
	checkNames(t, vm, names)
	if err := bed.Mesh.ThawIstiod(); err != nil {
		t.Fatal(err)
	}
	vm.AwaitStatus(t, "the stream is back", joined)
	vm.Healthy(t, "False")
}

func TestSecretTTLIsTheCertificatesLife(t *testing.T) {
	bed := testbed.New(t, mesh.Options{})
	spec := testbed.Forum
	spec.Sidecar = `SECRET_TTL="12h0m0s"` + "\n"
	vm := bed.VM(t, spec)
	vm.StartAgent(t)
	s := vm.AwaitStatus(t, "the agent joins", joined)
	if life := s.Identity.NotAfter.Sub(s.Identity.ReceivedAt); (life - 12*time.Hour).Abs() > time.Minute {
		t.Errorf("the certificate lives %s, want 12h", life)
	}
}
