package envoy

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// tagPatterns take the changing parts out of names of statistics, so that metrics have few names and many labels. The forms are
// istiod's: it ends the parts it puts into names with ";" or writes them as "tag.VALUE;". Order matters to Envoy.
// From stats_tags of Istio's tools/packaging/common/envoy_bootstrap.json.
var tagPatterns = []struct{ name, regex string }{
	{"cluster_name", `^cluster(\.(.+);)`},
	{"http_conn_manager_prefix", `^http\.(((?:[_.[:digit:]\w]*|[_\[\]aAbBcCdDeEfF[:digit:]\w\:]*));\.)`},
	{"thread_name", `^server(\.(.+))\.watchdog`},
	{"tcp_prefix", `^tcp\.((.*?)\.)\w+?$`},
	{"response_code", `_rq(_(\d{3}))$`},
	{"response_code_class", `_rq(_(\dxx))$`},
	{"http_conn_manager_listener_prefix", `^listener(?=\.).*?\.http\.(((?:[_.[:digit:]]*|[_\[\]aAbBcCdDeEfF[:digit:]]*))\.)`},
	{"listener_address", `^listener\.(((?:[_.[:digit:]]*|[_\[\]aAbBcCdDeEfF[:digit:]]*))\.)`},
	{"mongo_prefix", `^mongo\.(.+?)\.(collection|cmd|cx_|op_|delays_|decoding_)(.*?)$`},
	{"", ""}, // extraStatTags stand here
	{"cache", `(cache\.(.+?)\.)`},
	{"component", `(component\.(.+?)\.)`},
	{"tag", `(tag\.(.+?);\.)`},
	{"wasm_filter", `(wasm_filter\.(.+?)\.)`},
	{"authz_enforce_result", `rbac(\.(allowed|denied))`},
	{"authz_dry_run_action", `(\.istio_dry_run_(allow|deny)_)`},
	{"authz_dry_run_result", `(\.shadow_(allowed|denied))`},
}

// tagName is what a name of extraStatTags may be: it becomes a part of a regular expression.
var tagName = regexp.MustCompile(`^[\w.-]+$`)

func statsTags(pc proxyConfig) (tags list, notes []string) {
	add := func(name, regex string) { tags = append(tags, obj{"tag_name": name, "regex": regex}) }
	for _, p := range tagPatterns {
		if p.name != "" {
			add(p.name, p.regex)
			continue
		}
		var seen []string
		for _, name := range pc.texts("extraStatTags") {
			switch {
			case name == "" || slices.Contains(seen, name):
			case !tagName.MatchString(name):
				notes = append(notes, fmt.Sprintf("extraStatTags: %q is left out: expected letters, digits, _, . and -", name))
			default:
				seen = append(seen, name)
				add(name, "("+name+`=\.=(.*?);\.;)`)
			}
		}
	}
	return tags, notes
}

// What is counted whatever the mesh says. Everything else costs memory in each of thousands of clusters.
var (
	countedPrefixes = []string{"cluster_manager", "listener_manager", "server", "cluster.xds-grpc", "wasm", "reporter=", "component", "istio"}
	// downstream_cx_active is what a drain waits for (Admin.Connections), downstream_rq_active what a replacement does (Admin.Requests).
	countedSuffixes = []string{"rbac.allowed", "rbac.denied", "shadow_allowed", "shadow_denied", connectionsStat, requestsStat}
	countedRegexps  = []string{`vhost\..*\.route\..*`}
)

// statsMatcher adds what proxyStatsMatcher asks for. "{pod_ip}" there stands for each address of the instance.
func statsMatcher(pc proxyConfig, addrs []netip.Addr) (matcher obj, notes []string) {
	wanted := pc.mapping("proxyStatsMatcher")
	patterns := list{}
	add := func(field string, always []string, pattern func(text string) obj) {
		for _, text := range append(wanted.texts(field), always...) {
			if text == "" {
				continue // would match everything, or nothing that Envoy accepts
			}
			if _, err := regexp.Compile(text); err != nil && field == "inclusionRegexps" {
				notes = append(notes, fmt.Sprintf("proxyStatsMatcher.inclusionRegexps: %q is left out: %v", text, err))
				continue
			}
			if !strings.Contains(text, "{pod_ip}") {
				patterns = append(patterns, pattern(text))
				continue
			}
			for _, a := range addrs {
				patterns = append(patterns, pattern(strings.ReplaceAll(text, "{pod_ip}", a.String())))
			}
		}
	}
	add("inclusionPrefixes", countedPrefixes, func(text string) obj { return obj{"prefix": text} })
	add("inclusionSuffixes", countedSuffixes, func(text string) obj { return obj{"suffix": text} })
	add("inclusionRegexps", countedRegexps, func(text string) obj { return obj{"safe_regex": obj{"regex": text}} })
	return obj{"inclusion_list": obj{"patterns": patterns}}, notes
}

// listenerName is the name of a listener of the bootstrap file; Envoy also calls its statistics so.
func listenerName(host string, port uint16) string { return host + "_" + strconv.Itoa(int(port)) }
