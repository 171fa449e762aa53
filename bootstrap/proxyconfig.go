package bootstrap

import (
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// proxyConfig is a ProxyConfig as proto JSON, with the line of each field. It replaces istio.io/api/mesh/v1alpha1, whose
// types would add two megabytes to the agent; a test compares the two.
type proxyConfig struct {
	fields   map[string]any
	at       map[string]value // where a top-level field was set, and its text when it is a scalar
	metadata map[string]value // proxyMetadata
	probe    *yaml.Node       // readinessProbe
	probeIn  *yamlFile
}

// fieldKind is the JSON shape of a field.
type fieldKind int

const (
	textField     fieldKind = iota // string
	enumField                      // string or number
	intField                       // int32, uint32: left out when 0
	intBoxField                    // Int32Value: kept when 0
	boolBoxField                   // BoolValue
	durationField                  // as "45s"
	listField                      // list of strings
	mapField                       // map of strings to strings
	messageField                   // whatever mapping
)

// proxyFields are the fields of istio.mesh.v1alpha1.ProxyConfig (istio.io/api v1.31, mesh/v1alpha1/proxy.proto).
var proxyFields = map[string]fieldKind{
	"availabilityZone": textField, "binaryPath": textField, "caCertificatesPem": listField, "concurrency": intBoxField, "configPath": textField,
	"connectionSettings": messageField, "controlPlaneAuthPolicy": enumField, "customConfigFile": textField, "discoveryAddress": textField,
	"discoveryRefreshDelay": durationField, "drainDuration": durationField, "envoyAccessLogService": messageField, "envoyMetricsService": messageField,
	"envoyMetricsServiceAddress": textField, "extraStatTags": listField, "fileFlushInterval": durationField, "fileFlushMinSizeKb": intField,
	"gatewayTopology": messageField, "holdApplicationUntilProxyStarts": boolBoxField, "image": messageField, "interceptionMode": enumField,
	"meshId": textField, "privateKeyProvider": messageField, "proxyAdminPort": intField, "proxyBootstrapTemplatePath": textField,
	"proxyHeaders": messageField, "proxyMetadata": mapField, "proxyStatsMatcher": messageField, "readinessProbe": messageField, "runtimeValues": mapField,
	"sds": messageField, "serviceCluster": textField, "statNameLength": intField, "statsCompression": boolBoxField, "statsdUdpAddress": textField,
	"statusPort": intField, "terminationDrainDuration": durationField, "tracing": messageField, "tracingServiceName": enumField, "zipkinAddress": textField,
}

// zeroEnums are the enum values that proto JSON leaves out.
var zeroEnums = map[string]string{"interceptionMode": "REDIRECT", "controlPlaneAuthPolicy": "NONE"}

// builtinProxyConfig is Istio's DefaultProxyConfig (pkg/config/mesh/mesh.go), but for the discovery address, which has more sources.
func builtinProxyConfig() *proxyConfig {
	return &proxyConfig{
		fields: map[string]any{
			"binaryPath": "/usr/local/bin/envoy", "configPath": "./etc/istio/proxy", "controlPlaneAuthPolicy": "MUTUAL_TLS", "drainDuration": "45s",
			"proxyAdminPort": 15000.0, "serviceCluster": "istio-proxy", "statNameLength": 189.0, "statusPort": 15020.0, "terminationDrainDuration": "5s",
		},
		at:       map[string]value{},
		metadata: map[string]value{},
	}
}

// overlay puts the fields of a ProxyConfig in YAML over p. A field replaces what was there; proxyMetadata is merged by key, as
// Istio's MergeProxyConfig does. rank and name tell settings where it came from.
func (p *proxyConfig) overlay(y *yamlFile, top *yaml.Node, path string, rank int) {
	for _, e := range y.entries(top, path) {
		name := lowerCamel(e.name)
		kind, known := proxyFields[name]
		key := join(path, e.name)
		if isNull(e.value) {
			continue
		}
		if !known {
			if v, ok := plain(y, e.value, key); ok {
				p.fields[e.name] = v
			}
			continue
		}
		v, expected := fieldValue(e.value, kind)
		if expected != "" {
			y.refuse(e.value, key, describe(e.value), expected, "")
			continue
		}
		if kind == messageField {
			var ok bool
			if v, ok = plain(y, e.value, key); !ok {
				continue
			}
		}
		p.at[name] = value{text: e.value.Value, file: y.file, line: y.line(e.key), key: key, rank: rank}
		switch name {
		case "readinessProbe":
			p.probe, p.probeIn = e.value, y
		case "proxyMetadata":
			for _, m := range y.entries(e.value, key) {
				text := m.value.Value
				if isNull(m.value) {
					text = ""
				}
				p.metadata[m.name] = value{text: text, file: y.file, line: y.line(m.key), key: join(key, m.name), rank: rank}
			}
			continue
		case "serviceCluster":
			delete(p.fields, "tracingServiceName") // one of the two
		case "tracingServiceName":
			delete(p.fields, "serviceCluster")
		}
		if isZero(name, kind, v) {
			delete(p.fields, name)
			continue
		}
		p.fields[name] = v
	}
}

// isZero reports whether proto JSON leaves the value out.
func isZero(name string, kind fieldKind, v any) bool {
	switch kind {
	case textField:
		return v == ""
	case intField:
		return v == 0.0
	case enumField:
		return v == 0.0 || v == zeroEnums[name]
	case listField:
		return len(v.([]any)) == 0
	case mapField:
		return len(v.(map[string]any)) == 0
	}
	return false
}

// fieldValue reads a field as proto JSON would, or says what was expected there.
func fieldValue(n *yaml.Node, kind fieldKind) (v any, expected string) {
	scalar := n.Kind == yaml.ScalarNode
	switch kind {
	case textField:
		if !scalar {
			return nil, "text"
		}
		return n.Value, ""
	case enumField:
		if !scalar {
			return nil, "a name"
		}
		if i, err := strconv.ParseInt(n.Value, 10, 32); err == nil {
			return float64(i), ""
		}
		return n.Value, ""
	case intField, intBoxField:
		i, err := strconv.ParseInt(n.Value, 10, 32)
		if !scalar || err != nil {
			return nil, "a whole number"
		}
		return float64(i), ""
	case boolBoxField:
		b, err := strconv.ParseBool(n.Value)
		if !scalar || err != nil {
			return nil, "true or false"
		}
		return b, ""
	case durationField:
		d, err := time.ParseDuration(n.Value)
		if !scalar || err != nil || d < 0 {
			return nil, "a duration such as 45s"
		}
		return jsonDuration(d), ""
	case listField:
		list := []any{}
		for _, c := range n.Content {
			if resolve(c).Kind != yaml.ScalarNode {
				return nil, "a list of texts"
			}
			list = append(list, resolve(c).Value)
		}
		if n.Kind != yaml.SequenceNode {
			return nil, "a list of texts"
		}
		return list, ""
	case mapField:
		m := map[string]any{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			if resolve(n.Content[i+1]).Kind != yaml.ScalarNode {
				return nil, "a mapping of names to texts"
			}
			m[resolve(n.Content[i]).Value] = resolve(n.Content[i+1]).Value
		}
		if n.Kind != yaml.MappingNode {
			return nil, "a mapping of names to texts"
		}
		return m, ""
	}
	if n.Kind != yaml.MappingNode {
		return nil, "a mapping"
	}
	return nil, ""
}

// json returns PROXY_CONFIG: the fields, and the variables that proxyMetadata carried.
func (p *proxyConfig) json() map[string]any {
	out := maps.Clone(p.fields)
	if len(p.metadata) > 0 {
		m := map[string]any{}
		for k, v := range p.metadata {
			m[k] = v.text
		}
		out["proxyMetadata"] = m
	}
	return out
}

// jsonDuration writes a duration as proto JSON: seconds with 0, 3, 6 or 9 decimals.
func jsonDuration(d time.Duration) string {
	s := strconv.FormatInt(int64(d/time.Second), 10)
	frac := strconv.FormatInt(int64(d%time.Second)+int64(time.Second), 10)[1:]
	for strings.HasSuffix(frac, "000") {
		frac = strings.TrimSuffix(frac, "000")
	}
	if frac != "" {
		s += "." + frac
	}
	return s + "s"
}

// lowerCamel turns discovery_address into discoveryAddress; proto JSON reads both.
func lowerCamel(s string) string {
	if !strings.Contains(s, "_") {
		return s
	}
	parts := strings.Split(s, "_")
	for i, p := range parts[1:] {
		if p != "" {
			parts[i+1] = strings.ToUpper(p[:1]) + p[1:]
		}
	}
	return strings.Join(parts, "")
}

// plainNodes bounds what one tree may hold once its aliases are followed.
const plainNodes = 100_000

// plain turns a tree into what encoding/json would have decoded: string, float64, bool, []any, map[string]any.
func plain(y *yamlFile, n *yaml.Node, key string) (any, bool) {
	budget := plainNodes
	var path []*yaml.Node
	var walk func(n *yaml.Node) (any, bool)
	walk = func(n *yaml.Node) (any, bool) {
		n = resolve(n)
		if budget--; budget < 0 || slices.Contains(path, n) {
			y.refuse(n, key, "aliases without end", "a plain tree", "")
			return nil, false
		}
		path = append(path, n)
		defer func() { path = path[:len(path)-1] }()
		switch n.Kind {
		case yaml.SequenceNode:
			list := []any{}
			for _, c := range n.Content {
				v, ok := walk(c)
				if !ok {
					return nil, false
				}
				list = append(list, v)
			}
			return list, true
		case yaml.MappingNode:
			m := map[string]any{}
			for _, e := range y.entries(n, key) {
				v, ok := walk(e.value)
				if !ok {
					return nil, false
				}
				m[e.name] = v
			}
			return m, true
		}
		return scalar(n), true
	}
	return walk(n)
}

// scalar returns what JSON has for a YAML scalar; dates and binaries stay text.
func scalar(n *yaml.Node) any {
	var v any
	switch n.Tag {
	case "!!null":
		return nil
	case "!!bool", "!!int", "!!float":
		if n.Decode(&v) != nil {
			return n.Value
		}
	}
	switch v := v.(type) {
	case bool:
		return v
	case int:
		return float64(v)
	case int64:
		return float64(v)
	case uint64:
		return float64(v)
	case float64:
		if !math.IsInf(v, 0) && !math.IsNaN(v) { // JSON has neither
			return v
		}
	}
	return n.Value
}
