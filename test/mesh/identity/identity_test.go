// Package identity tests on the real istiod that a machine stays who it is: without its token, after its certificate's end, and while the mesh's
// root is replaced under traffic.
package identity

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"wingman/test/mesh"
	"wingman/test/mesh/testbed"
)

func TestMain(m *testing.M) { testbed.Main(m) }

// account is a machine's service account.
func account(spec testbed.Spec) string { return spec.Group + "-sa" }

// token makes a token for a machine; a negative life makes one that has expired.
func token(t *testing.T, bed *testbed.Bed, spec testbed.Spec, life time.Duration) string {
	t.Helper()
	made, err := bed.Mesh.Token(t.Context(), spec.Namespace, account(spec), mesh.Audience, life)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// member says what a machine lacks to be a member.
func member(s testbed.Status) error {
	if s.Phase != "joined" || s.XDS.Phase != "connected" {
		return fmt.Errorf("phase %s, stream %s (%s), identity: %s", s.Phase, s.XDS.Phase, s.XDS.LastError, s.Identity.LastError)
	}
	return nil
}

func TestCredentialsThatEnd(t *testing.T) {
	bed := testbed.New(t, mesh.Options{})
	for name, test := range map[string]func(*testing.T, *testbed.Bed){
		"an identity outlives its token": outlivesToken, "a token brings a dead identity back at once": comesBack,
	} {
		t.Run(name, func(t *testing.T) { t.Parallel(); test(t, bed) })
	}
}

// Two machines join, each by a token that is about to expire. Then the one loses its token, and the other one keeps it, dead. Their agents are killed,
// and go on by their certificates.
func outlivesToken(t *testing.T, bed *testbed.Bed) {
	loses, keeps := testbed.Forum, testbed.Catalog
	machines, tokens := map[*testbed.VM]testbed.Spec{}, map[*testbed.VM]string{}
	for _, spec := range []*testbed.Spec{&loses, &keeps} {
		spec.Sidecar = "SECRET_TTL=20s\n"
		vm := bed.VM(t, *spec)
		// The API server allows a minute of clock skew: this one has twenty seconds left.
		machines[vm], tokens[vm] = *spec, token(t, bed, *spec, -40*time.Second)
		vm.WriteToken(t, tokens[vm])
		vm.StartAgent(t)
	}
	for vm, spec := range machines {
		first := vm.AwaitStatus(t, "it joins", member)
		if first.Identity.Credential == "" {
			t.Errorf("%s did not say what got its certificate", vm.Name())
		}
		if spec.Host == loses.Host {
			vm.RemoveToken(t)
		}
	}
	for vm := range machines {
		testbed.AwaitFor(t, 2*time.Minute, "the API server refuses "+vm.Name()+"'s token", func() error {
			accepted, err := bed.Mesh.TokenAccepted(t.Context(), tokens[vm])
			if err == nil && accepted {
				err = errors.New("it is accepted")
			}
			return err
		})
	}
	for vm := range machines {
		vm.KillAgent()
		vm.StartAgent(t)
	}
	for vm := range machines {
		back := vm.AwaitStatus(t, "it is back", member)
		renewed := vm.AwaitStatus(t, "its certificate renews itself", func(s testbed.Status) error {
			if s.Identity.Serial == back.Identity.Serial || s.Identity.Credential != "certificate" {
				return fmt.Errorf("serial %s came by %q: %s", s.Identity.Serial, s.Identity.Credential, s.Identity.LastError)
			}
			return member(s)
		})
		if renewed.Identity.LastError != "" {
			t.Errorf("%s complains: %s", vm.Name(), renewed.Identity.LastError)
		}
	}
}

// A machine sleeps longer than certificate and token live, and the token's file is gone. It says so; a token that is dropped in brings it back within a second.
func comesBack(t *testing.T, bed *testbed.Bed) {
	spec := testbed.Forum
	spec.Host, spec.Addr, spec.Sidecar = "asleep-vm", "10.99.2.2/24", "SECRET_TTL=10s\n"
	const life = 10 * time.Second // of a token: the agent keeps a copy of one that is good
	vm := bed.VM(t, spec)
	vm.WriteToken(t, token(t, bed, spec, life))
	ends := time.Now().Add(life)
	vm.StartAgent(t)
	last := vm.AwaitStatus(t, "it joins", member)
	var took []time.Duration
	for range 3 {
		vm.KillAgent()
		vm.RemoveToken(t)
		testbed.Await(t, "certificate and token end", func() error {
			if left := max(time.Until(last.Identity.NotAfter), time.Until(ends)); left > 0 {
				return fmt.Errorf("they have %s left", left)
			}
			return nil
		})
		vm.StartAgent(t)
		vm.AwaitStatus(t, "it says which credential is dead, and what mends it", func(s testbed.Status) error {
			for _, want := range []string{"the certificate expired", "no token", "kubectl create token " + account(spec)} {
				if !strings.Contains(s.Identity.LastError, want) {
					return fmt.Errorf("no %q in %q", want, s.Identity.LastError)
				}
			}
			return nil
		})
		fresh := token(t, bed, spec, life)
		appeared := time.Now()
		ends = appeared.Add(life)
		vm.WriteToken(t, fresh)
		last = vm.AwaitStatus(t, "it is a member again", func(s testbed.Status) error {
			if s.Identity.Serial == last.Identity.Serial {
				return errors.New(s.Identity.LastError)
			}
			return member(s)
		})
		took = append(took, time.Since(appeared))
	}
	t.Logf("from a token's appearing to a certificate and a stream: %v", took)
	// The worst may be a busy machine's; the agent's next look would be a minute away.
	if best, worst := slices.Min(took), slices.Max(took); best > time.Second || worst > 10*time.Second {
		t.Errorf("it took %v, want a second at most", took)
	}
}
