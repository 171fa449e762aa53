package testbed

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"wingman/test/mesh"
	"wingman/test/mesh/machine"
	"wingman/test/mesh/proc"
)

// Pod is a machine that the cluster holds for a pod: it has a Pod object, running and ready, endpoints, and Istio's own agent
// with Envoy, as a sidecar or as a gateway.
type Pod struct {
	*machine.Machine
	*Istio
	spec PodSpec
}

// PodSpec describes a pod.
type PodSpec struct {
	Name, Addr         string // pod and host name, address/bits
	Namespace, Account string // the account is made when it is missing
	Labels             map[string]string
	Network            string         // topology.istio.io/network; empty: none
	Service            string         // the pod is the one endpoint of this Service, which must exist; empty: of none
	Ports              map[string]int // its endpoints: port name → port
}

// Name is the pod's name, and its machine's.
func (p *Pod) Name() string { return p.spec.Name }

// Pod starts a pod with a sidecar, whose capture rules are those of the injection template. The application is the caller's:
// see App.
func (b *Bed) Pod(t testing.TB, s PodSpec) *Pod {
	t.Helper()
	p := b.pod(t, s)
	ctx, cancel := step(t)
	defer cancel()
	id := fmt.Sprint(machine.ProxyID)
	if _, err := p.Run(ctx, "/usr/local/bin/pilot-agent", "istio-iptables", "-p", "15001", "-z", "15006", "-u", id, "-g", id,
		"-m", "REDIRECT", "-i", "*", "-x", "", "-b", "*", "-d", "15090,15021,15020", "--redirect-dns"); err != nil {
		t.Fatal(err)
	}
	p.start(t, b, "sidecar", map[string]string{"ISTIO_META_INTERCEPTION_MODE": "REDIRECT", "ISTIO_META_DNS_CAPTURE": "true"})
	return p
}

// Gateway starts a gateway: Envoy as a router, which captures nothing. Its Gateway objects are the caller's.
func (b *Bed) Gateway(t testing.TB, s PodSpec) *Pod {
	t.Helper()
	p := b.pod(t, s)
	env := map[string]string{"ISTIO_META_UNPRIVILEGED_POD": "true"}
	if s.Network != "" {
		env["ISTIO_META_REQUESTED_NETWORK_VIEW"] = s.Network
	}
	p.start(t, b, "router", env)
	return p
}

// pod makes the machine and the objects, and what a pod's volumes hold.
func (b *Bed) pod(t testing.TB, s PodSpec) *Pod {
	t.Helper()
	labels := map[string]string{
		"security.istio.io/tlsMode":           "istio", // without it no endpoint crosses networks
		"service.istio.io/canonical-name":     s.Name,
		"service.istio.io/canonical-revision": "latest",
	}
	if s.Network != "" {
		labels["topology.istio.io/network"] = s.Network
	}
	for k, v := range s.Labels {
		labels[k] = v
	}
	s.Labels = labels
	p := &Pod{spec: s}
	p.Machine = b.machine(t, machine.Config{Name: s.Name, Addr: netip.MustParsePrefix(s.Addr), Bind: b.istioPackage()})
	prepareIstio(t, p.Machine)
	b.Apply(t, p.objects())
	b.credentials(t, p.Machine, s.Namespace, s.Account)
	var lines []string
	for k, v := range labels {
		lines = append(lines, fmt.Sprintf("%s=%q\n", k, v))
	}
	slices.Sort(lines)
	if err := p.WriteFile("/etc/istio/pod/labels", strings.Join(lines, ""), 0o644, 0); err != nil {
		t.Fatal(err)
	}
	return p
}

// objects are what the controllers and the kubelet of a cluster would have made.
func (p *Pod) objects() string {
	s := p.spec
	yaml := fmt.Sprintf(`
apiVersion: v1
kind: ServiceAccount
metadata: {name: %[3]s, namespace: %[2]s}
---
apiVersion: v1
kind: Pod
metadata:
  name: %[1]s
  namespace: %[2]s
  labels: %[4]s
spec:
  serviceAccountName: %[3]s
  nodeName: node
  containers: [{name: app, image: app}]
status:
  phase: Running
  podIP: %[5]s
  podIPs: [{ip: %[5]s}]
  conditions: [{type: Ready, status: "True"}]
`, s.Name, s.Namespace, s.Account, jsonOf(s.Labels), p.IP())
	if s.Service == "" {
		return yaml
	}
	var ports []string
	for name, port := range s.Ports {
		ports = append(ports, fmt.Sprintf("{name: %s, port: %d, protocol: TCP}", name, port))
	}
	return yaml + fmt.Sprintf(`
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: %[1]s
  namespace: %[2]s
  labels: {kubernetes.io/service-name: %[3]s}
addressType: IPv4
endpoints:
- addresses: [%[4]s]
  conditions: {ready: true}
  nodeName: node
  targetRef: {kind: Pod, name: %[1]s, namespace: %[2]s}
ports: [%[5]s]
`, s.Name, s.Namespace, s.Service, p.IP(), strings.Join(ports, ", "))
}

// start runs pilot-agent as the injection template does.
func (p *Pod) start(t testing.TB, b *Bed, role string, env map[string]string) {
	t.Helper()
	s := p.spec
	vars := map[string]string{
		"PILOT_CERT_PROVIDER":      "istiod",
		"CA_ADDR":                  fmt.Sprintf("%s:%d", mesh.DiscoveryHost, mesh.DiscoveryPort),
		"POD_NAME":                 s.Name,
		"POD_NAMESPACE":            s.Namespace,
		"INSTANCE_IP":              p.IP().String(),
		"HOST_IP":                  p.Gateway().String(),
		"SERVICE_ACCOUNT":          s.Account,
		"TRUST_DOMAIN":             mesh.TrustDomain,
		"ISTIO_META_CLUSTER_ID":    mesh.ClusterID,
		"ISTIO_META_MESH_ID":       mesh.MeshID,
		"ISTIO_META_NODE_NAME":     "node",
		"ISTIO_META_WORKLOAD_NAME": s.Name,
		"ISTIO_META_NETWORK":       s.Network,
		"ISTIO_BOOTSTRAP":          "/var/lib/istio/envoy/envoy_bootstrap_tmpl.json",
	}
	for k, v := range env {
		vars[k] = v
	}
	var environ []string
	for k, v := range vars {
		if v != "" {
			environ = append(environ, k+"="+v)
		}
	}
	p.Istio = startIstio(t, p.Machine, filepath.Join(b.logs, s.Name+".istio.log"), proc.Spec{
		Path: "/usr/local/bin/pilot-agent",
		Args: []string{"proxy", role, "--domain", s.Namespace + ".svc.cluster.local", "--proxyLogLevel=warning", "--log_output_level=default:info"},
		Env:  environ,
	})
}

// jsonOf is a map of texts as JSON, which is YAML too.
func jsonOf(m map[string]string) string {
	b, err := json.Marshal(m)
	if err != nil {
		panic(err) // maps of strings always marshal
	}
	return string(b)
}
