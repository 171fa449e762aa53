package faults

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"wingman/test/mesh/kube"
	"wingman/test/mesh/testbed"
)

// tlsMode is what a WorkloadEntry says of mutual TLS: "disabled" for a machine whose application hears the wire itself.
func tlsMode(o kube.Object) string {
	return o.Labels("metadata", "labels")["security.istio.io/tlsMode"]
}

// A machine without Envoy is a member that others reach in plain text. Envoy arrives: by mutual TLS. It crashes: nothing changes. It goes for good: in
// plain text again.
func envoyComesAndGoes(t *testing.T, p *pair) {
	p.bed.Apply(t, outsiders)
	vm := p.bed.VM(t, testbed.Spec{Host: "shop-vm", Addr: "10.99.5.2/24", Namespace: "shop", Group: "shop"})
	vm.App(t, 8080)
	vm.StartAgent(t)
	proxy := vm.StartProxy(t) // the package brings its unit, with or without Envoy
	answers := func(path, wantLevel string) error {
		r, err := p.client.Get(t.Context(), "shop.shop", path)
		if err == nil && (r.Status != 200 || r.Body != "shop-vm "+path) {
			err = fmt.Errorf("got %d %q", r.Status, r.Body)
		}
		if err != nil {
			return err
		}
		s, err := vm.Status(t.Context())
		if err == nil && s.Capture.Level != wantLevel {
			err = fmt.Errorf("capture is %+v", s.Capture)
		}
		return err
	}

	vm.Healthy(t, "True")
	plain := vm.Entry(t, "the entry of a machine without Envoy", nil)
	if got := tlsMode(plain); got != "disabled" {
		t.Errorf("tlsMode of a machine without Envoy is %q, want disabled", got)
	}
	testbed.Await(t, "plain text reaches it", func() error { return answers("/plain", "dns") })
	said, err := vm.Run(t.Context(), "/usr/local/bin/wingman", "status")
	if err != nil || !strings.Contains(said, "no Envoy") && !strings.Contains(said, "none: ") {
		t.Errorf("wingman status: %v, want one that is well and says that there is no Envoy:\n%s", err, said)
	}
	if n := strings.Count(vm.AgentLog(t), "no Envoy here; the mesh is told that this machine takes no mutual TLS"); n != 1 {
		t.Errorf("the log says %d times that there is no Envoy, want once", n)
	}

	arrived := time.Now()
	vm.InstallEnvoy(t)
	able := vm.Entry(t, "the entry of a machine with Envoy", func(o kube.Object) bool { return tlsMode(o) == "" })
	vm.Healthy(t, "True")
	testbed.Await(t, "traffic goes through its Envoy", func() error { return answers("/tls", "all") })
	t.Logf("Envoy arrives: mutual TLS after %s", seconds(time.Since(arrived)))
	if id := proxy.Peer(t, "/tls"); id != forumID {
		t.Errorf("the request was sent by %q, want %q", id, forumID)
	}
	if uid(able) == uid(plain) {
		t.Error("the entry is the old one: labels count only when it is made")
	}

	pid := proxy.PID(t)
	proxy.Signal(t, pid, syscall.SIGKILL)
	testbed.Await(t, "another Envoy serves", func() error {
		if now := proxy.PID(t); now == pid {
			return errors.New("it is the one that was killed")
		}
		return answers("/crashed", "all")
	})
	if after := vm.Entry(t, "the entry after a crash", nil); uid(after) != uid(able) {
		t.Error("a crash of Envoy made the entry anew")
	}

	went := time.Now()
	vm.RemoveEnvoy(t)
	proxy.Stop(t)
	// Nobody reaches it for the time that Envoy may still come back; then it is plain again.
	testbed.AwaitFor(t, 2*time.Minute, "plain text reaches it again", func() error { return answers("/plain-again", "dns") })
	if took := time.Since(went); took < 30*time.Second {
		t.Errorf("Envoy counted as gone for good after %s", seconds(took))
	} else {
		t.Logf("Envoy goes for good: plain text after %s", seconds(took))
	}
	if again := vm.Entry(t, "the entry of a machine whose Envoy has gone", nil); tlsMode(again) != "disabled" {
		t.Errorf("tlsMode is %q, want disabled", tlsMode(again))
	}
	vm.Healthy(t, "True")
}

func uid(o kube.Object) string { return o.String("metadata", "uid") }

// outsiders are machines of their own, beside the book's.
const outsiders = `
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: shop-sa, namespace: shop}
---
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {name: shop, namespace: shop}
spec:
  metadata: {labels: {app: shop}}
  template: {serviceAccount: shop-sa, network: vm-network}
  probe: {initialDelaySeconds: 1, periodSeconds: 1, httpGet: {port: 8080, path: /}}
---
apiVersion: v1
kind: Service
metadata: {name: shop, namespace: shop}
spec:
  selector: {app: shop}
  ports: [{name: http, port: 80, targetPort: 8080}]
`
