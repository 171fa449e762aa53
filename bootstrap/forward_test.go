package bootstrap

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

func TestSplitDNS(t *testing.T) {
	server := netip.MustParseAddrPort
	for _, tc := range []struct {
		name string
		yaml string
		want map[string][]netip.AddrPort
		err  string // part of the problem
	}{
		{"none", "dns: {ipv6: true}", map[string][]netip.AddrPort{}, ""},
		{"a list", "dns: {forward: {Corp.Example.: [10.0.0.53, '10.0.0.54:5353']}}", map[string][]netip.AddrPort{"corp.example": {server("10.0.0.53:53"), server("10.0.0.54:5353")}}, ""},
		{"one text", "dns: {forward: {corp.example: '10.0.0.53,[2001:db8::53]:5300'}}", map[string][]netip.AddrPort{"corp.example": {server("10.0.0.53:53"), server("[2001:db8::53]:5300")}}, ""},
		{"no servers", "dns: {forward: {corp.example: []}}", nil, "no servers"},
		{"a host name for a server", "dns: {forward: {corp.example: [ns1.corp.example]}}", nil, "ns1.corp.example"},
		{"a suffix that is none", "dns: {forward: {'a..b': [10.0.0.53]}}", nil, "a DNS name"},
		{"no mapping", "dns: {forward: 10.0.0.53}", nil, "a mapping of name suffixes to servers"},
		{"a suffix twice, in two spellings", "dns: {forward: {CORP.example.: [10.0.0.53], corp.example: [10.0.0.54]}}", nil, `"corp.example", expected each suffix once: it is "CORP.example." in another spelling`},
		{"the agent itself", "dns: {listen: '127.0.0.1:5353', forward: {corp.example: [10.0.0.53, '127.0.0.1:5353']}}", nil, "127.0.0.1:5353, where this agent answers"},
		{"the agent itself, where it answers by default", "dns: {forward: {corp.example: ['127.0.0.1:15053']}}", nil, "127.0.0.1:15053, where this agent answers"},
		{"an address that nobody has", "dns: {forward: {corp.example: [0.0.0.0]}}", nil, "0.0.0.0"},
	} {
		m := bare(t)
		m.write(wingmanYAML, tc.yaml)
		c, problems := Load(m.root)
		if tc.err != "" {
			if err := problems.Without(KeyRootCert).Err(); err == nil || !strings.Contains(err.Error(), tc.err) || !strings.Contains(err.Error(), "wingman.yaml:1: dns.forward") {
				t.Errorf("%s: problems %v, want one at wingman.yaml:1: dns.forward with %q", tc.name, err, tc.err)
			}
			continue
		}
		if c == nil || !reflect.DeepEqual(c.DNS.Forward, tc.want) {
			t.Errorf("%s: Load = %+v, %v; want %v", tc.name, c, problems, tc.want)
		}
	}
}
