package mesh_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"wingman/test/contract"
	"wingman/test/mesh"
	"wingman/test/mesh/kube"
)

// underContract is the real istiod as the contract tests see a control plane.
type underContract struct {
	*mesh.Mesh
	root  []byte
	grace time.Duration
}

func newUnderContract(t *testing.T, o mesh.Options, grace time.Duration) underContract {
	t.Helper()
	o.IstiodEnv = map[string]string{"PILOT_WORKLOAD_ENTRY_GRACE_PERIOD": grace.String()}
	m := start(t, o)
	root, err := m.Root(t.Context(), mesh.SystemNamespace)
	if err != nil {
		t.Fatal(err)
	}
	return underContract{m, root, grace}
}

func (underContract) Addr() string { return fmt.Sprintf("127.0.0.1:%d", mesh.DiscoveryPort) }

func (underContract) ServerName() string { return mesh.DiscoveryHost }

func (u underContract) RootPEM() []byte { return u.root }

func (underContract) TrustDomain() string { return mesh.TrustDomain }

func (underContract) ClusterID() string { return mesh.ClusterID }

func (u underContract) Grace() time.Duration { return u.grace }

func (u underContract) MintToken(ctx context.Context, r contract.TokenRequest) (string, error) {
	if err := u.Kube.Apply(ctx, fmt.Sprintf(`
apiVersion: v1
kind: Namespace
metadata: {name: %[1]s}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: %[2]s, namespace: %[1]s}
`, r.Namespace, r.ServiceAccount)); err != nil {
		return "", err
	}
	ttl := time.Hour
	if r.Expired {
		ttl = -2 * time.Minute
	}
	return u.Token(ctx, r.Namespace, r.ServiceAccount, r.Audience, ttl)
}

func (u underContract) AddGroup(ctx context.Context, g contract.Group) error {
	labels := ""
	for k, v := range g.Labels {
		labels += fmt.Sprintf("%s: %q, ", k, v)
	}
	return u.Kube.Apply(ctx, fmt.Sprintf(`
apiVersion: v1
kind: Namespace
metadata: {name: %[1]s}
---
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {name: %[2]s, namespace: %[1]s}
spec:
  metadata: {labels: {%[4]s}}
  template: {serviceAccount: %[3]s}
`, g.Namespace, g.Name, g.ServiceAccount, labels))
}

func (u underContract) AddService(ctx context.Context, namespace, name string) (string, error) {
	if err := u.Kube.Apply(ctx, fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: %s, namespace: %s}
spec: {ports: [{name: http, port: 80}]}
`, name, namespace)); err != nil {
		return "", err
	}
	made, err := u.Kube.Get(ctx, kube.Ref{APIVersion: "v1", Kind: "Service", Namespace: namespace, Name: name})
	return made.String("spec", "clusterIP"), err
}

func (u underContract) WaitEntries(ctx context.Context, namespace string, match func([]contract.Entry) bool) ([]contract.Entry, error) {
	var seen []contract.Entry
	ref := kube.Ref{APIVersion: "networking.istio.io/v1", Kind: "WorkloadEntry", Namespace: namespace}
	_, err := u.Kube.Wait(ctx, ref, func(all []kube.Object) bool {
		seen = nil
		for _, o := range all {
			e := contract.Entry{
				Name: o.Name(), Address: o.String("spec", "address"), Network: o.String("spec", "network"),
				ServiceAccount: o.String("spec", "serviceAccount"), Labels: o.Labels("spec", "labels"),
			}
			e.Healthy, e.Message = o.Condition("Healthy")
			seen = append(seen, e)
		}
		return match(seen)
	})
	return seen, err
}

func TestContract(t *testing.T) {
	contract.Run(t, newUnderContract(t, mesh.Options{}, 4*time.Second))
}

func TestContractConnectionAge(t *testing.T) {
	age, grace := 2*time.Second, 10*time.Second // the grace is istiod's constant
	cp := newUnderContract(t, mesh.Options{IstiodArgs: []string{"--keepaliveMaxServerConnectionAge=" + age.String()}}, time.Second)
	contract.RunConnectionAge(t, cp, age, grace)
}
