package controlplane_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"wingman/test/contract"
	"wingman/test/controlplane"
)

// underContract is the stand-in as the contract tests see a control plane.
type underContract struct{ *controlplane.Server }

func (underContract) TrustDomain() string { return "cluster.local" }

func (underContract) ClusterID() string { return "west-cluster" }

func (u underContract) MintToken(_ context.Context, r contract.TokenRequest) (string, error) {
	o := controlplane.TokenOptions{Namespace: r.Namespace, ServiceAccount: r.ServiceAccount, Audience: r.Audience}
	if r.Expired {
		o.TTL = -time.Minute
	}
	return u.Server.MintToken(o)
}

func (u underContract) AddGroup(_ context.Context, g contract.Group) error {
	u.Server.AddGroup(controlplane.Group{Namespace: g.Namespace, Name: g.Name, ServiceAccount: g.ServiceAccount, Labels: g.Labels})
	return nil
}

func (u underContract) AddService(_ context.Context, namespace, name string) (string, error) {
	u.Server.AddService(namespace, name, "10.96.0.99")
	return "10.96.0.99", nil
}

func (u underContract) WaitEntries(ctx context.Context, namespace string, match func([]contract.Entry) bool) ([]contract.Entry, error) {
	var seen []contract.Entry
	err := u.Server.WaitEntries(ctx, func(all []controlplane.Entry) bool {
		seen = nil
		for _, e := range all {
			if e.Namespace != namespace {
				continue
			}
			view := contract.Entry{Name: e.Name, Address: e.Address, Network: e.Network, ServiceAccount: e.ServiceAccount, Labels: e.Labels}
			if e.Condition != nil {
				view.Healthy, view.Message = e.Condition.Status, e.Condition.Message
			}
			seen = append(seen, view)
		}
		return match(slices.Clone(seen))
	})
	return seen, err
}

func TestContract(t *testing.T) {
	for _, c := range []struct {
		name string
		cfg  controlplane.Config
	}{
		{"self-signed root", controlplane.Config{Grace: 2 * time.Second, Clusters: []string{"west-cluster"}}},
		{"plugged-in intermediate with RSA keys", controlplane.Config{Grace: 2 * time.Second, Intermediate: true, RSA: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			contract.Run(t, underContract{controlplane.Run(t, c.cfg)})
		})
	}
}

func TestContractConnectionAge(t *testing.T) {
	t.Parallel()
	age, grace := 3*time.Second, time.Second
	contract.RunConnectionAge(t, underContract{controlplane.Run(t, controlplane.Config{MaxConnectionAge: age, MaxConnectionAgeGrace: grace})}, age, grace)
}
