package status

import (
	"cmp"
	"fmt"
	"mime"
	"net/http"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
)

// Formats. Everything can be read as text; OpenMetrics adds exemplars and ends with a mark.
const (
	typeText        = "text/plain"
	typeOpenMetrics = "application/openmetrics-text"
	typeProtobuf    = "application/vnd.google.protobuf"
	text004         = typeText + ";version=0.0.4"
	endMark         = "# EOF"
)

// acceptFor is the Accept header for an application, made of the one that the scraper sent: its text and, where openMetrics may be
// answered, its OpenMetrics, in its order of preference. Text of version 0.0.4 is always acceptable.
// Istio: allowedContentTypes in pilot/cmd/pilot-agent/status/server.go.
func acceptFor(scraper string, openMetrics bool) string {
	var kept []string
	plain := false
	for _, part := range strings.Split(scraper, ",") {
		kind, params, err := mime.ParseMediaType(part)
		if err != nil {
			continue
		}
		switch {
		case kind == typeOpenMetrics && openMetrics && knownOpenMetrics(params["version"]):
		case kind == typeText && params["version"] != "":
			plain = plain || params["version"] == "0.0.4"
		default:
			continue
		}
		kept = append(kept, strings.TrimSpace(part))
	}
	switch {
	case len(kept) == 0:
		return text004
	case !plain:
		kept = append(kept, text004+";q=0.1")
	}
	return strings.Join(kept, ",")
}

// knownOpenMetrics tells the versions in which our own metrics can be written. None means the first.
func knownOpenMetrics(version string) bool {
	return slices.Contains([]string{"", expfmt.OpenMetricsVersion_0_0_1, expfmt.OpenMetricsVersion_1_0_0}, version)
}

// formatOf reads how an answer is written. What names no format of metrics is taken for text, as Prometheus long did; what cannot
// be put between others is an error.
func formatOf(header http.Header) (expfmt.Format, error) {
	if e := header.Get("Content-Encoding"); e != "" && e != "identity" {
		return "", fmt.Errorf("answers with Content-Encoding %q, which was not asked for", e)
	}
	kind, params, err := mime.ParseMediaType(header.Get("Content-Type"))
	version := cmp.Or(params["version"], expfmt.OpenMetricsVersion_0_0_1)
	switch {
	case err == nil && kind == typeOpenMetrics && knownOpenMetrics(version):
		return expfmt.NewOpenMetricsFormat(version)
	case err == nil && (kind == typeOpenMetrics || kind == typeProtobuf):
		return "", fmt.Errorf("answers in the format %q, expected Prometheus' text", header.Get("Content-Type"))
	}
	return expfmt.NewFormat(expfmt.TypeTextPlain), nil
}

// isText reports whether a header says that its body is text of Prometheus' or plain.
func isText(header http.Header) bool {
	kind, _, err := mime.ParseMediaType(header.Get("Content-Type"))
	return err == nil && kind == typeText
}

// ownPrefix begins the names of all our metrics in a merge.
const ownPrefix = "wingman_"

// prefixed gathers our own metrics with names of their own: those of Go and of the process would else be the application's too, and of
// two samples for one series Prometheus keeps the first. Istio does the same with istio_agent_ (initializeMonitoring).
func prefixed(g prometheus.Gatherer) ([]*dto.MetricFamily, error) {
	families, err := g.Gather() // with an error come those that were fine
	own := make([]*dto.MetricFamily, len(families))
	for i, f := range families {
		name := f.GetName()
		if !strings.HasPrefix(name, ownPrefix) {
			name = ownPrefix + name
		}
		own[i] = &dto.MetricFamily{Name: &name, Help: f.Help, Type: f.Type, Unit: f.Unit, Metric: f.Metric}
	}
	return own, err
}
