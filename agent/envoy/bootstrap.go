package envoy

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"wingman/bootstrap"
)

// Input is all that a bootstrap file depends on.
type Input struct {
	// Node is what istiod is told; its metadata's PROXY_CONFIG says what the mesh wants of Envoy.
	Node      bootstrap.Node
	Addrs     []netip.Addr // of this instance, at least one: their families are the ones that Envoy listens on
	XDSSocket string       // unix sockets of the agent, absolute or relative to Envoy's working folder
	SDSSocket string
	Delta     bool // incremental xDS rather than state of the world

	AdminPort      uint16 // Envoy's own, on loopback
	StatusPort     uint16 // the agent's, which readiness is asked of
	ReadinessPort  uint16 // Envoy's listener for /healthz/ready
	PrometheusPort uint16 // Envoy's listener for /stats/prometheus
}

// File is a bootstrap file.
type File struct {
	JSON []byte
	// Notes says, one sentence each, what the mesh's ProxyConfig asks for and the file leaves out.
	Notes []string
}

// obj and list are JSON. Keys of an obj are written in order, so that equal inputs give equal bytes.
type (
	obj  = map[string]any
	list = []any
)

// Bootstrap returns the file that makes an Envoy part of the mesh: where its configuration and its certificates come from, the
// clusters and listeners that istiod's configuration leans on, and how its statistics are named. It is pure. The error names
// every part of the input that cannot be used.
func Bootstrap(in Input) (File, error) {
	if err := in.validate(); err != nil {
		return File{}, fmt.Errorf("envoy's bootstrap file: %w", err)
	}
	pc := proxyConfig{fields: mapping(in.Node.Metadata["PROXY_CONFIG"])}
	net := familiesOf(in.Addrs)
	extras := pc.services(net)
	tags, badTags := statsTags(pc)
	matcher, badPatterns := statsMatcher(pc, in.Addrs)
	top := obj{
		"node":                 nodeOf(in.Node),
		"admin":                obj{"address": socketAddress(net.localhost, in.AdminPort)},
		"bootstrap_extensions": list{internalListeners()},
		"dynamic_resources":    dynamicResources(in.Delta),

		"typed_dns_resolver_config": resolver(),
		"static_resources": obj{
			"clusters":  append(baseClusters(in, net), extras.clusters...),
			"listeners": baseListeners(in, net, pc),
		},
		"stats_config":          obj{"use_all_default_tags": false, "stats_tags": tags, "stats_matcher": matcher},
		"deferred_stat_options": obj{"enable_deferred_creation_stats": true},
		"layered_runtime": obj{"layers": list{
			obj{"name": "mesh", "static_layer": pc.runtime()},
			obj{"name": "admin", "admin_layer": obj{}}, // so that POST /runtime_modify works
		}},
		"overload_manager": connectionLimit(pc, in.Node.Metadata),
	}
	if extras.tracer != nil {
		top["tracing"] = obj{"http": extras.tracer}
	}
	if len(extras.sinks) > 0 {
		top["stats_sinks"] = extras.sinks
	}
	b, err := json.MarshalIndent(top, "", "  ")
	if err != nil {
		return File{}, fmt.Errorf("encode envoy's bootstrap file: %w", err)
	}
	return File{JSON: append(b, '\n'), Notes: slices.Concat(extras.notes, badTags, badPatterns)}, nil
}

// maxSocketPath is what sockaddr_un holds, with the zero byte at its end (unix(7)).
const maxSocketPath = 107

func (in Input) validate() error {
	var problems []error
	refuse := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	if in.Node.ID == "" {
		refuse("the node has no id")
	}
	if len(in.Addrs) == 0 || slices.ContainsFunc(in.Addrs, func(a netip.Addr) bool { return !a.IsValid() }) {
		refuse("instance addresses %v: expected at least one", in.Addrs)
	}
	for name, path := range map[string]string{"xDS": in.XDSSocket, "SDS": in.SDSSocket} {
		if path == "" || len(path) > maxSocketPath || strings.ContainsRune(path, 0) {
			refuse("%s socket %q: expected a path of 1 to %d bytes", name, path, maxSocketPath)
		}
	}
	seen := map[uint16]string{}
	for _, p := range []struct {
		name string
		port uint16
	}{{"admin", in.AdminPort}, {"status", in.StatusPort}, {"readiness", in.ReadinessPort}, {"prometheus", in.PrometheusPort}} {
		if other := seen[p.port]; p.port == 0 || other != "" {
			refuse("%s port %d: expected one of its own", p.name, p.port)
		}
		seen[p.port] = p.name
	}
	return errors.Join(problems...)
}

// families are the addresses that stand for this machine and for all of its interfaces.
type families struct {
	localhost string
	wildcards []string // the first is the listener's own, the others come in addition
	lookup    string   // dns_lookup_family of clusters
}

// familiesOf follows Istio: IPv4 unless the instance has nothing but IPv6, both when it has both. Admin stays at 127.0.0.1
// wherever there is IPv4, because tools expect it there.
func familiesOf(addrs []netip.Addr) families {
	v4 := slices.ContainsFunc(addrs, func(a netip.Addr) bool { return a.Unmap().Is4() })
	v6 := slices.ContainsFunc(addrs, func(a netip.Addr) bool { return !a.Unmap().Is4() })
	switch {
	case v4 && v6:
		return families{localhost: "127.0.0.1", wildcards: []string{"0.0.0.0", "::"}, lookup: "ALL"}
	case v6:
		return families{localhost: "::1", wildcards: []string{"::"}, lookup: "V6_ONLY"}
	}
	return families{localhost: "127.0.0.1", wildcards: []string{"0.0.0.0"}, lookup: "V4_ONLY"}
}

func nodeOf(n bootstrap.Node) obj {
	o := obj{"id": n.ID, "cluster": n.Cluster, "metadata": n.Metadata}
	locality := obj{}
	for key, text := range map[string]string{"region": n.Locality.Region, "zone": n.Locality.Zone, "sub_zone": n.Locality.SubZone} {
		if text != "" {
			locality[key] = text
		}
	}
	if len(locality) > 0 {
		o["locality"] = locality
	}
	return o
}

// dynamicResources sends Envoy to the agent for everything. It waits for the first answer without limit: an Envoy that gives up
// would serve with half of its configuration.
func dynamicResources(delta bool) obj {
	kind := "GRPC"
	if delta {
		kind = "DELTA_GRPC"
	}
	from := obj{"ads": obj{}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"}
	return obj{
		"cds_config": from,
		"lds_config": from,
		"ads_config": obj{
			"api_type":                       kind,
			"transport_api_version":          "V3",
			"set_node_on_first_message_only": true,
			"grpc_services": list{obj{"envoy_grpc": obj{
				"cluster_name": "xds-grpc",
				// The agent may be back at any moment, and it paces what goes on to istiod itself. Envoy's own numbers are 0.5 to 30 s.
				"retry_policy": obj{"retry_back_off": obj{"base_interval": "0.100s", "max_interval": "1s"}},
			}}},
		},
	}
}

// resolver bounds how long Envoy asks for the names in this file that no resolver of this machine answers for: about 7 s with one resolver, 3 s with
// three. It holds every listener back until each cluster that has a name was answered for or given up, which with its own numbers (5 s, 4
// attempts) takes a minute. The resolvers are resolv.conf's, not the agent: what the mesh says of a name leads back into Envoy.
func resolver() obj {
	return obj{
		"name": "envoy.network.dns_resolver.cares",
		"typed_config": obj{
			"@type":                 "type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
			"query_timeout_seconds": 1, // doubled with each round over the resolvers
			"query_tries":           3,
		},
	}
}

// internalListeners lets istiod's HBONE listeners, which connect Envoy to itself, load.
func internalListeners() obj {
	return obj{
		"name": "envoy.bootstrap.internal_listener",
		"typed_config": obj{
			"@type":          "type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener",
			"buffer_size_kb": 64, // of each connection between two listeners; Envoy's default is 1024
		},
	}
}

// connectionLimit bounds the connections of all listeners together; without a setting the bound is out of reach.
func connectionLimit(pc proxyConfig, metadata map[string]any) obj {
	most := int64(1<<31 - 1)
	for _, v := range []any{pc.text2("runtimeValues", "overload.global_downstream_max_connections"), metadata["GLOBAL_DOWNSTREAM_MAX_CONNECTIONS"]} {
		text, _ := v.(string)
		if n, err := strconv.ParseInt(text, 10, 32); err == nil && n > 0 {
			most = n
		}
	}
	return obj{"resource_monitors": list{obj{
		"name": "envoy.resource_monitors.global_downstream_max_connections",
		"typed_config": obj{
			"@type":                             "type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
			"max_active_downstream_connections": most,
		},
	}}}
}

func socketAddress(host string, port uint16) obj {
	return obj{"socket_address": obj{"address": host, "port_value": port}}
}
