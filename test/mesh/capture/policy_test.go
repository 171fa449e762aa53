package capture

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"

	"wingman/test/mesh"
	"wingman/test/mesh/kube"
	"wingman/test/mesh/testbed"
)

// While Envoy is down captured connections are refused, or go past it where the settings say so, each direction by itself. Names resolve all the time, and
// once Envoy is back everything goes through it again.
func TestWhatIsCapturedWhileEnvoyIsDown(t *testing.T) {
	bed := testbed.New(t, mesh.Options{})
	for _, tt := range []struct{ name, settings, inbound, outbound string }{
		{"closed is the default", "", "refused", "refused"},
		{"outbound open", "rules: {outboundWhenDown: open}\n", "refused", "past"},
		{"inbound open", "rules: {inboundWhenDown: open}\n", "past", "refused"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			spec := testbed.Forum
			spec.Envoy = true
			vm := bed.VM(t, spec)
			if err := vm.WriteFile("/etc/wingman/wingman.yaml", tt.settings, 0o644, 0); err != nil {
				t.Fatal(err)
			}
			vm.App(t, 8080)
			vm.StartAgent(t)
			envoy := vm.StartProxy(t)
			envoy.Await(t)
			vm.AwaitStatus(t, "all is captured", func(s testbed.Status) error {
				if s.Capture.Level != "all" {
					return fmt.Errorf("captured: %+v", s.Capture)
				}
				return nil
			})
			outside, closedPort := outsider(t, vm)
			way := func() (inbound, outbound string) {
				return wayTo(t, (&net.Dialer{}).DialContext, vm.IP().String()+":8080", vm.IP().String()+":8099"), wayTo(t, vm.Dial, outside, closedPort)
			}
			through := func() error {
				if in, out := way(); in != "through" || out != "through" {
					return fmt.Errorf("inbound goes %s, outbound %s Envoy", in, out)
				}
				return nil
			}
			testbed.Await(t, "everything goes through Envoy", through)

			envoy.Stop(t)
			testbed.Await(t, "the policy is in force", func() error {
				if in, out := way(); in != tt.inbound || out != tt.outbound {
					return fmt.Errorf("inbound %s, outbound %s", in, out)
				}
				return nil
			})
			if err := vm.Resolves(t.Context(), "webapp.istioinaction", clusterIP(t, bed, "istioinaction", "webapp")); err != nil {
				t.Errorf("names do not resolve while Envoy is down: %v", err)
			}
			s, err := vm.Status(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if open := strings.Contains(strings.Join(s.Degraded, "; "), "goes past it"); open != (tt.settings != "") {
				t.Errorf("status is degraded by %q", s.Degraded)
			}

			envoy.Start(t)
			envoy.Await(t)
			testbed.Await(t, "everything goes through Envoy again", through)
			vm.StopAgent(t)
		})
	}
}

// An operator moves a machine into the mesh one step at a time, and back, by reloads.
func TestCaptureIsChangedLiveStepByStep(t *testing.T) {
	bed := testbed.New(t, mesh.Options{IstiodEnv: shortGrace})
	spec := testbed.Forum
	spec.Envoy = true
	vm := bed.VM(t, spec)
	vm.App(t, 8080)
	settings := func(capture string) {
		t.Helper()
		if err := vm.WriteFile("/etc/wingman/wingman.yaml", "capture: "+capture+"\nworkload: {entryGrace: 4s}\n", 0o644, 0); err != nil {
			t.Fatal(err)
		}
	}
	settings("none")
	vm.StartAgent(t)
	vm.StartProxy(t).Await(t)
	outside, closedPort := outsider(t, vm)
	for i, step := range []struct{ capture, level, tlsMode, inbound, outbound string }{
		{"none", "none", "disabled", "past", "past"},
		{"dns", "dns", "disabled", "past", "past"},
		{"ports:[8080, 8099]", "ports", "disabled", "through", "past"},
		{"all", "all", "", "through", "through"},
		{"dns", "dns", "disabled", "past", "past"},
	} {
		settings(step.capture)
		if i > 0 {
			if err := vm.Agent().Signal(syscall.SIGHUP); err != nil {
				t.Fatal(err)
			}
		}
		vm.AwaitStatus(t, "capture is "+step.capture, func(s testbed.Status) error {
			if s.Capture.Level != step.level || s.Phase != "joined" {
				return fmt.Errorf("%s, captured: %+v", s.Phase, s.Capture)
			}
			return nil
		})
		testbed.Await(t, "traffic takes the way of "+step.capture, func() error {
			in := wayTo(t, (&net.Dialer{}).DialContext, vm.IP().String()+":8080", vm.IP().String()+":8099")
			out := wayTo(t, vm.Dial, outside, closedPort)
			if in != step.inbound || out != step.outbound {
				return fmt.Errorf("inbound %s, outbound %s", in, out)
			}
			return nil
		})
		vm.Entry(t, "the mesh is told the same with "+step.capture, func(o kube.Object) bool {
			return o.String("spec", "labels", "security.istio.io/tlsMode") == step.tlsMode
		})
		vm.Healthy(t, "True")
	}
}

// outsider is an HTTP server outside of the mesh, on the test's side of the machine's cable, and beside it a port that nobody has.
func outsider(t *testing.T, vm *testbed.VM) (open, closed string) {
	t.Helper()
	var addresses [2]string
	for i := range addresses {
		l, err := net.Listen("tcp", vm.Gateway().String()+":0")
		if err != nil {
			t.Fatal(err)
		}
		addresses[i] = l.Addr().String()
		if i == 1 {
			l.Close()
			break
		}
		s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "outside") })}
		go s.Serve(l) // returns when the server is closed
		t.Cleanup(func() { s.Close() })
	}
	return addresses[0], addresses[1]
}

// wayTo tells which way connections take: a proxy in between accepts those to a port that nobody has, before it finds that out.
func wayTo(t *testing.T, dial func(ctx context.Context, network, address string) (net.Conn, error), open, closed string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testbed.StepTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+open+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	client := http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	res, err := client.Do(req)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case err != nil:
		return err.Error()
	}
	res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return res.Status
	}
	c, err := dial(ctx, "tcp", closed)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "past"
	case err != nil:
		return err.Error()
	}
	c.Close()
	return "through"
}
