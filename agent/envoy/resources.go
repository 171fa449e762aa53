package envoy

// Names that istiod's configuration uses: clusters of the bootstrap file.
const (
	clusterXDS        = "xds-grpc"
	clusterSDS        = "sds-grpc"
	clusterPrometheus = "prometheus_stats"
	clusterAgent      = "agent"
)

// baseClusters are the ones that istiod's configuration and the listeners below name.
func baseClusters(in Input, net families) list {
	xds := overHTTP2(staticCluster(clusterXDS, pipe(in.XDSSocket), "1s"))
	// One stream a connection: a new stream never waits behind what an old one still sends.
	mapping(mapping(xds["typed_extension_protocol_options"])[httpOptions])["common_http_protocol_options"] = obj{"max_requests_per_connection": 1}
	return list{
		staticCluster(clusterPrometheus, socketAddress(net.localhost, in.AdminPort), "0.250s"),
		staticCluster(clusterAgent, socketAddress(net.localhost, in.StatusPort), "0.250s"),
		overHTTP2(staticCluster(clusterSDS, pipe(in.SDSSocket), "1s")),
		xds,
	}
}

// baseListeners answer for metrics and readiness. They stay open when Envoy is at its limits, or monitoring would go blind just
// when it is needed.
func baseListeners(in Input, net families, pc proxyConfig) list {
	metrics := net
	if pc.text2("proxyMetadata", "METRICS_LOCALHOST_ACCESS_ONLY") == "true" {
		metrics.wildcards = []string{net.localhost}
	}
	return list{
		httpListener(in.PrometheusPort, metrics.wildcards, "stats", "/stats/prometheus", clusterPrometheus, pc.compressors()),
		httpListener(in.ReadinessPort, net.wildcards, "agent", "/healthz/ready", clusterAgent, nil),
	}
}

// httpListener forwards requests below prefix to cluster and nothing else.
func httpListener(port uint16, hosts []string, statPrefix, prefix, cluster string, filters list) obj {
	router := obj{"name": "envoy.filters.http.router", "typed_config": obj{"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}
	address := socketAddress(hosts[0], port)
	l := obj{
		"name":                     listenerName(hosts[0], port),
		"address":                  address,
		"ignore_global_conn_limit": true,
		"bypass_overload_manager":  true,
		"filter_chains": list{obj{"filters": list{obj{
			"name": "envoy.filters.network.http_connection_manager",
			"typed_config": obj{
				"@type":       "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
				"stat_prefix": statPrefix,
				"route_config": obj{"virtual_hosts": list{obj{
					"name":    "backend",
					"domains": list{"*"},
					"routes":  list{obj{"match": obj{"prefix": prefix}, "route": obj{"cluster": cluster}}},
				}}},
				"http_filters": append(append(list{}, filters...), router),
			},
		}}}},
	}
	more := list{}
	for _, host := range hosts[1:] {
		more = append(more, obj{"address": socketAddress(host, port)})
	}
	if len(more) > 0 {
		l["additional_addresses"] = more
	}
	return l
}

// staticCluster has one endpoint. Its statistics end in ";", where the tag cluster_name ends (statsTags).
func staticCluster(name string, address obj, timeout string) obj {
	return obj{
		"name":            name,
		"alt_stat_name":   name + ";",
		"type":            "STATIC",
		"connect_timeout": timeout,
		"load_assignment": obj{
			"cluster_name": name,
			"endpoints":    list{obj{"lb_endpoints": list{obj{"endpoint": obj{"address": address}}}}},
		},
	}
}

// dnsCluster is a staticCluster whose host is a name.
func dnsCluster(name, host string, port uint16, net families) obj {
	c := staticCluster(name, socketAddress(host, port), "1s")
	c["type"] = "STRICT_DNS"
	c["dns_lookup_family"] = net.lookup
	return c
}

const httpOptions = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

func overHTTP2(cluster obj) obj {
	cluster["typed_extension_protocol_options"] = obj{httpOptions: obj{
		"@type":                "type.googleapis.com/" + httpOptions,
		"explicit_http_config": obj{"http2_protocol_options": obj{}},
	}}
	return cluster
}

func pipe(path string) obj { return obj{"pipe": obj{"path": path}} }
