package bootstrap

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// istioCapture is what pilot-agent's rules have when no variable says otherwise.
func istioCapture() Capture {
	return Capture{
		Level: "auto", User: "istio-proxy", UserKnown: true, Mode: "REDIRECT", TProxyMark: 1337, TProxyTable: 133, OwnerGroupsAll: true,
		LoopbackCIDR: netip.MustParsePrefix("127.0.0.1/32"), ProxyUID: 995, ProxyGID: 994, ProxyPort: 15001, InboundPort: 15006, TunnelPort: 15008,
		DNSPort: 15053, Backend: "auto",
	}
}

// vmCapture is what istioctl's cluster.env asks for.
func vmCapture() Capture {
	c := istioCapture()
	c.InboundAll, c.OutboundAll, c.DNS, c.Backend = true, true, true, "nft"
	c.InboundExcludePorts = []uint16{22, 15090, 15021, 15020}
	return c
}

func prefixes(list string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range strings.Fields(list) {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// TestCaptureOfRealEnvironments reads the environments that Istio's own tool was run with (testdata/capture).
func TestCaptureOfRealEnvironments(t *testing.T) {
	cases := map[string]func(c *Capture){ // changes to vmCapture
		"vm-default":         func(c *Capture) {},
		"vm-dual-stack":      func(c *Capture) { c.DualStack = true },
		"capture-all-dns":    func(c *Capture) { c.DNSAll = true },
		"exclude-interfaces": func(c *Capture) { c.ExcludeInterfaces = []string{"docker0", "tun0"} },
		"inbound-list": func(c *Capture) {
			c.InboundAll, c.InboundExcludePorts, c.InboundPorts = false, nil, []uint16{8080, 9090}
		},
		"invalid-drop":    func(c *Capture) { c.DropInvalid = true },
		"native-nft":      func(c *Capture) { c.Backend = "native" },
		"native-nft-dual": func(c *Capture) { c.Backend, c.DualStack = "native", true },
		"no-dns":          func(c *Capture) { c.DNS = false },
		"nothing":         func(c *Capture) { *c = istioCapture(); c.Backend = "nft" },
		"outbound-exclude": func(c *Capture) {
			c.OutboundExcludeCIDRs, c.OutboundExcludePorts = prefixes("192.168.0.0/16"), []PortRange{{3306, 3306}, {5432, 5432}}
		},
		"owner-groups":         func(c *Capture) { c.OwnerGroupsAll, c.OwnerGroups = false, []string{"101", "daemon"} },
		"owner-groups-exclude": func(c *Capture) { c.OwnerGroupsExclude = []string{"101", "202"} },
		"tproxy":               func(c *Capture) { c.Mode = "TPROXY" },
		"outbound-cidr": func(c *Capture) {
			c.OutboundAll, c.OutboundCIDRs, c.InboundExcludePorts = false, prefixes("10.96.0.0/16 240.240.0.0/16"), []uint16{22}
		},
		"outbound-ports": func(c *Capture) {
			c.OutboundAll, c.OutboundCIDRs, c.OutboundPorts, c.InboundExcludePorts = false, prefixes("10.96.0.0/16"), []uint16{443, 8443}, nil
		},
		"tproxy-ports": func(c *Capture) {
			c.Mode, c.TProxyMark, c.TProxyTable, c.DNS = "TPROXY", 1400, 140, false
			c.InboundAll, c.InboundPorts, c.InboundExcludePorts = false, []uint16{8080}, nil
		},
		"virtual-interfaces": func(c *Capture) {}, // ISTIO_REROUTE_VIRTUAL_INTERFACES is read by nothing: the tool left no rule for it
	}
	files, err := filepath.Glob("testdata/capture/*.env")
	if err != nil || len(files) != len(cases) {
		t.Fatalf("%d files for %d cases: %v", len(files), len(cases), err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".env")
		t.Run(name, func(t *testing.T) {
			env, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			want := vmCapture()
			cases[name](&want)
			m := newMachine(t, map[string]string{clusterEnv: string(env), meshConfig: "-", "/etc/group": "daemon:x:1:\n"})
			c, problems := m.load()
			if diff := cmp.Diff(want, c.Capture, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
				t.Errorf("capture (-want +got):\n%s", diff)
			}
			warned := strings.Contains(strings.Join(m.told(problems), "\n"), "ISTIO_REROUTE_VIRTUAL_INTERFACES: found a variable that nothing reads, expected KUBE_VIRT_INTERFACES")
			if warned != (name == "virtual-interfaces") {
				t.Errorf("problems: %v", problems)
			}
		})
	}
}

// What systemd-resolved is told needs no rules.
func TestNamesComeByOneWayAlone(t *testing.T) {
	for _, tc := range []struct {
		yaml                  string
		rules, all, registers bool
	}{
		{"dns: {capture: true, captureAll: true}", true, true, false},
		{"dns: {capture: true, mode: redirect}", true, false, false},
		{"dns: {capture: true, captureAll: true, mode: resolved}", false, false, true},
		{"dns: {capture: false, mode: resolved}", false, false, false},
	} {
		c, problems := newMachine(t, map[string]string{wingmanYAML: tc.yaml + "\n"}).load()
		if c == nil {
			t.Fatalf("%s: %v", tc.yaml, problems)
		}
		if x := c.Capture; x.DNS != tc.rules || x.DNSAll != tc.all || x.DNSByResolved != tc.registers {
			t.Errorf("%s: DNS %t, DNSAll %t, DNSByResolved %t; want %t, %t, %t", tc.yaml, x.DNS, x.DNSAll, x.DNSByResolved, tc.rules, tc.all, tc.registers)
		}
	}
}

// Istio's tool takes an empty list of groups for nobody's.
func TestNoGroupsMeansNobody(t *testing.T) {
	for _, files := range []map[string]string{
		{clusterEnv: "ISTIO_NAMESPACE=n\nISTIO_OUTBOUND_OWNER_GROUPS=\n"},
		{wingmanYAML: "rules: {groups: []}\n"},
	} {
		c, problems := newMachine(t, files).load()
		if c == nil || c.Capture.OwnerGroupsAll || len(c.Capture.OwnerGroups) > 0 {
			t.Errorf("%v: %+v, %v; want nobody captured", files, c, problems)
		}
	}
	if c, _ := newMachine(t, nil).load(); c == nil || !c.Capture.OwnerGroupsAll {
		t.Error("without the setting everybody is captured")
	}
}

// Istio's tool takes lists of owners; the first is the user that agent and Envoy run as.
func TestSeveralOwnersAreLeftAlone(t *testing.T) {
	c, problems := newMachine(t, map[string]string{clusterEnv: "ISTIO_NAMESPACE=n\nPROXY_UID=995,1000\nPROXY_GID=994\n"}).load()
	if c == nil {
		t.Fatal(problems)
	}
	if x := c.Capture; x.ProxyUID != 995 || !slices.Equal(x.MoreUIDs, []uint32{1000}) || x.ProxyGID != 994 || len(x.MoreGIDs) != 0 {
		t.Errorf("owners %d %v, %d %v; want 995 [1000], 994 []", x.ProxyUID, x.MoreUIDs, x.ProxyGID, x.MoreGIDs)
	}
}
