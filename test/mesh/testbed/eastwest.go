package testbed

import (
	"fmt"
	"testing"

	"wingman/test/mesh"
)

// ClusterNetwork is the name of the cluster's network where machines have one of their own.
const ClusterNetwork = "west-network"

// TwoNetworks is what mesh.Options.MeshNetworks must say for EastWestGateway.
const TwoNetworks = `networks:
  ` + ClusterNetwork + `:
    endpoints: [{fromRegistry: ` + mesh.ClusterID + `}]
    gateways: [{registryServiceName: istio-eastwestgateway.istio-system.svc.cluster.local, port: 15443}]
`

// GatewayIP is the address of the east-west gateway.
const GatewayIP = "10.99.250.2"

// EastWestGateway starts the book's gateway between the cluster's network and that of the machines: istiod at 15012 and 15017 by
// passing TLS through, services at 15443 by their SNI. The mesh must have been started with TwoNetworks.
func (b *Bed) EastWestGateway(t testing.TB) *Pod {
	t.Helper()
	b.Apply(t, `
apiVersion: v1
kind: Namespace
metadata: {name: istio-system, labels: {topology.istio.io/network: `+ClusterNetwork+`}}
---
apiVersion: v1
kind: Service
metadata:
  name: istio-eastwestgateway
  namespace: istio-system
  labels: {istio: eastwestgateway, app: istio-eastwestgateway, topology.istio.io/network: `+ClusterNetwork+`}
spec:
  selector: {istio: eastwestgateway}
  externalIPs: [`+GatewayIP+`]
  ports:
  - {name: status-port, port: 15021}
  - {name: tls, port: 15443}
  - {name: tls-istiod, port: 15012}
  - {name: tls-webhook, port: 15017}
---
apiVersion: v1
kind: Service
metadata: {name: istiod, namespace: istio-system}
spec:
  ports:
  - {name: https-dns, port: 15012}
  - {name: https-webhook, port: 443, targetPort: 15017}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: istiod-gateway, namespace: istio-system}
spec:
  selector: {istio: eastwestgateway}
  servers:
  - {port: {name: tls-istiod, number: 15012, protocol: tls}, tls: {mode: PASSTHROUGH}, hosts: ["*"]}
  - {port: {name: tls-istiodwebhook, number: 15017, protocol: tls}, tls: {mode: PASSTHROUGH}, hosts: ["*"]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: istiod-vs, namespace: istio-system}
spec:
  hosts: ["*"]
  gateways: [istiod-gateway]
  tls:
  - match: [{port: 15012, sniHosts: ["*"]}]
    route: [{destination: {host: istiod.istio-system.svc.cluster.local, port: {number: 15012}}}]
  - match: [{port: 15017, sniHosts: ["*"]}]
    route: [{destination: {host: istiod.istio-system.svc.cluster.local, port: {number: 443}}}]
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: cross-network-gateway, namespace: istio-system}
spec:
  selector: {istio: eastwestgateway}
  servers:
  - {port: {number: 15443, name: tls, protocol: TLS}, tls: {mode: AUTO_PASSTHROUGH}, hosts: ["*.local"]}
`)
	gateway := b.Gateway(t, PodSpec{
		Name: "eastwest", Addr: GatewayIP + "/24", Namespace: mesh.SystemNamespace, Account: "istio-eastwestgateway-service-account",
		Labels:  map[string]string{"istio": "eastwestgateway", "app": "istio-eastwestgateway"},
		Network: ClusterNetwork,
		Service: "istio-eastwestgateway",
		Ports:   map[string]int{"status-port": 15021, "tls": 15443, "tls-istiod": 15012, "tls-webhook": 15017},
	})
	// istiod runs at the test's side of every cable: to the gateway, that is its own.
	b.Apply(t, fmt.Sprintf(`
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: istiod, namespace: istio-system, labels: {kubernetes.io/service-name: istiod}}
addressType: IPv4
endpoints: [{addresses: [%s], conditions: {ready: true}}]
ports: [{name: https-dns, port: 15012}, {name: https-webhook, port: 15017}]
`, gateway.Machine.Gateway()))
	return gateway
}
