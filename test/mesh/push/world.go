package push

import (
	"fmt"
	"strings"
)

// The services of the mesh. One ServiceEntry holds many: to istiod and its pushes they are as many services as hosts.
const (
	services = 10_000
	perEntry = 100
	outside  = "many"
)

// world is a YAML stream with the services: HTTP at port 80, one endpoint each, addresses from istiod.
func world() string {
	var b strings.Builder
	fmt.Fprintf(&b, "apiVersion: v1\nkind: Namespace\nmetadata: {name: %s}\n", outside)
	for first := 0; first < services; first += perEntry {
		var hosts []string
		for n := range perEntry {
			hosts = append(hosts, fmt.Sprintf("service-%05d.%s.example", first+n, outside))
		}
		b.WriteString("---\n" + serviceEntry(fmt.Sprintf("services-%05d", first), hosts))
	}
	return b.String()
}

func serviceEntry(name string, hosts []string) string {
	return fmt.Sprintf(`apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: %s, namespace: %s}
spec:
  hosts: [%s]
  ports: [{number: 80, name: http, protocol: HTTP}]
  location: MESH_INTERNAL
  resolution: STATIC
  endpoints: [{address: 192.0.2.10}]
`, name, outside, strings.Join(hosts, ", "))
}

// change is the one service that comes and goes: the n-th takes the place of the one before.
func change(n int) (yaml, cluster string) {
	host := fmt.Sprintf("changing-%05d.%s.example", n, outside)
	return serviceEntry("changing", []string{host}), "outbound|80||" + host
}
