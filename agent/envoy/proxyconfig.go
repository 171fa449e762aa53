package envoy

import (
	"strings"
	"unicode"
)

// proxyConfig reads an object of decoded JSON: a ProxyConfig (istio.io/api mesh/v1alpha1) as Node.Metadata holds it, or one of
// its members. What is missing or of another kind reads as empty: package bootstrap has checked the kinds it knows.
type proxyConfig struct{ fields map[string]any }

func mapping(v any) map[string]any {
	m, _ := v.(map[string]any)
	return m
}

// get returns a field by its proto JSON name; members of messages may also be written as in the .proto file.
func (c proxyConfig) get(key string) any {
	if v, ok := c.fields[key]; ok {
		return v
	}
	return c.fields[snake(key)]
}

func (c proxyConfig) mapping(key string) proxyConfig { return proxyConfig{mapping(c.get(key))} }

func (c proxyConfig) text(key string) string {
	s, _ := c.get(key).(string)
	return s
}

// text2 is the text at key of the object at object.
func (c proxyConfig) text2(object, key string) string { return c.mapping(object).text(key) }

func (c proxyConfig) texts(key string) []string {
	var out []string
	for _, v := range toList(c.get(key)) {
		if s, ok := v.(string); ok {
			out = append(out, s)
		}
	}
	return out
}

func (c proxyConfig) has(key string) bool { return c.get(key) != nil }

// snake turns tcpKeepalive into tcp_keepalive.
func snake(key string) string {
	var b strings.Builder
	for _, r := range key {
		if unicode.IsUpper(r) {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}

func toList(v any) list {
	l, _ := v.([]any)
	return l
}

// runtime returns Envoy's runtime flags: Istio's own (extractRuntimeFlags in pkg/bootstrap/config.go), changed by runtimeValues. An
// empty value there takes a flag away; "true" and "false" become booleans, which Envoy insists on.
func (c proxyConfig) runtime() obj {
	flags := obj{
		"re2.max_program_size.error_level": "32768", // routes with long regular expressions
		"envoy.deprecated_features:envoy.config.listener.v3.Listener.hidden_envoy_deprecated_use_original_dst": true,
		"envoy.reloadable_features.http_reject_path_with_fragment":                                             false,
		"envoy.reloadable_features.fixed_heap_use_allocated":                                                   true,
		"envoy.reloadable_features.coalesce_lb_rebuilds_on_batch_update":                                       false, // envoyproxy/envoy issue 45212
	}
	for key, v := range c.mapping("runtimeValues").fields {
		switch v {
		case "":
			delete(flags, key)
		case "true", "false":
			flags[key] = v == "true"
		default:
			flags[key] = v
		}
	}
	return flags
}

// compressors shrink the metrics for scrapers that accept it, unless statsCompression is false.
func (c proxyConfig) compressors() list {
	if on, ok := c.get("statsCompression").(bool); ok && !on {
		return nil
	}
	var filters list
	for _, kind := range []struct{ name, library string }{
		{"brotli", "type.googleapis.com/envoy.extensions.compression.brotli.compressor.v3.Brotli"},
		{"zstd", "type.googleapis.com/envoy.extensions.compression.zstd.compressor.v3.Zstd"},
		{"gzip", "type.googleapis.com/envoy.extensions.compression.gzip.compressor.v3.Gzip"},
	} {
		filters = append(filters, obj{
			"name": "envoy.filters.http.compressor." + kind.name,
			"typed_config": obj{
				"@type":              "type.googleapis.com/envoy.extensions.filters.http.compressor.v3.Compressor",
				"compressor_library": obj{"name": "stats_" + kind.name, "typed_config": obj{"@type": kind.library}},
			},
		})
	}
	return filters
}
