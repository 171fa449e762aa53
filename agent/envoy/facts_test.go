package envoy

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestFactsOfOurOwnFiles(t *testing.T) {
	at := netip.MustParseAddrPort
	tests := []struct {
		name string
		in   Input
		want Facts
	}{
		{"IPv4", inputOf(forum(t, "", ""), "10.99.0.2"),
			Facts{Admin: at("127.0.0.1:15000"), Listeners: []netip.AddrPort{at("0.0.0.0:15090"), at("0.0.0.0:15021")}, IPv4: true}},
		{"IPv6", inputOf(forum(t, "", ""), "fd00::2"),
			Facts{Admin: at("[::1]:15000"), Listeners: []netip.AddrPort{at("[::]:15090"), at("[::]:15021")}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f, err := Bootstrap(tt.in)
			if err != nil {
				t.Fatal(err)
			}
			got, err := FactsOf(f.JSON)
			if diff := cmp.Diff(tt.want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); err != nil || diff != "" {
				t.Errorf("facts (-want +got), %v:\n%s", err, diff)
			}
		})
	}
}

func FuzzFactsOf(f *testing.F) {
	f.Add([]byte(`{"admin":{"address":{"socket_address":{"address":"127.0.0.1","port_value":15000}}},"static_resources":{"listeners":[{"address":{}}]}}`))
	f.Add([]byte(`{"admin":{"address":{"socket_address":{"address":"localhost","port_value":70000}}}}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, file []byte) {
		facts, err := FactsOf(file)
		if err == nil && (!facts.Admin.IsValid() || facts.Admin.Port() == 0) {
			t.Errorf("%q: admin at %v without an error", file, facts.Admin)
		}
	})
}
