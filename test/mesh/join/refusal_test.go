package join

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"wingman/test/mesh"
	"wingman/test/mesh/kube"
	"wingman/test/mesh/testbed"
)

// forumGroup is the WorkloadGroup that the book's machine belongs to.
var forumGroup = kube.Ref{APIVersion: "networking.istio.io/v1", Kind: "WorkloadGroup", Namespace: "forum-services", Name: "forum"}

// A machine whose group somebody deleted is told so by istiod; the operator must read the group's name, and nothing more is needed
// than to make the group again.
func TestUnknownGroupIsNamedAndHealsByItself(t *testing.T) {
	bed := testbed.New(t, mesh.Options{})
	vm := bed.VM(t, testbed.Forum)
	vm.App(t, 8080)
	if err := bed.Mesh.Kube.Delete(t.Context(), forumGroup); err != nil {
		t.Fatal(err)
	}
	vm.StartAgent(t)
	vm.AwaitStatus(t, "the missing group is named", func(s testbed.Status) error {
		return says(s, "forum-services/forum")
	})
	checkNames(t, vm, map[string]string{"www.example.com": "192.0.2.80"})
	bed.Apply(t, testbed.Objects)
	vm.AwaitStatus(t, "the agent joins once the group is there", joined)
	vm.Healthy(t, "True")
}

// istiod says the same for every bad token; the agent must find out what is wrong with this one, and take a good one up.
func TestBadTokenIsExplainedAndAGoodOneTakenUp(t *testing.T) {
	bed := testbed.New(t, mesh.Options{})
	vm := bed.VM(t, testbed.Forum)
	expired := token(t, bed, mesh.Audience, -5*time.Minute)
	vm.WriteToken(t, expired)
	vm.StartAgent(t)
	vm.AwaitStatus(t, "an expired token is called expired", func(s testbed.Status) error { return says(s, "expired") })
	other := token(t, bed, "vault", time.Hour)
	vm.WriteToken(t, other)
	vm.AwaitStatus(t, "a token for another audience is told by it", func(s testbed.Status) error { return says(s, "vault") })
	good := token(t, bed, mesh.Audience, time.Hour)
	vm.WriteToken(t, good)
	vm.AwaitStatus(t, "the agent joins with a good token", joined)
	log := vm.AgentLog(t)
	for _, secret := range []string{expired, other, good} {
		if signature := secret[strings.LastIndex(secret, ".")+1:]; strings.Contains(log, signature) {
			t.Error("a token is in the log")
		}
	}
}

// token makes a token for the book's machine.
func token(t *testing.T, bed *testbed.Bed, audience string, ttl time.Duration) string {
	t.Helper()
	tok, err := bed.Mesh.Token(t.Context(), "forum-services", "forum-sa", audience, ttl)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// says returns nil when the agent's status tells this text to its reader.
func says(s testbed.Status, text string) error {
	told := append(s.Degraded, s.Identity.LastError, s.XDS.LastError)
	for _, sentence := range told {
		if strings.Contains(sentence, text) {
			return nil
		}
	}
	return fmt.Errorf("status says %q", told)
}
