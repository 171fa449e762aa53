package identity

import (
	"fmt"
	"strings"
	"time"
)

// span says a duration for people in its two largest units: "2 h 3 min", "45 s", "9 d". Less than a second is "0 s".
func span(d time.Duration) string {
	d = d.Abs()
	units := []struct {
		size time.Duration
		name string
	}{{24 * time.Hour, "d"}, {time.Hour, "h"}, {time.Minute, "min"}, {time.Second, "s"}}
	for i, u := range units {
		if d < u.size {
			continue
		}
		text := fmt.Sprintf("%d %s", d/u.size, u.name)
		if i+1 < len(units) {
			if rest := d % u.size / units[i+1].size; rest > 0 {
				text += fmt.Sprintf(" %d %s", rest, units[i+1].name)
			}
		}
		return text
	}
	return "0 s"
}

// oneLine is err for a log field or a status line, "" when there is none.
func oneLine(err error) string {
	if err == nil {
		return ""
	}
	return strings.ReplaceAll(err.Error(), "\n", "; ")
}

// sameCause reports whether two sentences say the same but for numbers: a token that expired 3 min ago is no news after 2 min.
func sameCause(a, b string) bool {
	numberless := func(r rune) rune {
		if r >= '0' && r <= '9' {
			return -1
		}
		return r
	}
	return strings.Map(numberless, a) == strings.Map(numberless, b)
}

// A workload is what a SPIFFE id of Istio says: spiffe://<trust domain>/ns/<namespace>/sa/<service account>.
type workload struct {
	trustDomain, namespace, serviceAccount string
}

// parseSPIFFEID takes an id apart. Its shape is Istio's (pkg/spiffe/spiffe.go), the characters are the SPIFFE standard's.
func parseSPIFFEID(id string) (workload, error) {
	rest, ok := strings.CutPrefix(id, "spiffe://")
	parts := strings.Split(rest, "/")
	if !ok || len(parts) != 5 || parts[1] != "ns" || parts[3] != "sa" {
		return workload{}, fmt.Errorf("SPIFFE id %.200q: expected spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT", id)
	}
	w := workload{trustDomain: parts[0], namespace: parts[2], serviceAccount: parts[4]}
	for _, part := range []string{w.trustDomain, w.namespace, w.serviceAccount} {
		if part == "" || strings.ContainsFunc(part, notSPIFFE) {
			return workload{}, fmt.Errorf("SPIFFE id %.200q: %q is not a name: expected letters, digits, '.', '-' and '_'", id, part)
		}
	}
	return w, nil
}

func notSPIFFE(r rune) bool {
	return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune(".-_", r))
}
