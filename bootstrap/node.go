package bootstrap

import (
	"cmp"
	"encoding/json"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// NodeFacts is what the node says about the machine, beyond its files.
type NodeFacts struct {
	Hostname string       // short or fully qualified; used when POD_NAME does not say another
	Addrs    []netip.Addr // of this instance, the one of the WorkloadEntry first (InstanceAddrs)
	Envoy    bool         // Envoy runs here, so that others may send mTLS
}

// Node is what istiod is told about this proxy.
type Node struct {
	ID       string
	Cluster  string
	Locality Locality
	Metadata map[string]any // as decoded JSON: string, float64, bool, nil, []any and map[string]any only; the caller's to change
}

// Locality is where the machine stands; all empty when no label says so.
type Locality struct{ Region, Zone, SubZone string }

const (
	tlsModeLabel  = "security.istio.io/tlsMode"
	localityLabel = "istio-locality"
)

// Node returns the node of this machine. It is pure and never fails: Load has checked what istiod must be able to decode.
//
// The id is sidecar~<address>~<instance>.<namespace>~<namespace>.<domain> (ServiceNode in Istio's pkg/istio-agent/agent.go), the
// cluster that of getServiceCluster and the metadata that of GetNodeMetaData and marshalMetadata (pkg/bootstrap). Where the
// machine cannot receive mutual TLS, its labels say so, whatever the files say: others would send TLS to plain ports.
func (c *Config) Node(f NodeFacts) Node {
	instance := c.instance
	if instance == "" {
		instance, _, _ = strings.Cut(f.Hostname, ".")
	}
	if instance = strings.ReplaceAll(instance, "~", "-"); instance == "" {
		instance = "vm"
	}
	var ips []string
	for _, a := range f.Addrs {
		if ip := a.Unmap().WithZone("").String(); a.IsValid() && !slices.Contains(ips, ip) {
			ips = append(ips, ip)
		}
	}
	first := ""
	if len(ips) > 0 {
		first = ips[0]
	}
	labels := map[string]string{}
	maps.Copy(labels, c.Labels)
	if _, chosen := labels[tlsModeLabel]; !f.Envoy || !c.capturesInbound() && !chosen {
		labels[tlsModeLabel] = "disabled"
	}
	flat := maps.Clone(labels) // as the file has them
	locality, sanitized := localityOf(labels)
	if sanitized != "" {
		labels[localityLabel] = sanitized
	}
	return Node{
		ID:       strings.Join([]string{"sidecar", first, instance + "." + c.Namespace, c.Namespace + "." + c.Domain}, "~"),
		Cluster:  c.cluster(),
		Locality: locality,
		Metadata: c.metadata(instance, ips, labels, flat),
	}
}

// capturesInbound reports whether traffic to the application's ports passes through Envoy. Rules that the operator keeps do; a level of some ports does not:
// peers cannot be told to send mutual TLS to those alone.
func (c *Config) capturesInbound() bool {
	r := c.Capture
	return r.CustomTables || (r.Level == "auto" || r.Level == "all") && r.Mode != "NONE" && (r.InboundAll || len(r.InboundPorts) > 0)
}

// cluster names the node in Envoy's and istiod's telemetry.
func (c *Config) cluster() string {
	name := c.Service
	canonical := cmp.Or(c.Labels["service.istio.io/canonical-name"], c.Labels["app.kubernetes.io/name"], c.Labels["app"], c.WorkloadName, "istio-proxy")
	if name == "" {
		switch c.proxyConfig["tracingServiceName"] {
		case "CANONICAL_NAME_ONLY", 1.0:
			name = canonical
		case "CANONICAL_NAME_AND_NAMESPACE", 2.0:
			name = canonical + "." + c.Namespace
		}
	}
	if name != "" && name != "istio-proxy" {
		return name
	}
	return cmp.Or(c.Labels["app"], c.Labels["app.kubernetes.io/name"], c.Labels["service.istio.io/canonical-name"], c.WorkloadName, "istio-proxy") + "." + c.Namespace
}

// metadata merges, strongest first: what the settings say, ISTIO_META_* variables, and the members of ISTIO_METAJSON_* objects
// (the labels of flat stand there a second time).
func (c *Config) metadata(instance string, ips []string, labels, flat map[string]string) map[string]any {
	out := map[string]any{}
	names := slices.Sorted(maps.Keys(c.env))
	for _, name := range names {
		if key, ok := strings.CutPrefix(name, metaPrefix); ok && decodable(key, "") {
			out[key] = c.env[name].value
		}
	}
	for _, name := range names {
		var object map[string]any
		if strings.HasPrefix(name, metaJSONPrefix) && name != "ISTIO_METAJSON_LABELS" && json.Unmarshal([]byte(c.env[name].value), &object) == nil {
			for k, v := range object {
				if decodable(k, v) {
					out[k] = v
				}
			}
		}
	}
	for k, v := range flat {
		if _, typed := typedMetadata[k]; !typed {
			out[k] = v
		}
	}
	for k, t := range typedMetadata {
		if text, ok := out[k].(string); ok && t == metaBool {
			on, err := strconv.ParseBool(text)
			out[k] = strconv.FormatBool(err == nil && on)
		}
	}
	if c.isSet("dns.listen") {
		out["DNS_PROXY_ADDR"] = c.DNS.Listen.String()
	}
	discovery := c.serverName(c.Discovery.Address, "")
	maps.Copy(out, map[string]any{
		"ENVOY_PROMETHEUS_PORT":      float64(c.Status.PrometheusPort),
		"ENVOY_SKIP_DEPRECATED_LOGS": "true",
		"ENVOY_STATUS_PORT":          float64(c.Status.ReadinessPort),
		"LABELS":                     anyMap(labels),
		"METADATA_DISCOVERY":         strconv.FormatBool(c.Envoy.HBONE),
		"NAME":                       instance,
		"NAMESPACE":                  c.Namespace,
		"PILOT_SAN":                  []any{discovery},
		"PROXY_CONFIG":               cloneJSON(c.proxyConfig),
		"SERVICE_ACCOUNT":            c.ServiceAccount,
		"STATIC_LABELS":              anyMap(labels),
	})
	if v, ok := c.env["PEER_METADATA_DISCOVERY"]; ok {
		on, err := strconv.ParseBool(v.value)
		out["METADATA_DISCOVERY"] = strconv.FormatBool(err == nil && on)
	}
	if _, ok := out["INTERCEPTION_MODE"]; !c.Capture.CustomTables && (ok || c.Capture.Mode != "REDIRECT") {
		out["INTERCEPTION_MODE"] = c.Capture.Mode
	}
	for k, on := range map[string]bool{"DNS_CAPTURE": c.DNS.Capture, "ENABLE_HBONE": c.Envoy.HBONE} {
		if _, ok := out[k]; ok || on {
			out[k] = strconv.FormatBool(on)
		}
	}
	if _, ok := out["ISTIO_VERSION"]; !ok {
		out["ISTIO_VERSION"] = IstioVersion
	}
	if _, ok := out["WORKLOAD_IDENTITY_SOCKET_FILE"]; !ok {
		out["WORKLOAD_IDENTITY_SOCKET_FILE"] = "socket"
	}
	for k, text := range map[string]string{
		"AUTO_REGISTER_GROUP": c.AutoRegisterGroup,
		"CERT_SIGNER":         c.Identity.CertSigner,
		"CLUSTER_ID":          c.ClusterID,
		"INSTANCE_IPS":        strings.Join(ips, ","),
		"MESH_ID":             c.MeshID,
		"NETWORK":             c.Network,
		"WORKLOAD_NAME":       c.WorkloadName,
	} {
		if _, ok := out[k]; ok || text != "" { // an empty variable shows as one, as in pilot-agent
			out[k] = text
		}
	}
	return out
}

// isSet reports whether some file sets the setting at key.
func (c *Config) isSet(key string) bool {
	return slices.ContainsFunc(c.settings, func(s Setting) bool { return s.Key == key && s.File != "" })
}

func anyMap(m map[string]string) map[string]any {
	out := make(map[string]any, len(m))
	for k, v := range m {
		out[k] = v
	}
	return out
}

// cloneJSON copies a decoded JSON object.
func cloneJSON(m map[string]any) map[string]any {
	out := make(map[string]any, len(m))
	for k, v := range m {
		out[k] = cloneValue(v)
	}
	return out
}

func cloneValue(v any) any {
	switch v := v.(type) {
	case map[string]any:
		return cloneJSON(v)
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = cloneValue(v[i])
		}
		return out
	}
	return v
}

// localityOf reads region/zone/subzone from the labels (GetLocalityLabel and SanitizeLocalityLabel in pkg/model/proxy.go); in a
// label the parts may be joined by dots, as Kubernetes has no slashes there.
func localityOf(labels map[string]string) (Locality, string) {
	text, ok := labels["topology.istio.io/locality"]
	if !ok {
		text = labels[localityLabel]
	}
	if text == "" {
		return Locality{}, ""
	}
	if !strings.Contains(text, "/") {
		text = strings.ReplaceAll(text, ".", "/")
	}
	var l Locality
	parts := strings.SplitN(text, "/", 3)
	l.Region = parts[0]
	if len(parts) > 1 {
		l.Zone = parts[1]
	}
	if len(parts) > 2 {
		l.SubZone = parts[2]
	}
	return l, text
}
