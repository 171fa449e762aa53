package spire

import (
	"context"
	"crypto/tls"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"wingman/bootstrap/identity"
)

const workload = "spiffe://cluster.local/ns/forum-services/sa/forum-sa"

// TestARealSPIREIsTheSourceOfTheIdentity is the life of a machine whose certificates come from SPIRE: no entry yet, a first certificate, rotations,
// a federated trust domain, the agent away, the agent back.
func TestARealSPIREIsTheSourceOfTheIdentity(t *testing.T) {
	if os.Getenv("WINGMAN_SPIRE") != "1" {
		t.Skip("needs SPIRE, which takes ten minutes to build the first time: WINGMAN_SPIRE=1 make test-spire")
	}
	s := Start(t, Options{})
	dir := t.TempDir()
	m, err := identity.New(identity.Config{
		CAAddress: "istiod.istio-system.svc:15012", SPIFFEID: workload, StateDir: filepath.Join(dir, "state"), OutputDir: filepath.Join(dir, "certs"),
		RootFile: filepath.Join(dir, "certs/root-cert.pem"), WorkloadSocket: s.Socket(),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	until := func(what string, is func(identity.State) bool) identity.State {
		t.Helper()
		for deadline := time.Now().Add(patience); ; {
			st := m.State()
			if is(st) {
				return st
			}
			if time.Now().After(deadline) {
				t.Fatalf("not %s: %+v", what, st)
			}
			<-time.After(10 * time.Millisecond)
		}
	}

	refused := until("refused", func(st identity.State) bool { return strings.Contains(st.LastError, "knows no identity") })
	t.Log("without an entry: ", refused.LastError)
	began := time.Now()
	s.Entry(workload, os.Getuid(), "-x509SVIDTTL", "20")
	first := until("in possession of a certificate", func(st identity.State) bool { return st.Serial != "" && st.LastError == "" })
	t.Logf("%v after the entry was made: %s, until %v, %s", time.Since(began).Round(time.Millisecond), first.Serial, first.NotAfter, first.Issuer)
	// The pair on disk is one, at any time: key and chain are looked at through one generation, as applications should.
	pair := func() string {
		t.Helper()
		current, err := filepath.EvalSymlinks(filepath.Join(dir, "certs", "key.pem"))
		if err != nil {
			t.Fatal(err)
		}
		c, err := tls.LoadX509KeyPair(filepath.Join(filepath.Dir(current), "cert-chain.pem"), current)
		if err != nil {
			t.Fatal(err)
		}
		return c.Leaf.SerialNumber.Text(16)
	}
	pair()
	serials := []string{first.Serial}
	for range 2 {
		st := until("renewed by SPIRE", func(st identity.State) bool { return !slices.Contains(serials, st.Serial) })
		pair()
		if left := time.Until(st.NotAfter); left < 10*time.Second || st.Health == identity.Degraded {
			t.Errorf("%v left, %s", left, st.Health)
		}
		serials = append(serials, st.Serial)
	}
	t.Logf("two rotations of 20 s certificates within %v", time.Since(began).Round(time.Second))

	other := Start(t, Options{TrustDomain: "other.mesh"})
	s.Federate("other.mesh", other.Bundle())
	id := strings.TrimSpace(strings.TrimPrefix(strings.SplitN(s.Server("entry", "show", "-spiffeID", workload), "\n", 3)[1], "Entry ID         :"))
	s.Server("entry", "update", "-entryID", id, "-parentID", s.node(), "-spiffeID", workload, "-selector", "unix:uid:"+uid(), "-federatesWith", "spiffe://other.mesh")
	until("in trust of the federated domain", func(st identity.State) bool {
		return slices.ContainsFunc(st.Roots, func(r identity.RootState) bool { return r.Source == "federated" })
	})
	// The entry has SPIRE's default life now, an hour.
	last := until("renewed for an hour", func(st identity.State) bool { return time.Until(st.NotAfter) > 30*time.Minute })

	s.StopAgent()
	gone := until("told that the agent is away", func(st identity.State) bool { return st.LastError != "" })
	t.Log("without an agent: ", gone.LastError)
	if gone.Serial != last.Serial || gone.Phase != identity.Valid || pair() == "" {
		t.Errorf("%s, %s; want the last good one, %s", gone.Serial, gone.Phase, last.Serial)
	}
	s.StartAgent()
	until("back", func(st identity.State) bool { return st.LastError == "" && st.Phase == identity.Valid })
}

func uid() string { return strconv.Itoa(os.Getuid()) }
