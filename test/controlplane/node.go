package controlplane

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// node is what a stream's first request says of its proxy. It is frozen for the life of the stream.
type node struct {
	id             string // sidecar~10.0.0.1~name.namespace~namespace.svc.cluster.local
	addrs          []string
	namespace      string
	serviceAccount string
	group          string // of automatic registration; empty means none
	network        string
	clusterID      string
	labels         map[string]string
	locality       string // region/zone/subzone
	probed         bool   // PROXY_CONFIG has a readinessProbe
}

// nodeMetadata are the keys of a node's metadata that registration reads. Istio: pkg/model/proxy.go, NodeMetadata.
type nodeMetadata struct {
	InstanceIPs       string            `json:"INSTANCE_IPS"` // comma-separated
	Namespace         string            `json:"NAMESPACE"`
	ServiceAccount    string            `json:"SERVICE_ACCOUNT"`
	AutoRegisterGroup string            `json:"AUTO_REGISTER_GROUP"`
	Network           string            `json:"NETWORK"`
	ClusterID         string            `json:"CLUSTER_ID"`
	Labels            map[string]string `json:"LABELS"`
	ProxyConfig       *struct {
		ReadinessProbe json.RawMessage `json:"readinessProbe"`
	} `json:"PROXY_CONFIG"`
}

// localityLabel is left out of an entry's labels: it has a field of its own there. Istio: pkg/model/locality.go.
const localityLabel = "istio-locality"

// parseNode reads a node as istiod does; errors are the statuses istiod ends the stream with.
// Istio: pilot/pkg/xds/ads.go initProxyMetadata, pilot/pkg/model/context.go ParseServiceNodeWithMetadata.
func parseNode(n *corev3.Node) (node, error) {
	if n.GetId() == "" {
		return node{}, status.Error(codes.InvalidArgument, "missing node information")
	}
	var meta nodeMetadata
	if n.GetMetadata() != nil {
		raw, err := n.GetMetadata().MarshalJSON()
		if err != nil {
			return node{}, status.Error(codes.InvalidArgument, err.Error())
		}
		if err := json.Unmarshal(raw, &meta); err != nil {
			return node{}, status.Error(codes.InvalidArgument, err.Error())
		}
	}
	parts := strings.Split(n.GetId(), "~")
	if len(parts) != 4 {
		return node{}, status.Errorf(codes.InvalidArgument, "missing parts in the service node %q", n.GetId())
	}
	if !slices.Contains([]string{"sidecar", "router", "waypoint", "ztunnel"}, parts[0]) {
		return node{}, status.Errorf(codes.InvalidArgument, "invalid node type in the service node %q", n.GetId())
	}
	out := node{
		id: n.GetId(), namespace: meta.Namespace, serviceAccount: meta.ServiceAccount, group: meta.AutoRegisterGroup,
		network: meta.Network, clusterID: meta.ClusterID, labels: meta.Labels,
		probed: meta.ProxyConfig != nil && len(meta.ProxyConfig.ReadinessProbe) > 0 && string(meta.ProxyConfig.ReadinessProbe) != "null",
	}
	switch {
	case validAddrs(strings.Split(meta.InstanceIPs, ",")):
		out.addrs = strings.Split(meta.InstanceIPs, ",")
	case validAddrs(parts[1:2]):
		out.addrs = parts[1:2]
	default:
		return node{}, status.Error(codes.InvalidArgument, "no valid IP address in the service node id or metadata")
	}
	if l := n.GetLocality(); l.GetRegion() != "" {
		out.locality = strings.TrimRight(l.GetRegion()+"/"+l.GetZone()+"/"+l.GetSubZone(), "/")
	}
	return out, nil
}

// authorize checks that the caller may act as the node. Istio: pilot/pkg/xds/auth.go, checkConnectionIdentity.
func (n node) authorize(who caller) error {
	// A node without a namespace is checked against the one in its id's domain.
	namespace := n.namespace
	if parts := strings.Split(strings.Split(n.id, "~")[3], "."); namespace == "" && len(parts) > 1 {
		namespace = parts[0]
	}
	id, err := parseSPIFFE(who.identity)
	if err == nil && (namespace == "" || id.namespace == namespace) && (n.serviceAccount == "" || id.serviceAccount == n.serviceAccount) {
		return nil
	}
	return status.Errorf(codes.PermissionDenied, "authorization failed: no identities ([%s]) matched %s/%s", who.identity, namespace, n.serviceAccount)
}

// entryName is <group>-<IP>[-<network>], cut from the left to 253 characters; empty for a node that does not register.
// Istio: pilot/pkg/autoregistration/controller.go, autoregisteredWorkloadEntryName.
func (n node) entryName() string {
	if n.group == "" || n.namespace == "" {
		return ""
	}
	name := n.group + "-" + strings.ReplaceAll(n.addrs[0], ":", "-")
	if n.network != "" {
		name += "-" + n.network
	}
	return name[max(0, len(name)-253):]
}

// entry is the WorkloadEntry the group's template and the node make together; the node's labels win over the group's.
func (n node) entry(g Group) Entry {
	e := Entry{
		Name: n.entryName(), Namespace: n.namespace, Group: g.Name, Node: n.id, Address: n.addrs[0], ServiceAccount: g.ServiceAccount,
		Network: g.Network, Labels: map[string]string{}, Locality: n.locality, HealthChecked: n.probed,
	}
	if n.network != "" {
		e.Network = n.network
	}
	for _, labels := range []map[string]string{g.TemplateLabels, g.Labels, n.labels} {
		for k, v := range labels {
			e.Labels[k] = v
		}
	}
	if n.labels != nil {
		delete(e.Labels, localityLabel)
	}
	return e
}

// mayControl checks the caller against an entry. Istio answers with a plain error, which gRPC calls Unknown.
// Istio: pilot/pkg/autoregistration/controller.go, ensureProxyCanControlEntry.
func mayControl(who caller, e Entry) error {
	id, err := parseSPIFFE(who.identity)
	switch {
	case err != nil:
		return fmt.Errorf("registration of WorkloadEntry requires a verified identity")
	case id.namespace != e.Namespace:
		return fmt.Errorf("registration of WorkloadEntry namespace mismatch: %q vs %q", id.namespace, e.Namespace)
	case e.ServiceAccount != "" && id.serviceAccount != e.ServiceAccount:
		return fmt.Errorf("registration of WorkloadEntry service account mismatch: %q vs %q", id.serviceAccount, e.ServiceAccount)
	}
	return nil
}

func validAddrs(addrs []string) bool {
	return !slices.ContainsFunc(addrs, func(a string) bool {
		_, err := netip.ParseAddr(a)
		return err != nil
	})
}
