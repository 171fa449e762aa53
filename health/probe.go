package health

import (
	"fmt"
	"log/slog"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
)

// Istio's defaults for a WorkloadGroup's probe (pkg/istio-agent/health, fillInDefaults); Kubernetes has other thresholds.
const (
	DefaultPeriod    = 10 * time.Second
	DefaultTimeout   = time.Second
	DefaultThreshold = 1

	// DefaultExecMemory bounds the data of each process of an exec probe, in bytes.
	DefaultExecMemory = 512 << 20
)

// A Probe says how to find out whether the workload can serve. At most one of HTTP, TCP, Exec, GRPC, Unit and All is set;
// with none it is the trivial probe, which is healthy at once. Istio: ReadinessProbe of a WorkloadGroup.
type Probe struct {
	HTTP *HTTPGet
	TCP  *TCPSocket
	Exec *Exec
	GRPC *GRPC

	// Unit is the name of a systemd unit ("myapp.service") that has to be active. systemd tells of changes by itself, so
	// of the settings below only Timeout counts: how long the first answer may take. Not known to Istio.
	Unit string

	// All holds probes of which each has its own settings and all have to pass; the settings below do not count then.
	// Not known to Istio.
	All []Probe

	InitialDelay     time.Duration // before the first probe; zero is at once. Istio: initialDelaySeconds
	Timeout          time.Duration // of one probe; zero means 1 s. Istio: timeoutSeconds
	Period           time.Duration // from start to start; zero means 10 s. Istio: periodSeconds
	SuccessThreshold int           // successes in a row that make it healthy; zero means 1. Istio: successThreshold
	FailureThreshold int           // failures in a row that make it unhealthy; zero means 1. Istio: failureThreshold
}

// HTTPGet passes when a GET is answered with a status from 200 to 399. Redirects are followed on the same host, up to
// 10; one to another host ends there and passes, as with the kubelet. Certificates are not verified.
type HTTPGet struct {
	Scheme  string      // "http" or "https", in any case; empty is http
	Host    string      // to connect to; empty is the default host
	Path    string      // with query; empty is "/"
	Port    uint16      // 1 to 65535
	Headers [][2]string // name and value; Host sets the request's host, User-Agent replaces istio-probe/1.0
}

// TCPSocket passes when a connection can be opened.
type TCPSocket struct {
	Host string // empty is the default host
	Port uint16 // 1 to 65535
}

// Exec passes when Command exits with status 0. It runs in a process group of its own, which is killed as a whole when
// the command ends or its time is up; without a shell, in "/", without input and without the daemon's capabilities.
type Exec struct {
	Command []string

	// MemoryLimit bounds the data of each process (RLIMIT_DATA), in bytes; zero means DefaultExecMemory.
	MemoryLimit uint64
}

// GRPC passes when grpc.health.v1.Health/Check answers SERVING, over plaintext HTTP/2 to the default host.
type GRPC struct {
	Port    uint16 // 1 to 65535
	Service string // empty asks for the server as a whole
}

// leaves returns the probes that have a method of their own.
func (p Probe) leaves() []Probe {
	if len(p.All) > 0 {
		var all []Probe
		for _, q := range p.All {
			all = append(all, q.leaves()...)
		}
		return all
	}
	if p.HTTP == nil && p.TCP == nil && p.Exec == nil && p.GRPC == nil && p.Unit == "" {
		return nil
	}
	return []Probe{p}
}

// watcher returns what runs a leaf that has no problems.
func (p Probe) watcher(host string, environ []string, log *slog.Logger) watcher {
	var c check
	switch {
	case p.Unit != "":
		return newUnitWatcher(p.Unit, orDefault(p.Timeout, DefaultTimeout), log)
	case p.HTTP != nil:
		c = newHTTPCheck(*p.HTTP, host)
	case p.TCP != nil:
		c = newTCPCheck(*p.TCP, host)
	case p.Exec != nil:
		c = newExecCheck(*p.Exec, environ)
	case p.GRPC != nil:
		c = newGRPCCheck(*p.GRPC, host)
	}
	return &poller{
		check:  c,
		delay:  p.InitialDelay,
		every:  orDefault(p.Period, DefaultPeriod),
		within: orDefault(p.Timeout, DefaultTimeout),
		thresholds: rule{
			success: orDefault(p.SuccessThreshold, DefaultThreshold),
			failure: orDefault(p.FailureThreshold, DefaultThreshold),
		},
	}
}

func orDefault[T int | time.Duration](v, otherwise T) T {
	if v == 0 {
		return otherwise
	}
	return v
}

// problems returns everything that is wrong with p; key is its place in the configuration.
func (p Probe) problems(key string, hostNeeded bool) []error {
	var found []error
	bad := func(field, format string, args ...any) {
		found = append(found, fmt.Errorf("%s.%s: %s", key, field, fmt.Sprintf(format, args...)))
	}
	var methods []string
	method := func(name string, set bool) bool {
		if set {
			methods = append(methods, name)
		}
		return set
	}
	port := func(field string, n uint16) {
		if n == 0 {
			bad(field+".port", "found 0, expected 1 to 65535")
		}
	}
	host := func(field, h string) {
		if h == "" && hostNeeded {
			bad(field+".host", "found none, and no instance address to use instead; set one")
		}
		if strings.ContainsAny(h, " /:@[]\t\r\n") && !isIPv6(h) {
			bad(field+".host", "found %q, expected an address or a name, without scheme, port or brackets", h)
		}
	}
	if method("httpGet", p.HTTP != nil) {
		if s := strings.ToLower(p.HTTP.Scheme); s != "" && s != "http" && s != "https" {
			bad("httpGet.scheme", "found %q, expected http or https", p.HTTP.Scheme)
		}
		port("httpGet", p.HTTP.Port)
		host("httpGet", p.HTTP.Host)
		for _, h := range p.HTTP.Headers {
			if !httpguts.ValidHeaderFieldName(h[0]) || !httpguts.ValidHeaderFieldValue(h[1]) {
				bad("httpGet.httpHeaders", "found %q: %q, which is not an HTTP header", h[0], h[1])
			}
		}
	}
	if method("tcpSocket", p.TCP != nil) {
		port("tcpSocket", p.TCP.Port)
		host("tcpSocket", p.TCP.Host)
	}
	if method("exec", p.Exec != nil) && (len(p.Exec.Command) == 0 || p.Exec.Command[0] == "") {
		bad("exec.command", "found none, expected a program and its arguments")
	}
	if method("grpc", p.GRPC != nil) {
		port("grpc", p.GRPC.Port)
		host("grpc", "")
	}
	if method("systemdUnit", p.Unit != "") && !validUnitName(p.Unit) {
		bad("systemdUnit", "found %q, expected a unit name like myapp.service", p.Unit)
	}
	if method("all", len(p.All) > 0) {
		for i, q := range p.All {
			at := fmt.Sprintf("%s.all[%d]", key, i)
			if len(q.leaves()) == 0 {
				found = append(found, fmt.Errorf("%s: found no probe, expected httpGet, tcpSocket, exec, grpc or systemdUnit", at))
			}
			found = append(found, q.problems(at, hostNeeded)...)
		}
	}
	if len(methods) > 1 {
		found = append(found, fmt.Errorf("%s: found %s, expected one of them (all: combines several)", key, strings.Join(methods, " and ")))
	}
	for _, f := range []struct {
		field string
		value time.Duration
	}{{"initialDelaySeconds", p.InitialDelay}, {"timeoutSeconds", p.Timeout}, {"periodSeconds", p.Period}} {
		if f.value < 0 {
			bad(f.field, "found %s, expected zero or more", f.value)
		}
	}
	if p.SuccessThreshold < 0 {
		bad("successThreshold", "found %d, expected zero or more", p.SuccessThreshold)
	}
	if p.FailureThreshold < 0 {
		bad("failureThreshold", "found %d, expected zero or more", p.FailureThreshold)
	}
	return found
}
