package identity

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"wingman/test/mesh"
	"wingman/test/mesh/testbed"
)

// handshakes has every tenth request make a new connection between the Envoys: what they trust and show is looked at all the time.
const handshakes = `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: catalog, namespace: istioinaction}
spec:
  host: catalog.istioinaction.svc.cluster.local
  trafficPolicy: {connectionPool: {http: {maxRequestsPerConnection: 10}}}
`

// countHandshakes has Envoy count them, in sidecar.env.
const countHandshakes = `PROXY_CONFIG='{"proxyStatsMatcher": {"inclusionRegexps": ["listener[.].*[.]ssl[.](handshake|session_reused)"]}}'` + "\n"

// A rotation is a way from one root to another.
type rotation struct {
	name   string
	istiod map[string]string
	steps  func(t *testing.T, old, next *authority) []step
}

// A step is what an operator does, and what it comes to on each machine.
type step struct {
	name    string
	before  func(t *testing.T, p *testbed.Pair, old, next *authority) // on the machines; nil: nothing
	cacerts mesh.CACerts                                              // nil: they stay
	live    bool                                                      // istiod takes them up as it runs; else it is restarted
	issuer  string                                                    // of the machines' certificates
	trusts  []string                                                  // the machines' roots
	by      string                                                    // the credential that got the certificate; "" is either
}

const (
	oldRoot, oldIssuer = "old root", "old issuer"
	newRoot, newIssuer = "new root", "new issuer"
)

var rotations = []rotation{
	{"both roots, then the new one signs, then the old one goes", nil, func(t *testing.T, old, next *authority) []step {
		a, b := newAuthority(t, oldIssuer, old), newAuthority(t, newIssuer, next)
		return []step{
			{"both roots", nil, cacerts(t, a, nil, old, next), false, oldIssuer, []string{newRoot, oldRoot}, "certificate"},
			{"the new one signs", nil, cacerts(t, b, nil, old, next), false, newIssuer, []string{newRoot, oldRoot}, "certificate"},
			{"the old one is removed", replaceRootFile, cacerts(t, b, nil, next), false, newIssuer, []string{newRoot}, "certificate"},
		}
	}},
	{"cross-signed: the new one signs at once", nil, func(t *testing.T, old, next *authority) []step {
		b := newAuthority(t, newIssuer, next)
		return []step{
			{"the new one signs", nil, cacerts(t, b, []*authority{next.crossSigned(t, old)}, old, next), false, newIssuer, []string{newRoot, oldRoot}, "certificate"},
			{"the old one is removed", replaceRootFile, cacerts(t, b, nil, next), false, newIssuer, []string{newRoot}, "certificate"},
		}
	}},
	// An istiod that runs takes other roots only where it may have several. It goes on to check machines by the roots of its start: certificates that it
	// has given itself since are refused, and the token counts again.
	{"istiod is never restarted", map[string]string{"ISTIO_MULTIROOT_MESH": "true"}, func(t *testing.T, old, next *authority) []step {
		a, b := newAuthority(t, oldIssuer, old), newAuthority(t, newIssuer, next)
		return []step{
			{"both roots", nil, cacerts(t, a, nil, old, next), true, oldIssuer, []string{newRoot, oldRoot}, "certificate"},
			{"the new one signs", nil, cacerts(t, b, nil, old, next), true, newIssuer, []string{newRoot, oldRoot}, ""},
			{"the old one is removed", replaceRootFile, cacerts(t, b, nil, next), true, newIssuer, []string{newRoot}, "token"},
		}
	}},
	{"a hard switch, after the machines got root and token", nil, func(t *testing.T, old, next *authority) []step {
		return []step{
			{"the machines know the new root", bringRootAndToken, nil, true, oldIssuer, []string{newRoot, oldRoot}, ""},
			{"istiod knows only the new root", nil, cacerts(t, newAuthority(t, newIssuer, next), nil, next), false, newIssuer, []string{newRoot, oldRoot}, ""},
			{"the old one is removed", replaceRootFile, nil, true, newIssuer, []string{newRoot}, "certificate"},
		}
	}},
}

// The mesh's root is replaced while requests go between two machines' Envoys. None fails, nobody touches the agents, and at the end no machine trusts the
// old root any more.
func TestTheRootIsReplacedUnderTraffic(t *testing.T) {
	for _, r := range rotations {
		t.Run(r.name, func(t *testing.T) {
			old, next := newAuthority(t, oldRoot, nil), newAuthority(t, newRoot, nil)
			p := testbed.NewPair(t, mesh.Options{
				IstiodEnv: r.istiod, Objects: handshakes, CACerts: cacerts(t, newAuthority(t, oldIssuer, old), nil, old),
			}, "SECRET_TTL=12s\n"+countHandshakes)
			settled(t, p, step{issuer: oldIssuer, trusts: []string{oldRoot}})
			load := p.Client.Load(t, testbed.PairHost, "/rotation")
			machines := []*testbed.VM{p.Client, p.Server}
			for _, s := range r.steps(t, old, next) {
				began := time.Now()
				s.do(t, p, old, next)
				for _, vm := range machines { // one is ahead of the other, as in a mesh of many
					renew(t, vm)
					goOn(t, load)
				}
				slices.Reverse(machines)
				settled(t, p, s)
				t.Logf("%s: done after %.1f s", s.name, time.Since(began).Seconds())
			}
			goOn(t, load)
			o := load.Stop()
			sent, _ := o.Sent()
			full := fullHandshakes(t, p.ServerEnvoy)
			t.Logf("%s: %v, over %d full handshakes", r.name, o, full)
			if o.Failed() > 0 {
				t.Error("requests failed")
			}
			if full < sent/20 {
				t.Errorf("there were %d handshakes: this test says nothing about who trusts whom", full)
			}
		})
	}
}

func (s step) do(t *testing.T, p *testbed.Pair, old, next *authority) {
	t.Helper()
	if s.before != nil {
		s.before(t, p, old, next)
	}
	if s.cacerts == nil {
		return
	}
	if err := p.Mesh.MountCACerts(s.cacerts); err != nil {
		t.Fatal(err)
	}
	if s.live {
		return
	}
	p.Mesh.KillIstiod()
	if err := p.Mesh.StartIstiod(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// settled waits until both machines show a certificate of the step's issuer, and trust its roots and no others.
func settled(t *testing.T, p *testbed.Pair, s step) {
	t.Helper()
	for _, vm := range []*testbed.VM{p.Client, p.Server} {
		vm.AwaitStatus(t, "it trusts "+strings.Join(s.trusts, " and "), func(now testbed.Status) error {
			var roots []string
			for _, r := range now.Identity.Roots {
				if name := strings.TrimPrefix(r.Subject, "CN="); !slices.Contains(roots, name) { // named by the file, and by the CA
					roots = append(roots, name)
				}
			}
			slices.Sort(roots)
			if !slices.Equal(roots, s.trusts) {
				return fmt.Errorf("it trusts %q; last error: %s", roots, now.Identity.LastError)
			}
			if s.by != "" && now.Identity.Credential != s.by {
				return fmt.Errorf("its certificate came by %q, want %s", now.Identity.Credential, s.by)
			}
			return member(now)
		})
		testbed.Await(t, vm.Name()+"'s Envoy shows a certificate by "+s.issuer, func() error {
			shown, err := p.Shown(t.Context(), vm)
			if err == nil && shown.Issuer.CommonName != s.issuer {
				err = fmt.Errorf("it is by %s", shown.Issuer.CommonName)
			}
			return err
		})
	}
}

// renew has a machine ask for a certificate now. istiod may take a moment to be there for it.
func renew(t *testing.T, vm *testbed.VM) {
	t.Helper()
	testbed.Await(t, vm.Name()+" renews its certificate", func() error {
		_, err := vm.Run(t.Context(), "/usr/local/bin/wingman", "cert", "renew")
		return err
	})
}

// goOn lets a load go on for a second.
func goOn(t *testing.T, load *testbed.Load) {
	t.Helper()
	before, _ := load.Outcome().Sent()
	testbed.Await(t, "requests go on", func() error {
		if now, _ := load.Outcome().Sent(); now < before+testbed.Rate {
			return fmt.Errorf("%d requests", now-before)
		}
		return nil
	})
}

// fullHandshakes is how many TLS handshakes an Envoy has accepted in which both sides have shown their certificates.
func fullHandshakes(t *testing.T, e *testbed.Envoy) int {
	t.Helper()
	count := func(what string) (sum int) {
		for line := range strings.Lines(e.Admin(t, "/stats?filter=ssl."+what)) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
			n, err := strconv.Atoi(value)
			if err != nil {
				t.Fatalf("read %q: %v", line, err)
			}
			if strings.Contains(name, "15006") {
				sum += n
			}
		}
		return sum
	}
	return count("handshake") - count("session_reused")
}

// replaceRootFile has the operator write the new root over the file that istioctl made: what that names is trusted for as long as it does.
func replaceRootFile(t *testing.T, p *testbed.Pair, _, next *authority) {
	for _, vm := range []*testbed.VM{p.Client, p.Server} {
		vm.WriteRootFile(t, next.pem())
	}
}

// bringRootAndToken has the operator prepare machines for a root that nobody has told them of.
func bringRootAndToken(t *testing.T, p *testbed.Pair, old, next *authority) {
	for vm, spec := range map[*testbed.VM]testbed.Spec{p.Client: testbed.Forum, p.Server: testbed.Catalog} {
		vm.WriteRootFile(t, old.pem()+next.pem())
		vm.WriteToken(t, token(t, p.Bed, spec, time.Hour))
	}
}
