// Package contract holds tests that every control plane Wingman is tried against must pass, so that the stand-in of
// test/controlplane cannot drift from the real istiod: test/controlplane runs them against the former, test/mesh against the latter.
//
// They speak raw gRPC and know nothing of Wingman's agent: what they show is what istiod does, not what the agent makes
// of it. Run covers certificates, registration, health, the name table and streams that carry Envoy's requests; RunConnectionAge needs a control plane that
// ends connections, and is apart because that would disturb the others.
package contract

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"
)

// ControlPlane is what the tests need of a control plane beside its port. Methods with a context block no longer than it lives.
type ControlPlane interface {
	// Addr is the host:port that serves CA and ADS, ServerName a name in its certificate, RootPEM what that chains to.
	Addr() string
	ServerName() string
	RootPEM() []byte
	// TrustDomain is that of every identity, such as cluster.local.
	TrustDomain() string
	// ClusterID is the cluster that tokens come from; sent as gRPC metadata.
	ClusterID() string
	// Grace is how long an entry outlives its last stream.
	Grace() time.Duration

	// MintToken makes a service account token, and the namespace and account if they are missing.
	MintToken(ctx context.Context, r TokenRequest) (string, error)
	// AddGroup makes a WorkloadGroup, and its namespace if that is missing.
	AddGroup(ctx context.Context, g Group) error
	// AddService makes a Service with one port in an existing namespace and returns its cluster address.
	AddService(ctx context.Context, namespace, name string) (string, error)
	// WaitEntries blocks until match is true of the WorkloadEntries of a namespace, and returns them. It looks at
	// once, and again after each change.
	WaitEntries(ctx context.Context, namespace string, match func([]Entry) bool) ([]Entry, error)
}

// TokenRequest describes a service account token.
type TokenRequest struct {
	Namespace, ServiceAccount string
	Audience                  string // never empty
	Expired                   bool   // properly signed, but its time is over; else it is good for at least ten minutes
}

// Group is a WorkloadGroup: spec.metadata.labels and spec.template.serviceAccount.
type Group struct {
	Namespace, Name, ServiceAccount string
	Labels                          map[string]string
}

// Entry is a WorkloadEntry.
type Entry struct {
	Name, Address, Network, ServiceAccount string
	Labels                                 map[string]string
	// Healthy is the status of the condition of that name: "True", "False", or empty without the condition.
	Healthy string
	Message string
}

const (
	namespace   = "forum-services"
	account     = "forum-sa"
	caAudience  = "istio-ca"
	stepTimeout = 30 * time.Second // for one thing that should take milliseconds; a loaded machine is slow
)

// Run runs every test but the one of RunConnectionAge.
func Run(t *testing.T, cp ControlPlane) {
	for _, group := range []struct {
		name string
		run  func(*testing.T, ControlPlane)
	}{
		{"certificates", certificates},
		{"registration", registration},
		{"health", health},
		{"name table", nameTable},
		{"Envoy's stream", envoyStream},
	} {
		t.Run(group.name, func(t *testing.T) { group.run(t, cp) })
	}
}

// vmCount makes the machines of all tests differ in address and group.
var vmCount atomic.Uint32

// vm is one machine that joins: a node with a group of its own.
type vm struct {
	group, address, network string
	namespace, account      string            // what the node says
	labels                  map[string]string // of the node
	probed                  bool              // the node carries a readinessProbe
}

// newVM returns a machine with a group in the control plane.
func newVM(t *testing.T, cp ControlPlane) vm {
	t.Helper()
	n := vmCount.Add(1)
	m := vm{
		group: fmt.Sprintf("forum-%d-%d", time.Now().UnixNano()%1e9, n), address: fmt.Sprintf("10.99.%d.%d", n/250, n%250+2),
		network: "vm-network", namespace: namespace, account: account, probed: true,
		labels: map[string]string{"app": "forum", "from": "node"},
	}
	if err := cp.AddGroup(step(t), Group{
		Namespace: namespace, Name: m.group, ServiceAccount: account, Labels: map[string]string{"from": "group", "team": "forum"},
	}); err != nil {
		t.Fatalf("add group %s: %v", m.group, err)
	}
	return m
}

// entryName is the name istiod must give the machine's entry.
func (m vm) entryName() string { return m.group + "-" + m.address + "-" + m.network }

// step is a context for one step of a test.
func step(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), stepTimeout)
	t.Cleanup(cancel)
	return ctx
}

// waitEntry blocks until match is true of the entry of that name; a nil match asks only that it is there.
func waitEntry(t *testing.T, cp ControlPlane, name string, match func(Entry) bool) Entry {
	t.Helper()
	var found Entry
	got, err := cp.WaitEntries(step(t), namespace, func(all []Entry) bool {
		for _, e := range all {
			if e.Name == name && (match == nil || match(e)) {
				found = e
				return true
			}
		}
		return false
	})
	if err != nil {
		t.Fatalf("entry %s: %v; entries: %+v", name, err, got)
	}
	return found
}

// waitNoEntry blocks until no entry has that name.
func waitNoEntry(t *testing.T, cp ControlPlane, name string, limit time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	_, err := cp.WaitEntries(ctx, namespace, func(all []Entry) bool {
		for _, e := range all {
			if e.Name == name {
				return false
			}
		}
		return true
	})
	if err != nil {
		t.Fatalf("entry %s is still there after %s: %v", name, limit, err)
	}
}

// staysFor fails if the entry of that name goes within d.
func staysFor(t *testing.T, cp ControlPlane, name string, d time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	_, err := cp.WaitEntries(ctx, namespace, func(all []Entry) bool {
		for _, e := range all {
			if e.Name == name {
				return false
			}
		}
		return true
	})
	if err == nil {
		t.Fatalf("entry %s went within %s", name, d)
	}
}
