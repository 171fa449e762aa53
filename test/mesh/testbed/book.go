package testbed

// Objects are what the book's chapter has in the cluster: the two namespaces, service accounts and WorkloadGroups of its virtual
// machine and of a second one, and the Services that they serve and call. Probes run every second here, in the book every five.
const Objects = `
apiVersion: v1
kind: Namespace
metadata: {name: forum-services}
---
apiVersion: v1
kind: Namespace
metadata: {name: istioinaction}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: forum-sa, namespace: forum-services}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: catalog-sa, namespace: istioinaction}
---
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {name: forum, namespace: forum-services}
spec:
  metadata: {labels: {app: forum}}
  template: {serviceAccount: forum-sa, network: vm-network}
  probe:
    initialDelaySeconds: 1
    periodSeconds: 1
    httpGet: {port: 8080, path: /api/healthz}
---
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {name: catalog, namespace: istioinaction}
spec:
  metadata: {labels: {app: catalog}}
  template: {serviceAccount: catalog-sa, network: vm-network}
  probe:
    initialDelaySeconds: 1
    periodSeconds: 1
    httpGet: {port: 3000, path: /health}
---
apiVersion: v1
kind: Service
metadata: {name: forum, namespace: forum-services}
spec:
  selector: {app: forum}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: catalog, namespace: istioinaction}
spec:
  selector: {app: catalog}
  ports: [{name: http, port: 80, targetPort: 3000}]
---
apiVersion: v1
kind: Service
metadata: {name: webapp, namespace: istioinaction}
spec:
  selector: {app: webapp}
  ports: [{name: http, port: 80, targetPort: 8080}]
`

// Forum is the book's virtual machine.
var Forum = Spec{Host: "forum-vm", Addr: "10.99.0.2/24", Namespace: "forum-services", Group: "forum"}

// Catalog is the second one.
var Catalog = Spec{Host: "catalog-vm", Addr: "10.99.1.2/24", Namespace: "istioinaction", Group: "catalog"}
