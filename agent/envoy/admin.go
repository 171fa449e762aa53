package envoy

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// Admin asks an Envoy on its admin port. Every call is bounded by its context alone: a main thread that is busy with a large push
// answers late. Make it with NewAdmin; safe for concurrent use.
type Admin struct {
	base   string
	own    []string // ends of the names of listeners that carry no traffic of the workload
	client *http.Client
}

// NewAdmin makes a client for the Envoy whose admin port is at addr. own are the ports of listeners that carry no traffic of the
// workload: those of its bootstrap file (Facts.OwnPorts). It opens nothing.
func NewAdmin(addr netip.AddrPort, own ...uint16) *Admin {
	a := &Admin{
		base: "http://" + addr.String(),
		// A connection for each call: one kept open would outlive the Envoy it leads to.
		client: &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true}},
	}
	for _, port := range own {
		a.own = append(a.own, "_"+strconv.Itoa(int(port)))
	}
	return a
}

// Ready reports whether Envoy serves: its clusters and listeners have arrived and are warm. state is Envoy's own word (LIVE,
// PRE_INITIALIZING, INITIALIZING, DRAINING). An error means that it did not answer.
func (a *Admin) Ready(ctx context.Context) (live bool, state string, err error) {
	res, err := a.do(ctx, http.MethodGet, "/ready", nil)
	if err != nil {
		return false, "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 64))
	if err != nil {
		return false, "", err
	}
	return res.StatusCode == http.StatusOK, strings.TrimSpace(string(body)), nil
}

// Drain makes Envoy shed its inbound connections: peers are told with each answer to go elsewhere, and its inbound listeners close
// after its drain time (--drain-time-s). Outbound listeners go on, for what the workload still has to say. Envoy does not end, and
// there is no way back but its restart.
func (a *Admin) Drain(ctx context.Context) error {
	if err := a.post(ctx, "/healthcheck/fail", nil); err != nil {
		return err
	}
	return a.post(ctx, "/drain_listeners", url.Values{"graceful": {""}, "inboundonly": {""}})
}

// StopListening makes Envoy accept no further connection, whether inbound or outbound. Those that it has go on, and HTTP clients are told with
// their next answer to go elsewhere.
func (a *Admin) StopListening(ctx context.Context) error {
	if err := a.post(ctx, "/healthcheck/fail", nil); err != nil {
		return err
	}
	return a.post(ctx, "/drain_listeners", nil)
}

// Version is Envoy's release, "1.40.0".
func (a *Admin) Version(ctx context.Context) (string, error) {
	res, err := a.do(ctx, http.MethodGet, "/server_info", nil)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	var info struct {
		Version string `json:"version"` // COMMIT/RELEASE/Clean/RELEASE/BoringSSL
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&info); err != nil {
		return "", fmt.Errorf("read envoy's server_info: %w", err)
	}
	parts := strings.Split(info.Version, "/")
	if len(parts) < 2 || parts[1] == "" {
		return "", fmt.Errorf("read envoy's version: %q has no release", info.Version)
	}
	return parts[1], nil
}

// requestsStat ends the names of the statistics that count the HTTP requests which have no whole answer yet.
const requestsStat = "downstream_rq_active"

// Requests counts the HTTP requests that Envoy is at work on, but for those of the admin port. known is false when Envoy does not count them,
// because another bootstrap file keeps it from it.
func (a *Admin) Requests(ctx context.Context) (n int, known bool, err error) {
	err = a.stats(ctx, `^http\..*\.`+requestsStat+`$`, func(name string, value int) {
		known = true
		if !strings.HasPrefix(name, "http.admin.") {
			n += value
		}
	})
	return n, known, err
}

// connectionsStat ends the names of the statistics that count a listener's connections.
const connectionsStat = "downstream_cx_active"

// Connections counts the connections that peers and the workload have to Envoy now; those to its own listeners and between
// its listeners do not count. known is false when Envoy does not count them, because another bootstrap file keeps it from it.
func (a *Admin) Connections(ctx context.Context) (n int, known bool, err error) {
	err = a.stats(ctx, `^listener\..*`+connectionsStat+`$`, func(name string, value int) {
		listener, ok := strings.CutPrefix(strings.TrimSuffix(name, "."+connectionsStat), "listener.")
		if !ok {
			return
		}
		known = true
		if a.isTraffic(listener) {
			n += value
		}
	})
	return n, known, err
}

// isTraffic tells the workload's listeners from Envoy's own, by their names in statistics: ADDRESS_PORT, and again with the share of
// each worker.
func (a *Admin) isTraffic(listener string) bool {
	if strings.HasPrefix(listener, "admin") || strings.HasPrefix(listener, "envoy_internal_") || strings.Contains(listener, ".worker_") {
		return false
	}
	for _, end := range a.own {
		if strings.HasSuffix(listener, end) {
			return false
		}
	}
	return true
}

// Overview is what an Envoy says of its configuration.
type Overview struct {
	WorkersStarted bool // it accepts connections
	Listeners      int  // active, those of the bootstrap file included
	Clusters       int  // active
	// Pushes taken in and refused, of clusters and of listeners.
	CDSAccepted, CDSRejected, LDSAccepted, LDSRejected int
}

// Configured reports whether Envoy has clusters and listeners from istiod and serves them (Istio: pilot/cmd/pilot-agent/status/ready).
func (o Overview) Configured() bool {
	return o.WorkersStarted && o.CDSAccepted > 0 && o.LDSAccepted > 0
}

// Overview asks for the few statistics that it consists of.
func (a *Admin) Overview(ctx context.Context) (Overview, error) {
	var o Overview
	started := 0
	into := map[string]*int{
		"listener_manager.workers_started":        &started,
		"listener_manager.total_listeners_active": &o.Listeners,
		"cluster_manager.active_clusters":         &o.Clusters,
		"cluster_manager.cds.update_success":      &o.CDSAccepted,
		"cluster_manager.cds.update_rejected":     &o.CDSRejected,
		"listener_manager.lds.update_success":     &o.LDSAccepted,
		"listener_manager.lds.update_rejected":    &o.LDSRejected,
	}
	err := a.stats(ctx, `^(listener_manager|cluster_manager)\.(workers_started|total_listeners_active|active_clusters|.ds\.update_(success|rejected))$`,
		func(name string, value int) {
			if p := into[name]; p != nil {
				*p = value
			}
		})
	o.WorkersStarted = started > 0
	return o, err
}

// stats calls each with the counters and gauges whose names match filter.
func (a *Admin) stats(ctx context.Context, filter string, each func(name string, value int)) error {
	res, err := a.do(ctx, http.MethodGet, "/stats", url.Values{"usedonly": {""}, "filter": {filter}})
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("envoy's admin port answers /stats with %s", res.Status)
	}
	return parseStats(res.Body, each)
}

// parseStats reads Envoy's text form: a line "NAME: NUMBER" for each. Lines of another form, as histograms, are passed over.
func parseStats(r io.Reader, each func(name string, value int)) error {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		name, text, ok := strings.Cut(lines.Text(), ": ")
		value, err := strconv.ParseInt(strings.TrimSpace(text), 10, 63)
		if ok && err == nil && value >= 0 {
			each(name, int(value))
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read envoy's statistics: %w", err)
	}
	return nil
}

func (a *Admin) post(ctx context.Context, path string, query url.Values) error {
	res, err := a.do(ctx, http.MethodPost, path, query)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(res.Body, 200))
		return fmt.Errorf("envoy's admin port answers %s with %s: %s", path, res.Status, strings.TrimSpace(string(text)))
	}
	return nil
}

func (a *Admin) do(ctx context.Context, method, path string, query url.Values) (*http.Response, error) {
	u := a.base + path
	if len(query) > 0 {
		u += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, u, nil)
	if err != nil {
		return nil, err
	}
	res, err := a.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("envoy's admin port: %w", err)
	}
	return res, nil
}
