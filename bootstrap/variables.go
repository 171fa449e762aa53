package bootstrap

import (
	"encoding/json"
	"strconv"
	"strings"
)

// deadVariables are names that people set and nothing reads, with what they mean instead. Some stand in old documents or in the
// comments of Istio's own sidecar.env, some are what Istio's tools print.
var deadVariables = map[string]string{
	"ISTIO_INBOUND_EXCLUDE_PORTS":      "ISTIO_LOCAL_EXCLUDE_PORTS",
	"ISTIO_INBOUND_PORTS_EXCLUDE":      "ISTIO_LOCAL_EXCLUDE_PORTS",
	"ISTIO_EXCLUDE_INBOUND_PORTS":      "ISTIO_LOCAL_EXCLUDE_PORTS",
	"INBOUND_PORTS_EXCLUDE":            "ISTIO_LOCAL_EXCLUDE_PORTS",
	"INBOUND_PORTS_INCLUDE":            "ISTIO_INBOUND_PORTS",
	"ISTIO_OUTBOUND_EXCLUDE_PORTS":     "ISTIO_LOCAL_OUTBOUND_PORTS_EXCLUDE",
	"ISTIO_OUTBOUND_PORTS_EXCLUDE":     "ISTIO_LOCAL_OUTBOUND_PORTS_EXCLUDE",
	"ISTIO_EXCLUDE_OUTBOUND_PORTS":     "ISTIO_LOCAL_OUTBOUND_PORTS_EXCLUDE",
	"ISTIO_LOCAL_OUTBOUND_EXCLUDE":     "ISTIO_LOCAL_OUTBOUND_PORTS_EXCLUDE",
	"OUTBOUND_PORTS_EXCLUDE":           "ISTIO_LOCAL_OUTBOUND_PORTS_EXCLUDE",
	"OUTBOUND_PORTS_INCLUDE":           "ISTIO_OUTBOUND_PORTS",
	"ISTIO_SERVICE_CIDR_EXCLUDE":       "ISTIO_SERVICE_EXCLUDE_CIDR",
	"ISTIO_EXCLUDE_SERVICE_CIDR":       "ISTIO_SERVICE_EXCLUDE_CIDR",
	"OUTBOUND_IP_RANGES_EXCLUDE":       "ISTIO_SERVICE_EXCLUDE_CIDR",
	"OUTBOUND_IPRANGES_EXCLUDE":        "ISTIO_SERVICE_EXCLUDE_CIDR",
	"OUTBOUND_IP_RANGES_INCLUDE":       "ISTIO_SERVICE_CIDR",
	"OUTBOUND_IPRANGES_INCLUDE":        "ISTIO_SERVICE_CIDR",
	"OUTBOUND_OWNER_GROUPS_INCLUDE":    "ISTIO_OUTBOUND_OWNER_GROUPS",
	"OUTBOUND_OWNER_GROUPS_EXCLUDE":    "ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE",
	"EXCLUDE_INTERFACES":               "ISTIO_EXCLUDE_INTERFACES",
	"ISTIO_REROUTE_VIRTUAL_INTERFACES": "KUBE_VIRT_INTERFACES",
	"KUBEVIRT_INTERFACES":              "KUBE_VIRT_INTERFACES",
	"INBOUND_INTERCEPTION_MODE":        "ISTIO_INBOUND_INTERCEPTION_MODE",
	"INBOUND_TPROXY_MARK":              "ISTIO_INBOUND_TPROXY_MARK",
	"INBOUND_TPROXY_ROUTE_TABLE":       "ISTIO_INBOUND_TPROXY_ROUTE_TABLE",
	"ENVOY_PORT":                       "rules.proxyPort of wingman.yaml",
	"PROXY_PORT":                       "rules.proxyPort of wingman.yaml",
	"PROXY_INBOUND_CAPTURE_PORT":       "INBOUND_CAPTURE_PORT",
	"PROXY_TUNNEL_PORT":                "INBOUND_TUNNEL_PORT",
	"DNS_AGENT":                        "ISTIO_META_DNS_CAPTURE",
	"DNS_CAPTURE":                      "ISTIO_META_DNS_CAPTURE",
	"ISTIO_DNS_CAPTURE":                "ISTIO_META_DNS_CAPTURE",
	"DNS_ADDR":                         "DNS_PROXY_ADDR",
	"ISTIO_PILOT_ADDRESS":              "PILOT_ADDRESS",
	"DISCOVERY_ADDRESS":                "PILOT_ADDRESS",
	"ISTIOD_ADDR":                      "PILOT_ADDRESS",
	"CA_ADDRESS":                       "CA_ADDR",
	"SECRET_GRACE_DURATION":            "SECRET_GRACE_PERIOD_RATIO",
	"POD_IP":                           "ISTIO_SVC_IP",
	"ISTIO_META_SERVICE_ACCOUNT":       "SERVICE_ACCOUNT",
	"ISTIO_META_NAMESPACE":             "ISTIO_NAMESPACE",
	"ISTIO_META_LABELS":                "ISTIO_METAJSON_LABELS",

	"TERMINATION_DRAIN_DURATION_SECONDS": "terminationDrainDuration in mesh.yaml's defaultConfig",
}

// idleVariables are Istio's own, but choose something that this agent does not do or always does; the text says which.
var idleVariables = map[string]string{
	"ISTIO_CFG":                      "the files have fixed places, below --root",
	"ISTIO_BIN_BASE":                 "Envoy is found by envoy.path of wingman.yaml",
	"ISTIO_CP_AUTH":                  "istiod is always reached by mutual TLS",
	"FILE_MOUNTED_CERTS":             "certificates come from the CA",
	"CA_PROVIDER":                    "the CA speaks istiod's protocol",
	"CREDENTIAL_FETCHER_TYPE":        "the first credential is the token file",
	"XDS_AUTH_PROVIDER":              "the first credential is the token file",
	"DNS_FORWARD_PARALLEL":           "the agent asks a second server whenever the first is late",
	"SECRET_ROTATION_CHECK_INTERVAL": "renewal waits for its time, not for checks",
	"GRPC_XDS_BOOTSTRAP":             "no bootstrap file for proxyless gRPC is written",
}

// metadataType is how istiod decodes a piece of metadata.
type metadataType int

const (
	metaText  metadataType = iota // string
	metaBool                      // "true" or "false", a string too
	metaPorts                     // a string that holds a JSON list
	metaOther                     // an object, list or number that this agent alone fills in
)

// typedMetadata are the names that istiod gives a type (NodeMetadata in Istio's pkg/model/proxy.go). One value of another type
// there, and istiod refuses the whole node.
var typedMetadata = typesOf(map[metadataType]string{
	metaText: `APP_CONTAINERS AUTO_REGISTER_GROUP BASE CLOUDRUN_ADDR CLUSTER_ID DNS_PROXY_ADDR GENERATOR HTTP10 HTTP_PROXY_PORT IDLE_TIMEOUT INSTANCE_IPS
		INTERCEPTION_MODE ISTIO_PROXY_SHA ISTIO_REVISION ISTIO_VERSION MESH_ID NAME NAMESPACE NETWORK NODE_NAME OUTLIER_LOG_PATH OWNER
		REQUESTED_NETWORK_VIEW SERVICE_ACCOUNT STS_PORT TLS_CLIENT_CERT_CHAIN TLS_CLIENT_KEY TLS_CLIENT_ROOT_CERT TLS_SERVER_CERT_CHAIN
		TLS_SERVER_KEY TLS_SERVER_ROOT_CERT UNPRIVILEGED_POD WORKLOAD_ENTRY WORKLOAD_IDENTITY_SOCKET_FILE WORKLOAD_NAME`,
	metaBool: `DISABLE_HBONE_SEND DNS_AUTO_ALLOCATE DNS_CAPTURE ENABLE_HBONE ENABLE_SELF_DISCOVERY ENVOY_SKIP_DEPRECATED_LOGS
		EXIT_ON_ZERO_ACTIVE_CONNECTIONS INBOUND_LISTENER_EXACT_BALANCE METADATA_DISCOVERY OUTBOUND_LISTENER_EXACT_BALANCE`,
	metaPorts: `POD_PORTS`,
	metaOther: `ANNOTATIONS ENVOY_PROMETHEUS_PORT ENVOY_SECURE_MERGED_METRICS_PORT ENVOY_SECURE_METRICS_PORT ENVOY_STATUS_PORT LABELS
		PILOT_SAN PLATFORM_METADATA PROXY_CONFIG STATIC_LABELS`,
})

func typesOf(names map[metadataType]string) map[string]metadataType {
	types := map[string]metadataType{}
	for t, list := range names {
		for _, name := range strings.Fields(list) {
			types[name] = t
		}
	}
	return types
}

// decodable reports whether istiod takes a value, other than this agent's own, under a name of metadata.
func decodable(name string, v any) bool {
	t, typed := typedMetadata[name]
	_, text := v.(string)
	return !typed || text && t != metaOther
}

const (
	metaPrefix     = "ISTIO_META_"
	metaJSONPrefix = "ISTIO_METAJSON_"
)

// checkVariables warns of variables that do nothing and refuses metadata that istiod could not decode.
func (l *loader) checkVariables() {
	known := knownVariables()
	for name, v := range l.vars {
		at := Problem{Severity: Warning, File: v.file, Line: v.line, Key: name}
		instead, dead := deadVariables[name]
		idle, isIdle := idleVariables[name]
		switch {
		case dead:
			at.Found, at.Expected, at.Hint = "a variable that nothing reads", instead, "it has no effect"
			l.add(at)
		case isIdle && isOn(v.value):
			at.Found, at.Hint = quote(v.value)+", which has no effect here", idle
			l.add(at)
		case strings.HasPrefix(name, metaJSONPrefix):
			l.checkMetaJSON(name, v)
		case strings.HasPrefix(name, metaPrefix):
			l.checkMeta(name, v)
		case !known[name] && v.rank != rankMesh && !strings.HasPrefix(name, "-"):
			if hint := nearVariable(name); hint != "" {
				at.Found, at.Hint = "a variable that nothing reads", hint
				l.add(at)
			}
		}
	}
}

// isOn reports whether a variable chooses anything: an empty or false one does not.
func isOn(text string) bool {
	on, err := strconv.ParseBool(text)
	return text != "" && (err != nil || on)
}

// nearVariable suggests a name for one that is at most two letters off; shorter names would find each other.
func nearVariable(name string) string {
	if len(name) < 7 {
		return ""
	}
	for _, s := range settings {
		for _, istio := range s.istio {
			if editDistance(name, istio, 3) <= 2 {
				return "did you mean " + istio + "?"
			}
		}
	}
	return ""
}

// knownVariables are those that settings or Istio's tools read.
func knownVariables() map[string]bool {
	known := map[string]bool{}
	for _, s := range settings {
		for _, name := range s.istio {
			known[name] = true
		}
	}
	for _, name := range strings.Fields(`CANONICAL_REVISION CANONICAL_SERVICE CNI_MODE CLEANUP_ONLY CREDENTIAL_IDENTITY_PROVIDER DRY_RUN
		ENVOY_SECURE_METRICS_PORT ENVOY_SKIP_DEPRECATED_LOGS FORCE_APPLY IPTABLES_PROBE_PORT ISTIO_AGENT_FLAGS ISTIO_CPU_LIMIT JWT_POLICY
		NETWORK_NAMESPACE PILOT_CERT_PROVIDER PROBE_TIMEOUT PROXY_CONFIG PROXY_CONFIG_XDS_AGENT RECONCILE RUN_VALIDATION SKIP_RULE_APPLY`) {
		known[name] = true
	}
	return known
}

// checkMeta refuses metadata from a variable that istiod could not decode.
func (l *loader) checkMeta(name string, v envVar) {
	refuse := func(expected, hint string) {
		l.add(Problem{Severity: Error, File: v.file, Line: v.line, Key: name, Found: quote(v.value), Expected: expected, Hint: hint})
	}
	t, typed := typedMetadata[strings.TrimPrefix(name, metaPrefix)]
	if !typed || v.value == "" {
		return
	}
	if mode := l.c.Capture.Mode; name == "ISTIO_META_INTERCEPTION_MODE" && v.value != mode && !l.c.Capture.CustomTables {
		l.add(Problem{Severity: Warning, File: v.file, Line: v.line, Key: name, Found: quote(v.value), Expected: quote(mode) + ", the mode of the rules",
			Hint: "the node says what is true; set ISTIO_INBOUND_INTERCEPTION_MODE"})
	}
	switch t {
	case metaBool:
		if _, bad := boolean.read(v.value); bad != nil {
			refuse(boolean.expected, "")
		}
	case metaPorts:
		var ports []struct {
			Name          string `json:"name"`
			ContainerPort int    `json:"containerPort"`
			Protocol      string `json:"protocol"`
		}
		if err := json.Unmarshal([]byte(v.value), &ports); err != nil {
			refuse("a JSON list of ports, each with name, containerPort and protocol", jsonReason(err))
		}
	case metaOther:
		l.add(Problem{Severity: Warning, File: v.file, Line: v.line, Key: name, Found: "metadata that the agent fills in itself", Hint: "the variable has no effect"})
	}
}

// checkMetaJSON refuses what is no JSON object, and members that istiod could not decode.
func (l *loader) checkMetaJSON(name string, v envVar) {
	if name == "ISTIO_METAJSON_LABELS" || v.value == "" {
		return // labels reads it
	}
	at := Problem{Severity: Error, File: v.file, Line: v.line, Key: name}
	var object map[string]any
	if err := json.Unmarshal([]byte(v.value), &object); err != nil {
		at.Found, at.Expected, at.Hint = quote(v.value), "a JSON object", jsonReason(err)
		l.add(at)
		return
	}
	for _, member := range mapKeys(object) {
		if !decodable(member, object[member]) {
			at.Found, at.Expected = "a member "+quote(member)+" of a type that istiod does not take there", "a text"
			l.add(at)
		}
	}
}
