package health

import (
	"net/url"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

// What a broken application answers ends up in logs and in a Kubernetes condition.
func FuzzReasonText(f *testing.F) {
	f.Add("503 Service Unavailable", 20)
	f.Add("a\r\n\tb\x1b[31m\xff\x00é", 7)
	f.Add(strings.Repeat("é\n", 40), 31)
	f.Fuzz(func(t *testing.T, s string, limit int) {
		line := oneLine(s)
		if !utf8.ValidString(line) || strings.ContainsFunc(line, unicode.IsControl) || line != strings.TrimSpace(line) {
			t.Errorf("oneLine(%q) = %q", s, line)
		}
		limit = 4 + max(0, limit)%2000
		cut := clip(line, limit)
		if len(cut) > limit || !utf8.ValidString(cut) {
			t.Errorf("clip(%q, %d) = %q", line, limit, cut)
		}
		if len(line) <= limit && cut != line {
			t.Errorf("clip(%q, %d) = %q, want it whole", line, limit, cut)
		}
	})
}

// A path from the settings must not lead a probe to another host.
func FuzzHTTPPath(f *testing.F) {
	for _, path := range []string{"", "/healthz?a=b", "//evil.example/x", "http://evil.example/", "opaque:x", "%zz", "@evil.example", "/a#b", "?", "\x00"} {
		f.Add(path)
	}
	f.Fuzz(func(t *testing.T, path string) {
		target := newHTTPCheck(HTTPGet{Path: path, Port: 8080}, "10.99.0.2").url.String()
		u, err := url.Parse(target)
		if err != nil || u.Scheme != "http" || u.Host != "10.99.0.2:8080" || u.User != nil {
			t.Errorf("path %q leads to %s (%v)", path, target, err)
		}
	})
}
