package bootstrap

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestParseHosts(t *testing.T) {
	for _, tt := range []struct {
		name, src string
		want      map[string]string // addresses with blanks between
		problems  []string
	}{
		{"istioctl's", "127.0.0.1 istiod.istio-system.svc\n", map[string]string{"istiod.istio-system.svc": "127.0.0.1"}, nil},
		{"several names, comments, tabs, an empty line", "# c\n\n10.0.0.1\ta b\tc # d\n", map[string]string{"a": "10.0.0.1", "b": "10.0.0.1", "c": "10.0.0.1"}, nil},
		{"several addresses keep their order, each once", "10.0.0.2 a\nfd00::1 a\n10.0.0.1 a\n10.0.0.2 a\n", map[string]string{"a": "10.0.0.2 fd00::1 10.0.0.1"}, nil},
		{"any letter case, with a final dot", "10.0.0.1 IstioD.Mesh.\n", map[string]string{"istiod.mesh": "10.0.0.1"}, nil},
		{"IPv4 in IPv6 and link-local with a zone", "::ffff:10.0.0.1 a\nfe80::1%eth0 b\n", map[string]string{"a": "10.0.0.1", "b": "fe80::1%eth0"}, nil},
		{"line ends of Windows", "10.0.0.1 a\r\n", map[string]string{"a": "10.0.0.1"}, nil},
		{"what is no entry", "localhost 127.0.0.1\n10.0.0.1\n10.0.0.300 a\n10.0.0.2 .\n", nil, []string{
			`warning: hosts:1: found "localhost 127.0.0.1", expected an address and its names`,
			`warning: hosts:2: found "10.0.0.1", expected an address and its names`,
			`warning: hosts:3: found "10.0.0.300 a", expected an address and its names`}},
		{"an empty file", "", nil, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want := map[string][]netip.Addr{}
			for name, list := range tt.want {
				want[name] = addrsOf(list)
			}
			got, problems := ParseHosts("hosts", []byte(tt.src))
			if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
				t.Errorf("hosts (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.problems, machine{}.told(problems)); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}

// TestHostsOfIstiod looks for istiod in both hosts files.
func TestHostsOfIstiod(t *testing.T) {
	const system = "127.0.0.1 localhost\n10.9.9.9 istiod.istio-system.svc\n10.8.8.8 ca.example\n10.7.7.7 somebody.else\n"
	for _, tt := range []struct {
		name  string
		files map[string]string
		want  map[string]string
	}{
		{"istioctl's file", nil, map[string]string{"istiod.istio-system.svc": "127.0.0.1"}},
		{"it comes before etc/hosts", map[string]string{"/etc/hosts": system}, map[string]string{"istiod.istio-system.svc": "127.0.0.1"}},
		{"without it, what was appended to etc/hosts, as the book has it", map[string]string{hostsFile: "-", "/etc/hosts": system}, map[string]string{"istiod.istio-system.svc": "10.9.9.9"}},
		{"the CA's name too, and nobody else's", map[string]string{"/etc/hosts": system, sidecarEnv: "CA_ADDR=CA.example:443\n"},
			map[string]string{"istiod.istio-system.svc": "127.0.0.1", "ca.example": "10.8.8.8"}},
		{"neither file", map[string]string{hostsFile: "-"}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want := map[string][]netip.Addr{}
			for name, list := range tt.want {
				want[name] = addrsOf(list)
			}
			c, _ := newMachine(t, tt.files).load()
			if diff := cmp.Diff(want, c.Hosts, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
				t.Errorf("hosts (-want +got):\n%s", diff)
			}
		})
	}
}

// FuzzHosts looks for panics and for names and addresses that no resolver could use.
func FuzzHosts(f *testing.F) {
	f.Add(fixtures(f)[hostsFile])
	f.Add("::1 localhost ip6-localhost # x\n\nfe80::1%lo0 a.\n10.0.0.300 b\n")
	f.Fuzz(func(t *testing.T, src string) {
		hosts, problems := ParseHosts("hosts", []byte(src))
		for name, addrs := range hosts {
			if name == "" || strings.ContainsAny(name, " \t\n#") || name != strings.ToLower(name) {
				t.Errorf("name %q", name)
			}
			if len(addrs) == 0 {
				t.Errorf("%q has no address", name)
			}
			for _, a := range addrs {
				if !a.IsValid() || a.Is4In6() {
					t.Errorf("%q has address %v", name, a)
				}
			}
		}
		for _, p := range problems {
			if p.Severity != Warning || p.Line < 1 || p.Line > strings.Count(src, "\n")+1 {
				t.Errorf("problem %+v", p)
			}
		}
	})
}
