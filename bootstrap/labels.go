package bootstrap

import (
	"cmp"
	"encoding/json"
	"errors"
	"strings"
)

// labels merges ISTIO_METAJSON_LABELS and workload.labels, and checks them as Kubernetes will when istiod makes the WorkloadEntry.
func (l *loader) labels() {
	l.c.Labels = map[string]string{}
	at := map[string]value{}
	if v, ok := l.vars["ISTIO_METAJSON_LABELS"]; ok && v.value != "" {
		var parsed map[string]string
		if err := json.Unmarshal([]byte(v.value), &parsed); err != nil {
			l.add(Problem{Severity: Error, File: v.file, Line: v.line, Key: "ISTIO_METAJSON_LABELS", Found: quote(v.value), Expected: "a JSON object of texts", Hint: cmp.Or(jsonReason(err), "each value is a text in quotes")})
		}
		for name, text := range parsed {
			l.c.Labels[name] = text
			at[name] = value{text: text, file: v.file, line: v.line, key: "ISTIO_METAJSON_LABELS", rank: v.rank}
		}
	}
	for name, v := range l.ownMap("workload.labels", false) {
		l.c.Labels[name] = v.text
		at[name] = v
	}
	for name, v := range at {
		l.set("workload.labels."+name, v)
		if localityLabels[name] {
			continue
		}
		if !validLabelName(name) || !validLabelValue(v.text) {
			l.add(Problem{Severity: Warning, File: v.file, Line: v.line, Key: v.key, Found: quote(name + "=" + v.text),
				Expected: "a label as Kubernetes takes it: at most 63 letters, digits, -, _ and . in name and value", Hint: "istiod could not make the WorkloadEntry"})
		}
	}
}

// localityLabels may hold slashes; istiod takes them out again.
var localityLabels = map[string]bool{"istio-locality": true, "topology.istio.io/locality": true}

func validLabelName(s string) bool {
	if prefix, name, ok := strings.Cut(s, "/"); ok {
		if _, ok := parseDNSLabel(prefix); !ok {
			return false
		}
		s = name
	}
	return s != "" && validLabelValue(s)
}

func validLabelValue(s string) bool {
	alnum := func(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' }
	if s == "" {
		return true
	}
	if len(s) > 63 || !alnum(s[0]) || !alnum(s[len(s)-1]) {
		return false
	}
	for i := range len(s) {
		if !alnum(s[i]) && !strings.ContainsRune("-_.", rune(s[i])) {
			return false
		}
	}
	return true
}

// jsonReason is what encoding/json says about bad syntax; about a wrong type it speaks of Go, which helps nobody.
func jsonReason(err error) string {
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		return syntax.Error()
	}
	return ""
}
