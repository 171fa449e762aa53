package join

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"wingman/test/mesh"
	"wingman/test/mesh/testbed"
)

// Somebody replaced the mesh's CA. The operator brings the new root and a fresh token to the machine, and touches nothing else:
// the certificate in hand is of the old CA, so istiod ends every handshake that shows it, and the agent has to ask for a
// new one by the token alone.
func TestReplacedCAIsFollowed(t *testing.T) {
	bed := testbed.New(t, mesh.Options{IstiodEnv: shortGrace})
	vm := bed.VM(t, testbed.Forum)
	vm.App(t, 8080)
	vm.StartAgent(t)
	old := vm.AwaitStatus(t, "the agent joins", joined)
	vm.Healthy(t, "True")

	bed.ReplaceCA(t)
	vm.AwaitStatus(t, "the old root is told from the new one", func(s testbed.Status) error { return says(s, "root-cert.pem does not match") })
	vm.WriteRoot(t)
	vm.WriteToken(t, token(t, bed, mesh.Audience, time.Hour))
	vm.AwaitStatus(t, "the agent is a member of the new CA's mesh", func(s testbed.Status) error {
		if s.Identity.Serial == old.Identity.Serial {
			return fmt.Errorf("the certificate is still the old CA's; stream: %s", s.XDS.LastError)
		}
		return joined(s)
	})
	vm.Healthy(t, "True")
	refusals := 0
	for _, line := range vm.Warnings(t) {
		if strings.Contains(line, "no stream to istiod") {
			refusals++
		}
	}
	if refusals > 5 { // istiod gone, its port closed, another root, the certificate refused
		t.Errorf("%d warnings of the stream for one cause after the other, want one each:\n%s", refusals, strings.Join(vm.Warnings(t), ""))
	}
}

// What only a person can mend must show as degraded: `wingman status` then exits with 3, and monitoring sees it.
func TestRefusalShowsAsDegraded(t *testing.T) {
	bed := testbed.New(t, mesh.Options{})
	vm := bed.VM(t, testbed.Forum)
	if err := bed.Mesh.Kube.Delete(t.Context(), forumGroup); err != nil {
		t.Fatal(err)
	}
	vm.StartAgent(t)
	vm.AwaitStatus(t, "the missing group shows as degraded", func(s testbed.Status) error {
		for _, sentence := range s.Degraded {
			if strings.Contains(sentence, "forum-services/forum") {
				return nil
			}
		}
		return errors.New("degraded is empty; stream: " + s.XDS.LastError)
	})
}
