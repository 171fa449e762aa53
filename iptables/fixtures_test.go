package iptables

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// proxyID is uid and gid of istio-proxy on the machine where the fixtures were taken.
const proxyID = 995

// fixture is one configuration with the kernel state that Istio's own tool left for it.
type fixture struct {
	name   string
	dir    string
	cfg    Config
	facts  Facts
	native bool // taken with NATIVE_NFTABLES: compared by behaviour, not as text
}

// fixtures loads testdata/capture.
func fixtures(t testing.TB) []fixture {
	t.Helper()
	dirs, err := filepath.Glob("testdata/capture/*")
	if err != nil || len(dirs) != 18 {
		t.Fatalf("testdata/capture: %d cases, want 18 (%v)", len(dirs), err)
	}
	var out []fixture
	for _, dir := range dirs {
		f := fixture{name: filepath.Base(dir), dir: dir}
		env := readEnv(t, filepath.Join(dir, "env"))
		f.cfg = configFromEnv(t, env)
		f.native = env["NATIVE_NFTABLES"] == "true"
		f.facts = Facts{
			Resolvers: nameservers(f.read(t, "resolv.conf")),
			Addrs:     []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("10.99.0.2")},
			Groups:    map[string]uint32{"daemon": 1},
			SSH:       SSH{Listeners: []Listener{{22, "sshd -T says so"}, {2222, "sshd -T says so"}}},
		}
		out = append(out, f)
	}
	return out
}

// read returns a file of the fixture, "" when the case has none.
func (f *fixture) read(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(f.dir, name))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(b)
}

func readEnv(t testing.TB, path string) map[string]string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	env := map[string]string{}
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		env[key] = value
	}
	return env
}

func nameservers(resolvConf string) []netip.Addr {
	var out []netip.Addr
	for line := range strings.Lines(resolvConf) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == "nameserver" {
			out = append(out, netip.MustParseAddr(f[1]))
		}
	}
	return out
}

// configFromEnv reads the variables of Istio's tool that the fixtures use. The product's reading is in package bootstrap.
func configFromEnv(t testing.TB, env map[string]string) Config {
	t.Helper()
	list := func(key string) []string {
		return slices.DeleteFunc(strings.Split(env[key], ","), func(s string) bool { return s == "" })
	}
	portList := func(key string) (out []uint16) {
		for _, s := range list(key) {
			n, err := strconv.ParseUint(s, 10, 16)
			if err != nil {
				t.Fatalf("%s=%s: %v", key, env[key], err)
			}
			out = append(out, uint16(n))
		}
		return out
	}
	cidrs := func(key string) (out []netip.Prefix) {
		for _, s := range list(key) {
			out = append(out, netip.MustParsePrefix(s))
		}
		return out
	}
	number := func(key string) int {
		n, _ := strconv.Atoi(env[key])
		return n
	}
	cfg := Config{
		Level: LevelAll, ProxyUID: proxyID, ProxyGID: proxyID,
		DNS: env["ISTIO_META_DNS_CAPTURE"] == "true", DNSAll: env["CAPTURE_ALL_DNS"] == "true",
		DropInvalid: env["INVALID_DROP"] == "true", DualStack: env["ISTIO_DUAL_STACK"] == "true",
		TProxyMark: uint32(number("ISTIO_INBOUND_TPROXY_MARK")), TProxyTable: number("ISTIO_INBOUND_TPROXY_ROUTE_TABLE"),
		InboundExcludePorts: portList("ISTIO_LOCAL_EXCLUDE_PORTS"),
		OutboundPorts:       portList("ISTIO_OUTBOUND_PORTS"), OutboundExcludeCIDRs: cidrs("ISTIO_SERVICE_EXCLUDE_CIDR"),
		OwnerGroupsExclude: list("ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE"),
		ExcludeInterfaces:  list("ISTIO_EXCLUDE_INTERFACES"), VirtualInterfaces: list("KUBE_VIRT_INTERFACES"),
		Backend: BackendNFT,
	}
	if env["NATIVE_NFTABLES"] == "true" {
		cfg.Backend = BackendNative
	}
	if env["ISTIO_INBOUND_INTERCEPTION_MODE"] == "TPROXY" {
		cfg.Mode = ModeTProxy
	}
	if cfg.InboundAll = env["ISTIO_INBOUND_PORTS"] == "*"; !cfg.InboundAll {
		cfg.InboundPorts = portList("ISTIO_INBOUND_PORTS")
	}
	if cfg.OutboundAll = env["ISTIO_SERVICE_CIDR"] == "*"; !cfg.OutboundAll {
		cfg.OutboundCIDRs = cidrs("ISTIO_SERVICE_CIDR")
	}
	if groups, set := env["ISTIO_OUTBOUND_OWNER_GROUPS"]; !set || groups == "*" {
		cfg.OwnerGroupsAll = true
	} else {
		cfg.OwnerGroups = list("ISTIO_OUTBOUND_OWNER_GROUPS")
	}
	for _, s := range list("ISTIO_LOCAL_OUTBOUND_PORTS_EXCLUDE") {
		first, last, isRange := strings.Cut(s, ":")
		if !isRange {
			last = first
		}
		a, aerr := strconv.ParseUint(first, 10, 16)
		b, berr := strconv.ParseUint(last, 10, 16)
		if aerr != nil || berr != nil {
			t.Fatalf("ISTIO_LOCAL_OUTBOUND_PORTS_EXCLUDE: %s", s)
		}
		cfg.OutboundExcludePorts = append(cfg.OutboundExcludePorts, PortRange{uint16(a), uint16(b)})
	}
	return cfg
}

// withoutOwn leaves out comments, counters, every line that names a chain of ours, and tables that hold nothing else.
func withoutOwn(save string) string {
	var b, table strings.Builder
	empty, own := true, false
	for line := range strings.Lines(save) {
		switch {
		case strings.Contains(line, "WINGMAN_"):
			own = true
			continue
		case strings.HasPrefix(line, "#"):
			continue
		case strings.HasPrefix(line, ":"):
			f := strings.Fields(line)
			line = f[0] + " " + f[1] + " [0:0]\n"
			empty = empty && builtins[f[0][1:]]
		case strings.HasPrefix(line, "-A "):
			empty = false
		}
		table.WriteString(line)
		if line == "COMMIT\n" {
			if !strings.HasPrefix(table.String(), "*mangle") || !own || !empty {
				b.WriteString(table.String())
			}
			table.Reset()
			empty, own = true, false
		}
	}
	return b.String() + table.String()
}
