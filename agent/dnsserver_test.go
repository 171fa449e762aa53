package agent

import "testing"

func TestAnAddressStandsForItsReverseName(t *testing.T) {
	for _, tc := range []struct{ name, qtype, want string }{
		{"10.96.97.98", "PTR", "98.97.96.10.in-addr.arpa."},
		{"2001:db8::1", "ptr", "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa."},
		{"98.97.96.10.in-addr.arpa", "PTR", "98.97.96.10.in-addr.arpa"},
		{"webapp.istioinaction", "PTR", "webapp.istioinaction"},
		{"10.96.97.98", "A", "10.96.97.98"},
	} {
		if got := reverseOf(tc.name, tc.qtype); got != tc.want {
			t.Errorf("%s %s: asked for %s, want %s", tc.name, tc.qtype, got, tc.want)
		}
	}
}
