package envoy

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// services are what a mesh's ProxyConfig adds to the bootstrap file: servers that take traces, metrics and access logs.
type services struct {
	clusters list
	sinks    list     // of statistics
	tracer   obj      // nil: none
	notes    []string // what is left out, and why
}

// services follows getProxyConfigOptions in Istio's pkg/bootstrap/config.go. What cannot be used is noted and left out: an Envoy
// without traces serves, an Envoy with a bad bootstrap file does not start.
func (c proxyConfig) services(f families) services {
	var s services
	note := func(format string, args ...any) { s.notes = append(s.notes, fmt.Sprintf(format, args...)) }
	tracing := c.mapping("tracing")
	add := func(key, address, name string, http2 bool, settings proxyConfig) bool {
		if address == "" {
			return false
		}
		host, port, ok := hostPort(address)
		if !ok {
			note("%s is left out: found address %q, expected host:port", key, address)
			return false
		}
		cluster := dnsCluster(name, host, port, f)
		if http2 {
			overHTTP2(cluster)
		}
		if err := settings.secure(cluster, name, http2); err != nil {
			note("%s is left out: %v", key, err)
			return false
		}
		if k := settings.mapping("tcpKeepalive").keepalive(); len(k) > 0 {
			cluster["upstream_connection_options"] = obj{"tcp_keepalive": k}
		}
		s.clusters = append(s.clusters, cluster)
		return true
	}

	if add("tracing.zipkin", tracing.text2("zipkin", "address"), "zipkin", false, tracing) {
		s.tracer = obj{"name": "envoy.tracers.zipkin", "typed_config": obj{
			"@type":                      "type.googleapis.com/envoy.config.trace.v3.ZipkinConfig",
			"collector_cluster":          "zipkin",
			"collector_endpoint":         "/api/v2/spans",
			"collector_endpoint_version": "HTTP_JSON",
			"trace_id_128bit":            true,
			"shared_span_context":        false,
		}}
	}
	if add("tracing.datadog", tracing.text2("datadog", "address"), "datadog_agent", false, tracing) {
		s.tracer = obj{"name": "envoy.tracers.datadog", "typed_config": obj{
			"@type":             "type.googleapis.com/envoy.config.trace.v3.DatadogConfig",
			"collector_cluster": "datadog_agent",
			"service_name":      "istio-proxy",
		}}
	}
	for _, gone := range []string{"lightstep", "stackdriver", "openCensusAgent"} {
		if tracing.has(gone) {
			note("tracing.%s is left out: Envoy has no such tracer any more; use an extension provider of the mesh", gone)
		}
	}

	metrics := c.mapping("envoyMetricsService")
	address := metrics.text("address")
	if address == "" {
		address = c.text("envoyMetricsServiceAddress")
	}
	if add("envoyMetricsService", address, "envoy_metrics_service", true, metrics) {
		s.sinks = append(s.sinks, obj{"name": "envoy.stat_sinks.metrics_service", "typed_config": obj{
			"@type":                 "type.googleapis.com/envoy.config.metrics.v3.MetricsServiceConfig",
			"transport_api_version": "V3",
			"grpc_service":          obj{"envoy_grpc": obj{"cluster_name": "envoy_metrics_service"}},
		}})
	}
	// istiod's listeners name this cluster when the mesh has enableEnvoyAccessLogService.
	logs := c.mapping("envoyAccessLogService")
	add("envoyAccessLogService", logs.text("address"), "envoy_accesslog_service", true, logs)

	if address := c.text("statsdUdpAddress"); address != "" {
		if host, port, ok := hostPort(address); ok && isAddr(host) {
			s.sinks = append(s.sinks, obj{"name": "envoy.stat_sinks.statsd", "typed_config": obj{
				"@type":   "type.googleapis.com/envoy.config.metrics.v3.StatsdSink",
				"address": socketAddress(host, port),
			}})
		} else {
			note("statsdUdpAddress is left out: found %q, expected an IP address and a port", address)
		}
	}
	if c.has("privateKeyProvider") {
		note("privateKeyProvider is not used: keys stay in memory")
	}
	for _, file := range []string{"customConfigFile", "proxyBootstrapTemplatePath"} {
		if path := c.text(file); path != "" {
			note("%s %q is not used: this bootstrap file is the agent's own; ISTIO_BOOTSTRAP_OVERRIDE adds to it", file, path)
		}
	}
	return s
}

// secure gives a cluster the TLS that tlsSettings asks for (tlsContextConvert in Istio's pkg/bootstrap/option/convert.go).
func (c proxyConfig) secure(cluster obj, name string, http2 bool) error {
	tls := c.mapping("tlsSettings")
	common := obj{}
	var roots string
	switch mode := tls.get("mode"); mode {
	case nil, "", "DISABLE", 0.0:
		return nil
	case "SIMPLE", 1.0:
		roots = fileRoot(tls.text("caCertificates"))
	case "MUTUAL", 2.0:
		cert, key := tls.text("clientCertificate"), tls.text("privateKey")
		if cert == "" || key == "" {
			return errors.New("tlsSettings has mode MUTUAL without clientCertificate and privateKey")
		}
		common["tls_certificate_sds_secret_configs"] = list{secretConfig("file-cert:" + cert + "~" + key)}
		roots = fileRoot(tls.text("caCertificates"))
	case "ISTIO_MUTUAL", 3.0:
		common["tls_certificate_sds_secret_configs"] = list{secretConfig("default")}
		roots = "ROOTCA"
	default:
		return fmt.Errorf("tlsSettings has mode %v, expected DISABLE, SIMPLE, MUTUAL or ISTIO_MUTUAL", mode)
	}
	names := list{}
	for _, san := range tls.texts("subjectAltNames") {
		kind := "DNS"
		if strings.Contains(san, "://") {
			kind = "URI" // a SPIFFE id
		}
		names = append(names, obj{"san_type": kind, "matcher": obj{"exact": san}})
	}
	common["combined_validation_context"] = obj{
		"default_validation_context":           obj{"match_typed_subject_alt_names": names},
		"validation_context_sds_secret_config": secretConfig(roots),
	}
	sni := tls.text("sni")
	if roots == "ROOTCA" && sni == "" {
		sni = name
	}
	if http2 {
		common["alpn_protocols"] = list{"h2"}
		if roots == "ROOTCA" {
			common["alpn_protocols"] = list{"istio", "h2"}
		}
	}
	cluster["transport_socket"] = obj{"name": "envoy.transport_sockets.tls", "typed_config": obj{
		"@type":              "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
		"sni":                sni,
		"common_tls_context": common,
	}}
	return nil
}

// fileRoot names the certificates to trust; without a file they are the machine's own.
func fileRoot(path string) string {
	if path == "" {
		path = "system"
	}
	return "file-root:" + path
}

// secretConfig makes Envoy ask the agent for a secret, and wait for it.
func secretConfig(name string) obj {
	return obj{"name": name, "sds_config": obj{
		"resource_api_version":  "V3",
		"initial_fetch_timeout": "0s",
		"api_config_source": obj{
			"api_type":                       "GRPC",
			"transport_api_version":          "V3",
			"set_node_on_first_message_only": true,
			"grpc_services":                  list{obj{"envoy_grpc": obj{"cluster_name": clusterSDS}}},
		},
	}}
}

// keepalive reads a TcpKeepalive; Envoy counts in whole seconds.
func (c proxyConfig) keepalive() obj {
	out := obj{}
	if n, ok := c.get("probes").(float64); ok && n >= 1 {
		out["keepalive_probes"] = int(n)
	}
	for from, to := range map[string]string{"time": "keepalive_time", "interval": "keepalive_interval"} {
		if d, err := time.ParseDuration(c.text(from)); err == nil && d >= time.Second {
			out[to] = int(d / time.Second)
		}
	}
	return out
}

func hostPort(address string) (host string, port uint16, ok bool) {
	host, text, err := net.SplitHostPort(address)
	n, portErr := strconv.ParseUint(text, 10, 16)
	return host, uint16(n), err == nil && portErr == nil && host != "" && n > 0
}

func isAddr(host string) bool {
	_, err := netip.ParseAddr(host)
	return err == nil
}
