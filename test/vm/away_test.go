package vm

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"wingman/test/controlplane"
	"wingman/test/files"
)

// noNetwork is how long a boot without network lasts; WINGMAN_VM_NO_NETWORK=60s is for a person's patience.
func noNetwork(t testing.TB) time.Duration {
	t.Helper()
	text := os.Getenv("WINGMAN_VM_NO_NETWORK")
	if text == "" {
		return 10 * time.Second
	}
	limit, err := time.ParseDuration(text)
	if err != nil {
		t.Fatalf("WINGMAN_VM_NO_NETWORK: %v", err)
	}
	return limit
}

// bootWithoutNetwork is as long as a boot takes at most, on a computer that does other things too; one that waits for the network waits for two minutes.
const bootWithoutNetwork = time.Minute

// cable switches a segment on or off: netlink.LinkSetUp or LinkSetDown.
func (s *Segment) cable(t testing.TB, set func(netlink.Link) error) {
	t.Helper()
	if err := s.Do(func() error {
		link, err := netlink.LinkByName(bridge)
		if err != nil {
			return err
		}
		return set(link)
	}); err != nil {
		t.Fatal(err)
	}
}

// mustRun fails the test when the machine's systemd is not content, or still has something to start.
func (m *Machine) mustRun(when string) {
	m.t.Helper()
	if got, err := m.Try("systemctl", "is-system-running"); err != nil || got != "running" {
		m.t.Errorf("%s the machine is %s, want running\n%s\n%s", when, got, m.Run("systemctl", "--failed", "--no-legend"), m.lastWords())
	}
	if jobs := m.Run("systemctl", "list-jobs", "--no-legend"); jobs != "" {
		m.t.Errorf("%s jobs wait:\n%s", when, jobs)
	}
}

// Nothing of a machine waits for a mesh that it cannot join, and nothing of it is touched.
func TestAMachineThatCannotJoinIsLeftAlone(t *testing.T) {
	const token = "/var/lib/expired-token"
	var off time.Time
	m := newMesh(t, func(m *mesh) {
		m.Write(settingsFile, m.Read(settingsFile)+"identity: {tokenFile: "+token+"}\n", 0o644)
		expired, err := m.istiod.MintToken(controlplane.TokenOptions{Namespace: files.Namespace, ServiceAccount: files.ServiceAccount, TTL: -time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		m.Write(token, expired, 0o644)
		m.segment.cable(t, netlink.LinkSetDown)
		off = time.Now()
	})
	bare := func(when string) {
		t.Helper()
		if out := m.rules(); ours(out) {
			t.Errorf("%s rules of ours are there:\n%s", when, out)
		}
	}
	limit := noNetwork(t)
	if took := time.Since(off); took > bootWithoutNetwork {
		t.Errorf("the boot took %s: it waited for the network", took)
	}
	m.mustRun("without network")
	m.waitActive("wingman.service")
	bare("without network")
	m.await("the time without network", func() bool { return time.Since(off) > limit })
	m.mustRun("still without network")

	m.segment.cable(t, netlink.LinkSetUp)
	on := time.Now()
	m.mustResolve("www.example.com", "192.0.2.80")
	t.Logf("public names after %s of network", time.Since(on))
	m.await("a word on the token", func() bool {
		r, err := m.status()
		return err == nil && strings.Contains(strings.Join(r.Degraded, "\n")+strings.Join(r.NotReady, "\n"), "expired")
	})
	bare("with a token that has expired")
	if n := len(m.istiod.Entries()); n > 0 {
		t.Errorf("there are %d WorkloadEntries, want none", n)
	}
}
