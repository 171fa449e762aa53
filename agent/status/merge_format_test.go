package status

import (
	"net/http"
	"testing"
	"time"
)

func TestAcceptFor(t *testing.T) {
	const prometheus3 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5," +
		"text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
	for _, tc := range []struct{ name, scraper, want, wantText string }{
		{"nothing", "", text004, text004},
		{"anything", "*/*", text004, text004},
		{"not a header", "q=1;;", text004, text004},
		{"Prometheus", prometheus3,
			"application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3",
			"text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3"},
		{"protocol buffers first", "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.7,text/plain;version=0.0.4;q=0.6",
			"text/plain;version=0.0.4;q=0.6", "text/plain;version=0.0.4;q=0.6"},
		{"OpenMetrics alone", "application/openmetrics-text", "application/openmetrics-text,text/plain;version=0.0.4;q=0.1", text004},
		{"an OpenMetrics to come", "application/openmetrics-text;version=2.0.0", text004, text004},
		{"plain text", "text/plain", text004, text004},
	} {
		if got := acceptFor(tc.scraper, true); got != tc.want {
			t.Errorf("%s: asked of an application %q, want %q", tc.name, got, tc.want)
		}
		if got := acceptFor(tc.scraper, false); got != tc.wantText {
			t.Errorf("%s: asked of several applications %q, want %q", tc.name, got, tc.wantText)
		}
	}
}

func TestFormatOf(t *testing.T) {
	const text = "text/plain; version=0.0.4; charset=utf-8"
	for _, tc := range []struct{ contentType, encoding, want, err string }{
		{"", "", text, ""},
		{";;", "", text, ""},
		{"text/plain; version=0.0.4", "identity", text, ""},
		{"text/html", "", text, ""}, // what lazy applications say of good metrics; their lines are looked at
		{"application/openmetrics-text", "", "application/openmetrics-text; version=0.0.1; charset=utf-8", ""},
		{"application/openmetrics-text; version=1.0.0; charset=utf-8", "", "application/openmetrics-text; version=1.0.0; charset=utf-8", ""},
		{"application/openmetrics-text; version=2.0.0", "", "", `answers in the format "application/openmetrics-text; version=2.0.0", expected Prometheus' text`},
		{"application/vnd.google.protobuf", "", "", `answers in the format "application/vnd.google.protobuf", expected Prometheus' text`},
		{"text/plain", "gzip", "", `answers with Content-Encoding "gzip", which was not asked for`},
	} {
		got, err := formatOf(http.Header{"Content-Type": {tc.contentType}, "Content-Encoding": {tc.encoding}})
		if string(got) != tc.want || message(err) != tc.err {
			t.Errorf("formatOf(%q, %q) = %q, %v; want %q, %s", tc.contentType, tc.encoding, got, err, tc.want, tc.err)
		}
	}
}

func TestScrapeTime(t *testing.T) {
	for header, want := range map[string]time.Duration{
		"": 10 * time.Second, "soon": 10 * time.Second, "NaN": 10 * time.Second, "-1": 10 * time.Second, "0": 10 * time.Second,
		"1.5": 1500 * time.Millisecond, " 3 ": 3 * time.Second, "9e99": time.Minute, "+Inf": time.Minute, "61": time.Minute,
	} {
		if got := scrapeTime(header); got != want {
			t.Errorf("scrapeTime(%q) = %v, want %v", header, got, want)
		}
	}
}

func TestFromHere(t *testing.T) {
	for remote, want := range map[string]bool{
		"127.0.0.1:5": true, "127.8.9.1:5": true, "[::1]:5": true, "[::ffff:127.0.0.1]:5": true,
		"127.0.0.6:5": false, // Envoy, for a stranger
		"[::6]:5":     false, "10.0.0.1:5": false, "[fe80::1%eth0]:5": false, "": false, "localhost:5": false,
	} {
		if got := fromHere(remote); got != want {
			t.Errorf("fromHere(%q) = %v, want %v", remote, got, want)
		}
	}
}
