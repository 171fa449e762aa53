package bootstrap

import (
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// probeMethods are the ways to probe; a probe has exactly one. ownMethods are those of wingman.yaml.
var (
	probeMethods = []string{"httpGet", "tcpSocket", "exec", "grpc"}
	ownMethods   = append(slices.Clone(probeMethods), "systemdUnit", "all")
)

// readProbe reads a readinessProbe, in mesh.yaml (istio.networking.v1alpha3.ReadinessProbe) or as "probe" in wingman.yaml. It
// returns nil when something in it is wrong. The defaults are those of fillInDefaults in Istio's pkg/istio-agent/health:
// thresholds 1, time-out 1 s, period 10 s, path "/", scheme http.
func readProbe(y *yamlFile, n *yaml.Node, path string, strict bool) *Probe {
	r := &probeReader{y: y, strict: strict, before: len(y.problems), methods: probeMethods}
	if strict {
		r.methods = ownMethods
	}
	return r.probe(n, path)
}

// probe reads a probe, the whole of it or a part of all.
func (r *probeReader) probe(n *yaml.Node, path string) *Probe {
	p := &Probe{Timeout: time.Second, Period: 10 * time.Second, SuccessThreshold: 1, FailureThreshold: 1}
	var methods []string
	r.mapping(n, path, func(name, key string, v *yaml.Node) bool {
		switch name {
		case "httpGet":
			p.HTTP = r.http(v, key)
		case "tcpSocket":
			p.TCP = r.tcp(v, key)
		case "exec":
			p.Exec = r.exec(v, key)
		case "grpc":
			p.GRPC = r.grpc(v, key)
		case "systemdUnit":
			if !r.strict {
				return false
			}
			r.unit(v, key, &p.Unit)
		case "all":
			if !slices.Contains(r.methods, "all") {
				return false
			}
			p.All = r.all(v, key)
		case "damping":
			if !slices.Contains(r.methods, "all") { // of the whole, not of its parts
				return false
			}
			p.Damping = r.damping(v, key)
		case "initialDelaySeconds":
			r.seconds(v, key, &p.InitialDelay, true)
		case "timeoutSeconds":
			r.seconds(v, key, &p.Timeout, false)
		case "periodSeconds":
			r.seconds(v, key, &p.Period, false)
		case "successThreshold":
			r.count(v, key, &p.SuccessThreshold)
		case "failureThreshold":
			r.count(v, key, &p.FailureThreshold)
		default:
			return false
		}
		if slices.Contains(r.methods, name) {
			methods = append(methods, name)
		}
		return true
	}, append(slices.Clone(r.methods), "initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"))
	switch len(methods) {
	case 1:
	case 0:
		r.y.refuse(n, path, "no probe", "one of "+strings.Join(r.methods, ", "), "")
	default:
		hint := "keep one of them"
		if slices.Contains(r.methods, "all") {
			hint = "keep one of them, or put them into all"
		}
		r.y.refuse(n, path, strings.Join(methods, " and "), "one probe", hint)
	}
	if len(r.y.problems) > r.before {
		for _, problem := range r.y.problems[r.before:] {
			if problem.Severity == Error {
				return nil
			}
		}
	}
	return p
}

// probe reads the readinessProbe: wingman.yaml's, else mesh.yaml's.
func (l *loader) probe() {
	read := func(y *yamlFile, n *yaml.Node, path string, strict bool, v value) {
		before := len(y.problems)
		l.c.Probe = readProbe(y, n, path, strict)
		raw, ok := plain(y, n, path)
		l.add(y.problems[before:]...)
		if ok && l.c.Probe != nil {
			if !l.c.Probe.istio() {
				raw = map[string]any{} // istiod looks only whether there is one
			}
			l.proxy.fields["readinessProbe"] = raw
			v.text = l.c.Probe.String()
			l.set("probe", v)
		}
	}
	if t, ok := l.ownTrees["probe"]; ok {
		read(t.y, t.node, "probe", true, value{file: t.y.file, line: t.y.line(t.key), key: "probe", rank: rankWingman})
		return
	}
	if l.proxy.probe != nil {
		v := l.proxy.at["readinessProbe"]
		read(l.proxy.probeIn, l.proxy.probe, v.key, false, v)
	}
}

// istio reports whether Istio knows this kind of probe.
func (p *Probe) istio() bool {
	return p.Unit == "" && p.All == nil && p.Damping == Damping{} && (p.Exec == nil || p.Exec.Memory == 0)
}

// String tells the probe in a few words.
func (p *Probe) String() string {
	switch {
	case p.HTTP != nil:
		return "httpGet " + p.HTTP.Scheme + "://" + net.JoinHostPort(p.HTTP.Host, strconv.Itoa(int(p.HTTP.Port))) + p.HTTP.Path
	case p.TCP != nil:
		return "tcpSocket " + net.JoinHostPort(p.TCP.Host, strconv.Itoa(int(p.TCP.Port)))
	case p.Exec != nil:
		return "exec " + strings.Join(p.Exec.Command, " ")
	case p.GRPC != nil:
		return "grpc " + strconv.Itoa(int(p.GRPC.Port)) + " " + p.GRPC.Service
	case p.Unit != "":
		return "systemdUnit " + p.Unit
	case p.All != nil:
		var parts []string
		for _, part := range p.All {
			parts = append(parts, part.String())
		}
		return "all of " + strings.Join(parts, ", ")
	}
	return "none"
}

// probeReader reads the parts of a probe and reports what is wrong in them.
type probeReader struct {
	y      *yamlFile
	strict bool // unknown keys are errors (our own file) or warnings (Istio's)
	before int  // problems that were there
	// methods are the ways to probe that may stand here.
	methods []string
}

// mapping calls set for each entry of n; set returns false for a name it does not know, which is none of names.
func (r *probeReader) mapping(n *yaml.Node, path string, set func(name, key string, v *yaml.Node) bool, names []string) {
	if n.Kind != yaml.MappingNode {
		r.y.refuse(n, path, describe(n), "a mapping with "+strings.Join(names, ", "), "")
		return
	}
	for _, e := range r.y.entries(n, path) {
		key := join(path, e.name)
		if isNull(e.value) && !slices.Contains(probeMethods, lowerCamel(e.name)) {
			continue
		}
		if set(lowerCamel(e.name), key, e.value) {
			continue
		}
		report := r.y.warn
		if r.strict {
			report = r.y.refuse
		}
		report(e.key, key, "an unknown key", "one of "+strings.Join(names, ", "), didYouMean(e.name, names))
	}
}

func (r *probeReader) http(n *yaml.Node, path string) *HTTPGet {
	h := &HTTPGet{Scheme: "http", Path: "/"}
	r.mapping(n, path, func(name, key string, v *yaml.Node) bool {
		switch name {
		case "path":
			r.text(v, key, &h.Path)
		case "host":
			r.text(v, key, &h.Host)
		case "port":
			r.port(v, key, &h.Port)
		case "scheme":
			r.scheme(v, key, &h.Scheme)
		case "httpHeaders":
			r.headers(v, key, &h.Headers)
		default:
			return false
		}
		return true
	}, []string{"path", "port", "host", "scheme", "httpHeaders"})
	if h.Path == "" {
		h.Path = "/"
	}
	r.needPort(n, path, h.Port)
	return h
}

func (r *probeReader) tcp(n *yaml.Node, path string) *TCPSocket {
	t := &TCPSocket{}
	r.mapping(n, path, func(name, key string, v *yaml.Node) bool {
		switch name {
		case "host":
			r.text(v, key, &t.Host)
		case "port":
			r.port(v, key, &t.Port)
		default:
			return false
		}
		return true
	}, []string{"host", "port"})
	r.needPort(n, path, t.Port)
	return t
}

func (r *probeReader) grpc(n *yaml.Node, path string) *GRPC {
	g := &GRPC{}
	r.mapping(n, path, func(name, key string, v *yaml.Node) bool {
		switch name {
		case "port":
			r.port(v, key, &g.Port)
		case "service":
			r.text(v, key, &g.Service)
		default:
			return false
		}
		return true
	}, []string{"port", "service"})
	r.needPort(n, path, g.Port)
	return g
}

func (r *probeReader) exec(n *yaml.Node, path string) *Exec {
	e := &Exec{}
	r.mapping(n, path, func(name, key string, v *yaml.Node) bool {
		if name == "memoryBytes" && r.strict {
			r.bytes(v, key, &e.Memory)
			return true
		}
		if name != "command" {
			return false
		}
		list, expected := fieldValue(v, listField)
		if expected != "" {
			r.y.refuse(v, key, describe(v), expected, "a program and its arguments, each an item")
			return true
		}
		for _, arg := range list.([]any) {
			e.Command = append(e.Command, arg.(string))
		}
		return true
	}, []string{"command"})
	if len(e.Command) == 0 || e.Command[0] == "" {
		r.y.refuse(n, join(path, "command"), "no command", "a program and its arguments", "")
	}
	return e
}

func (r *probeReader) text(n *yaml.Node, key string, to *string) {
	if n.Kind != yaml.ScalarNode {
		r.y.refuse(n, key, describe(n), "text", "")
		return
	}
	*to = n.Value
}

func (r *probeReader) scheme(n *yaml.Node, key string, to *string) {
	v := strings.ToLower(n.Value)
	if n.Kind != yaml.ScalarNode || v != "" && v != "http" && v != "https" {
		r.y.refuse(n, key, describe(n), "HTTP or HTTPS", "")
		return
	}
	if v != "" {
		*to = v
	}
}

func (r *probeReader) port(n *yaml.Node, key string, to *uint16) {
	v, ok := parsePort(n.Value)
	if n.Kind != yaml.ScalarNode || !ok {
		r.y.refuse(n, key, describe(n), portNum.expected, "")
		v = 1 // not missing
	}
	*to = v
}

func (r *probeReader) needPort(n *yaml.Node, path string, port uint16) {
	if port == 0 && n.Kind == yaml.MappingNode {
		r.y.refuse(n, join(path, "port"), "no port", portNum.expected, "")
	}
}

// seconds reads a whole number of seconds; 0 is the default but where zero says that it counts.
func (r *probeReader) seconds(n *yaml.Node, key string, to *time.Duration, zero bool) {
	const day = 24 * 60 * 60
	v, err := strconv.Atoi(n.Value)
	if n.Kind != yaml.ScalarNode || err != nil || v < 0 || v > day {
		r.y.refuse(n, key, describe(n), fmt.Sprintf("a number of seconds from 0 to %d", day), "")
		return
	}
	if v > 0 || zero {
		*to = time.Duration(v) * time.Second
	}
}

func (r *probeReader) count(n *yaml.Node, key string, to *int) {
	v, err := strconv.Atoi(n.Value)
	if n.Kind != yaml.ScalarNode || err != nil || v < 0 || v > 1000 {
		r.y.refuse(n, key, describe(n), "a number of probes from 1 to 1000", "")
		return
	}
	if v > 0 {
		*to = v
	}
}

func (r *probeReader) headers(n *yaml.Node, path string, to *[][2]string) {
	if n.Kind != yaml.SequenceNode {
		r.y.refuse(n, path, describe(n), "a list of name and value", "")
		return
	}
	for i, item := range n.Content {
		at := fmt.Sprintf("%s[%d]", path, i)
		var header [2]string
		r.mapping(resolve(item), at, func(name, key string, v *yaml.Node) bool {
			switch name {
			case "name":
				r.text(v, key, &header[0])
			case "value":
				r.text(v, key, &header[1])
			default:
				return false
			}
			return true
		}, []string{"name", "value"})
		if !isHeaderName(header[0]) || strings.ContainsAny(header[1], "\r\n\x00") {
			r.y.refuse(item, at, quote(header[0]), "a header's name and a value of one line", "")
			continue
		}
		*to = append(*to, header)
	}
}

// isHeaderName reports whether s is a token (RFC 9110 section 5.1).
func isHeaderName(s string) bool {
	for _, c := range []byte(s) {
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && !strings.ContainsRune("!#$%&'*+-.^_`|~", rune(c)) {
			return false
		}
	}
	return s != ""
}
