package testbed

import (
	"errors"
	"os"
	"strings"
	"testing"
)

// AccessLog, added to a mesh configuration, makes every Envoy write one line for each request or connection: see AwaitAccess.
const AccessLog = `accessLogFile: /dev/stdout
accessLogFormat: "access cluster=%UPSTREAM_CLUSTER_RAW% path=%REQ(:PATH)% status=%RESPONSE_CODE% flags=%RESPONSE_FLAGS% upstream=%UPSTREAM_HOST% peer=%DOWNSTREAM_PEER_URI_SAN%\n"
`

// Access is one line of an Envoy's access log. What a request or connection has not is "-", or "0" for the status.
type Access struct {
	Cluster  string // where Envoy sent it: inbound|3000||, outbound|80||catalog.istioinaction.svc.cluster.local
	Path     string // "-" for a connection that Envoy did not take for HTTP
	Status   string
	Flags    string // Envoy's response flags: UH is "no healthy upstream"
	Upstream string // address and port that Envoy connected to
	Peer     string // SPIFFE id of who sent it; "-" for plain text
}

// Inbound reports whether the request came in for an application on Envoy's own machine.
func (a Access) Inbound() bool { return strings.HasPrefix(a.Cluster, "inbound|") }

// Logger has a log file with an Envoy's access log in it: Envoy, Istio, Pod.
type Logger interface {
	Name() string // of its machine
	Log() string
}

// AwaitAccess waits until an access log has a line that match is true of, and returns it. Envoy flushes once a second. The mesh
// must have been started with AccessLog.
func AwaitAccess(t testing.TB, of Logger, what string, match func(Access) bool) (found Access) {
	t.Helper()
	Await(t, of.Name()+"'s Envoy logs "+what, func() error {
		content, err := os.ReadFile(of.Log())
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(content)) {
			if a, ok := parseAccess(line); ok && match(a) {
				found = a
				return nil
			}
		}
		return errors.New("no such line")
	})
	return found
}

// Peer waits until the access log has a request for a path that came in for the application, and returns the SPIFFE id of who
// sent it: "-" for plain text. The mesh must have been started with AccessLog.
func (e *Envoy) Peer(t testing.TB, path string) (id string) {
	t.Helper()
	return peerOf(t, e, path)
}

// Peer waits until the access log has a request for a path that came in for the application, and returns the SPIFFE id of who
// sent it: "-" for plain text. The mesh must have been started with AccessLog.
func (i *Istio) Peer(t testing.TB, path string) (id string) {
	t.Helper()
	return peerOf(t, i, path)
}

func peerOf(t testing.TB, of Logger, path string) (id string) {
	t.Helper()
	return AwaitAccess(t, of, "a request for "+path, func(a Access) bool { return a.Inbound() && a.Path == path }).Peer
}

func parseAccess(line string) (a Access, ok bool) {
	rest, ok := strings.CutPrefix(strings.TrimSpace(line), "access ")
	if !ok {
		return a, false
	}
	for field := range strings.FieldsSeq(rest) {
		key, value, _ := strings.Cut(field, "=")
		switch key {
		case "cluster":
			a.Cluster = value
		case "path":
			a.Path = value
		case "status":
			a.Status = value
		case "flags":
			a.Flags = value
		case "upstream":
			a.Upstream = value
		case "peer":
			a.Peer = value
		}
	}
	return a, true
}
