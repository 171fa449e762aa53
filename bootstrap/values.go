package bootstrap

import (
	"fmt"
	"math"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// value is what a source says about a setting, before it has a type.
type value struct {
	text string
	file string // empty: built-in
	line int
	key  string // as its author knows it: variable, or dotted path
	rank int
}

// badValue says why a value does not fit its setting.
type badValue struct{ found, expected, hint string }

// A kind turns text into a T. expected completes "expected …" in messages and names the kind in the docs.
type kind[T any] struct {
	expected string
	parse    func(text string) (T, bool)
	hint     string
}

// read parses text or says what is wrong with it.
func (k kind[T]) read(text string) (T, *badValue) {
	v, ok := k.parse(text)
	if !ok {
		return v, &badValue{found: quote(text), expected: k.expected, hint: k.hint}
	}
	return v, nil
}

// listOf is a comma separated list of k. Empty parts are left out, as Istio does; the first bad part is named.
func listOf[T any](k kind[T], plural string) func(text string) ([]T, *badValue) {
	return func(text string) ([]T, *badValue) {
		var list []T
		for _, part := range strings.Split(text, ",") {
			if part = strings.TrimSpace(part); part == "" {
				continue
			}
			v, bad := k.read(part)
			if bad != nil {
				bad.expected = plural + ", each " + k.expected
				return nil, bad
			}
			list = append(list, v)
		}
		return list, nil
	}
}

// star is list, or "*" for all; "*" among others is refused, because Istio would take it and match nothing.
func star[T any](list func(string) ([]T, *badValue)) func(text string) (all bool, _ []T, _ *badValue) {
	return func(text string) (bool, []T, *badValue) {
		if strings.TrimSpace(text) == "*" {
			return true, nil, nil
		}
		v, bad := list(text)
		if bad != nil && bad.found == quote("*") {
			bad.found, bad.expected = `"*" among others`, `"*" alone or `+bad.expected
		} else if bad != nil {
			bad.expected = `"*" or ` + bad.expected
		}
		return false, v, bad
	}
}

var (
	anyText      = kind[string]{expected: "text", parse: func(s string) (string, bool) { return s, true }}
	closedOrOpen = kind[bool]{expected: "closed or open", parse: func(s string) (open, ok bool) { return s == "open", s == "open" || s == "closed" }}
	captureLevel = kind[level]{expected: "one of auto, none, dns, all, ports:[…] with ports from 1 to 65535", parse: parseLevel}
	boolean      = kind[bool]{expected: "true or false", parse: parseBool}
	portNum      = kind[uint16]{expected: "a port from 1 to 65535", parse: parsePort}
	packetMark   = kind[uint32]{expected: "a packet mark from 1 to 4294967295", parse: parseUint32(1)}
	userID       = kind[uint32]{expected: "a numeric id from 0 to 4294967294", parse: parseID}
	routeTable   = kind[int]{expected: "a routing table from 1 to 252", parse: parseInt(1, 252)}
	threads      = kind[int]{expected: "a number of threads from 0 to 1024", parse: parseInt(0, 1024)}
	rsaBits      = kind[int]{expected: "a key size from 2048 to 8192 bits", parse: parseInt(2048, 8192)}
	ratio        = kind[float64]{expected: "a number above 0 and below 1", parse: parseFraction(false)}
	jitter       = kind[float64]{expected: "a number from 0 to below 1", parse: parseFraction(true)}
	cidr         = kind[netip.Prefix]{expected: "a CIDR such as 10.96.0.0/16", parse: parseCIDR}
	loopback     = kind[netip.Prefix]{expected: "an IPv4 loopback CIDR from 127.0.0.0/8 to 127.0.0.1/32", parse: parseLoopbackCIDR}
	instanceAddr = kind[netip.Addr]{expected: "an address other hosts can reach", parse: parseInstance}
	portRange    = kind[PortRange]{expected: "a port from 1 to 65535 or a range such as 9000:9100", parse: parsePortRange}
	listenAddr   = kind[netip.AddrPort]{expected: "an address and port such as 127.0.0.1:15053", parse: parseListen}
	dnsServer    = kind[netip.AddrPort]{expected: "a server's address, with a port if it is not 53", parse: parseServer}
	cacheSize    = kind[int]{expected: "a number of bytes from 0 to 1073741824", parse: parseInt(0, 1<<30)}
	iface        = kind[string]{expected: "an interface name of 1 to 15 characters", parse: parseInterface}
	dnsLabel     = kind[string]{expected: "a name of lower-case letters, digits and -", parse: parseDNSLabel}
	dnsName      = kind[string]{expected: "a DNS name", parse: parseDNSName}
	groupName    = kind[string]{expected: "a group's name or gid", parse: parseWord}
	fileGroup    = kind[string]{expected: "a group's name or gid", parse: parseFileGroup} // that a folder is named for
	userName     = kind[string]{expected: "a user's name or uid", parse: parseWord}
	oneWord      = kind[string]{expected: "a word without spaces", parse: func(s string) (string, bool) {
		s = strings.TrimSpace(s)
		return s, s != "" && !strings.ContainsAny(s, " \t\n")
	}}
	filePath     = kind[string]{expected: "a path", parse: parsePath}
	scrapeTarget = kind[ScrapeTarget]{expected: "a port, with a path if that is not /metrics, as 8080 or 8080:/stats", parse: parseScrapeTarget}
	hostPort     = kind[string]{expected: "host:port", parse: parseAddress, hint: "without a scheme such as http://, an IPv6 address in brackets"}
)

// oneOf accepts some words in any letter case and returns them as written here.
func oneOf(words ...string) kind[string] {
	return kind[string]{
		expected: "one of " + strings.Join(words, ", "),
		parse: func(s string) (string, bool) {
			i := slices.IndexFunc(words, func(w string) bool { return strings.EqualFold(w, strings.TrimSpace(s)) })
			if i < 0 {
				return "", false
			}
			return words[i], true
		},
	}
}

// duration accepts what Go and Istio write, as "12h0m0s", between min and max.
func duration(min, max time.Duration) kind[time.Duration] {
	return kind[time.Duration]{
		expected: fmt.Sprintf("a duration from %s to %s", short(min), short(max)),
		parse: func(s string) (time.Duration, bool) {
			d, err := time.ParseDuration(strings.TrimSpace(s))
			return d, err == nil && d >= min && d <= max
		},
		hint: "a number with its unit, as 500ms, 20s or 12h",
	}
}

// wholeSeconds is a duration without a fraction of a second, as Envoy's --drain-time-s takes it.
func wholeSeconds(min, max time.Duration) kind[time.Duration] {
	k := duration(min, max)
	parse := k.parse
	k.expected = strings.Replace(k.expected, "a duration", "a duration of whole seconds", 1)
	k.parse = func(s string) (time.Duration, bool) {
		d, ok := parse(s)
		return d, ok && d%time.Second == 0
	}
	return k
}

// short writes a duration without zero parts: 12h instead of 12h0m0s.
func short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

func parseBool(s string) (bool, bool) {
	v, err := strconv.ParseBool(strings.TrimSpace(s))
	return v, err == nil
}

func parsePort(s string) (uint16, bool) {
	v, err := strconv.ParseUint(strings.TrimSpace(s), 10, 16)
	return uint16(v), err == nil && v > 0
}

func parseUint32(min uint64) func(string) (uint32, bool) {
	return func(s string) (uint32, bool) {
		v, err := strconv.ParseUint(strings.TrimSpace(s), 0, 32)
		return uint32(v), err == nil && v >= min
	}
}

// parseID leaves out 4294967295, which the kernel reads as "no id".
func parseID(s string) (uint32, bool) {
	v, err := strconv.ParseUint(strings.TrimSpace(s), 10, 32)
	return uint32(v), err == nil && v < math.MaxUint32
}

func parseInt(min, max int) func(string) (int, bool) {
	return func(s string) (int, bool) {
		v, err := strconv.Atoi(strings.TrimSpace(s))
		return v, err == nil && v >= min && v <= max
	}
}

func parseFraction(zero bool) func(string) (float64, bool) {
	return func(s string) (float64, bool) {
		v, err := strconv.ParseFloat(strings.TrimSpace(s), 64)
		return v, err == nil && v < 1 && (v > 0 || zero && v == 0)
	}
}

func parseCIDR(s string) (netip.Prefix, bool) {
	p, err := netip.ParsePrefix(strings.TrimSpace(s))
	return p, err == nil && p.Addr().Zone() == "" && !p.Addr().Is4In6()
}

// parseLoopbackCIDR has the limits of Istio's ValidateIPv4LoopbackCidr (tools/common/config/validation.go).
func parseLoopbackCIDR(s string) (netip.Prefix, bool) {
	p, ok := parseCIDR(s)
	return p, ok && p.Addr().Is4() && p.Addr().IsLoopback() && p.Bits() >= 8
}

// parseInstance refuses what must never stand in a WorkloadEntry: loopback, link-local, multicast, unspecified.
func parseInstance(s string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(strings.TrimSpace(s))
	a = a.Unmap()
	return a, err == nil && a.Zone() == "" && a.IsGlobalUnicast()
}

// parsePortRange reads 9000, and 9000:9100 or 9000-9100 (the former is iptables' own writing, which Istio passes on).
func parsePortRange(s string) (PortRange, bool) {
	first, last, isRange := strings.Cut(strings.Replace(s, "-", ":", 1), ":")
	if !isRange {
		last = first
	}
	a, ok1 := parsePort(first)
	b, ok2 := parsePort(last)
	return PortRange{a, b}, ok1 && ok2 && a <= b
}

// parseScrapeTarget reads PORT or PORT:PATH, as Istio's annotation prometheus.istio.io/scrape-targets has them
// (ParseScrapeTargets in pilot/cmd/pilot-agent/status/server.go).
func parseScrapeTarget(s string) (ScrapeTarget, bool) {
	number, path, hasPath := strings.Cut(strings.TrimSpace(s), ":")
	port, ok := parsePort(number)
	if !hasPath {
		path = "/metrics"
	}
	u, err := url.ParseRequestURI(path)
	return ScrapeTarget{Port: port, Path: path}, ok && err == nil && u.Host == "" && strings.HasPrefix(path, "/") && !strings.ContainsAny(path, " #")
}

// parseListen reads host:port, where host is an address, "localhost" (127.0.0.1) or empty (every IPv4 address).
func parseListen(s string) (netip.AddrPort, bool) {
	host, port, err := net.SplitHostPort(strings.TrimSpace(s))
	if err != nil {
		return netip.AddrPort{}, false
	}
	switch host {
	case "localhost":
		host = "127.0.0.1"
	case "":
		host = "0.0.0.0"
	}
	a, err := netip.ParseAddr(host)
	p, ok := parsePort(port)
	return netip.AddrPortFrom(a.Unmap(), p), err == nil && ok
}

// parseInterface has the kernel's limits (dev_valid_name).
func parseInterface(s string) (string, bool) {
	s = strings.TrimSpace(s)
	return s, s != "" && len(s) <= 15 && s != "." && s != ".." && !strings.ContainsAny(s, "/: \t\n")
}

// parseDNSLabel has the limits of a Kubernetes namespace or service account (RFC 1123 labels, joined by dots for the latter).
func parseDNSLabel(s string) (string, bool) {
	s = strings.TrimSpace(s)
	if s == "" || len(s) > 253 {
		return s, false
	}
	for _, label := range strings.Split(s, ".") {
		edge := func(c byte) bool { return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' }
		if label == "" || len(label) > 63 || !edge(label[0]) || !edge(label[len(label)-1]) {
			return s, false
		}
		for i := range len(label) {
			if !edge(label[i]) && label[i] != '-' {
				return s, false
			}
		}
	}
	return s, true
}

// parseDNSName reads a domain as it stands in certificates: any case, an underscore allowed, no final dot.
func parseDNSName(s string) (string, bool) {
	s = strings.TrimSuffix(strings.TrimSpace(s), ".")
	_, ok := parseDNSLabel(strings.ReplaceAll(strings.ToLower(s), "_", "-"))
	return s, ok
}

func parseWord(s string) (string, bool) {
	s = strings.TrimSpace(s)
	return s, s != "" && !strings.ContainsAny(s, " \t\n:,")
}

func parseFileGroup(s string) (string, bool) {
	s, ok := parseWord(s)
	return s, ok && s != "." && s != ".." && !strings.ContainsAny(s, "/\x00")
}

func parsePath(s string) (string, bool) {
	return s, s != "" && !strings.ContainsAny(s, "\x00\n")
}

// parseAddress reads host:port of a server, with host a name or an address.
func parseAddress(s string) (string, bool) {
	s = strings.TrimSpace(s)
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return s, false
	}
	if _, ok := parsePort(port); !ok {
		return s, false
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return s, true
	}
	name, ok := parseDNSName(host)
	last := name[strings.LastIndex(name, ".")+1:]
	return s, ok && !strings.Contains(s, "[") && strings.Trim(last, "0123456789") != "" // 10.0.0.300 is no name
}

var (
	// optionalLabel may be empty.
	optionalLabel = kind[string]{expected: dnsLabel.expected + ", or nothing", parse: func(s string) (string, bool) {
		if s == "" {
			return "", true
		}
		return parseDNSLabel(s)
	}}
	socketFile   = kind[string]{expected: "the path of a socket, or its name in /var/run/secrets/workload-spiffe-uds, or nothing", parse: parseSocketFile}
	optionalPath = kind[string]{expected: "a path, or nothing", parse: func(s string) (string, bool) { return s, !strings.ContainsAny(s, "\x00\n") }}
	logLevel     = kind[string]{expected: "one of debug, info, warn, error, none", parse: parseLogLevel}
	envoyLevel   = kind[string]{expected: "one of trace, debug, info, warning, error, critical, off, and scopes such as upstream:debug", parse: parseEnvoyLevel}
)

// parseSocketFile reads the path of a socket. Istio knows only its name (pkg/istio-agent/agent.go, WorkloadIdentitySocketFile).
func parseSocketFile(s string) (string, bool) {
	if s != "" && !strings.Contains(s, "/") {
		s = "/var/run/secrets/workload-spiffe-uds/" + s
	}
	return s, !strings.ContainsAny(s, "\x00\n")
}

// parseLogLevel reads Istio's levels and the other word for warn; Istio's fatal is above error, where the agent logs nothing.
func parseLogLevel(s string) (string, bool) {
	s = strings.ToLower(strings.TrimSpace(s))
	switch s {
	case "warning":
		s = "warn"
	case "fatal":
		s = "none"
	}
	return s, slices.Contains([]string{"debug", "info", "warn", "error", "none"}, s)
}

func parseEnvoyLevel(s string) (string, bool) {
	levels := []string{"trace", "debug", "info", "warning", "warn", "error", "critical", "off"}
	for i, part := range strings.Split(s, ",") {
		scope, level, scoped := strings.Cut(part, ":")
		if !scoped {
			level = scope
		}
		if !slices.Contains(levels, level) || scoped && scope == "" || !scoped && i > 0 {
			return s, false
		}
	}
	return s, true
}

// parseServer reads a DNS server: an address, or address:port with an IPv6 address in brackets.
func parseServer(s string) (netip.AddrPort, bool) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(a, 53), !a.IsUnspecified()
	}
	ap, err := netip.ParseAddrPort(s)
	return ap, err == nil && ap.Port() != 0 && !ap.Addr().IsUnspecified()
}

// level is how much is captured: one of the words of setting capture, "ports" with its list.
type level struct {
	level string
	ports []uint16
}

// parseLevel reads the value of setting capture.
func parseLevel(s string) (level, bool) {
	list, isPorts := strings.CutPrefix(s, "ports:")
	if !isPorts {
		return level{level: s}, slices.Contains([]string{"auto", "none", "dns", "all"}, s)
	}
	if list = strings.TrimSpace(list); strings.HasPrefix(list, "[") && strings.HasSuffix(list, "]") {
		list = list[1 : len(list)-1]
	}
	l := level{level: "ports"}
	for _, part := range strings.Split(list, ",") {
		port, bad := portNum.read(strings.TrimSpace(part))
		if bad != nil {
			return level{}, false
		}
		if !slices.Contains(l.ports, port) {
			l.ports = append(l.ports, port)
		}
	}
	return l, true
}
