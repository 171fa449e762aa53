package iptables

import (
	stdcmp "cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wingman/test/netns"
)

// pilotAgent finds Istio's own tool: WINGMAN_PILOT_AGENT, or what test/mesh built into the cache.
func pilotAgent(t testing.TB) string {
	t.Helper()
	if path := os.Getenv("WINGMAN_PILOT_AGENT"); path != "" {
		return path
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Skipf("no cache of programs: %v", err)
	}
	found, _ := filepath.Glob(filepath.Join(cache, "wingman", "mesh-*", "pilot-agent"))
	if len(found) == 0 {
		t.Skip("Istio's own tool is not here: test/mesh builds it, or set WINGMAN_PILOT_AGENT")
	}
	return found[0]
}

// machineKind is what the random machine has for addresses.
var machineKinds = map[string][]string{
	"v4":   {"10.99.0.2/24"},
	"both": {"10.99.0.2/24", "2001:db8:99::2/64"},
	"v6":   {"2001:db8:99::2/64"},
}

// randomEnv makes up settings of Istio's tool, resolv.conf and the machine's addresses.
func randomEnv(r *rand.Rand) (env map[string]string, resolv, machine string) {
	env = map[string]string{}
	pick := func(list ...string) string { return list[r.IntN(len(list))] }
	some := func(list ...string) string {
		var out []string
		for _, s := range list {
			if r.IntN(3) == 0 {
				out = append(out, s)
			}
		}
		return strings.Join(out, ",")
	}
	set := func(key, value string) {
		if value != "" {
			env[key] = value
		}
	}
	maybe := func(key, value string) {
		if r.IntN(3) == 0 {
			set(key, value)
		}
	}
	set("ISTIO_INBOUND_PORTS", pick("*", "*", "8080", "8080,9090,8080", some("80", "443", "8080")))
	set("ISTIO_LOCAL_EXCLUDE_PORTS", some("22", "15090", "15021", "15020", "22", "9999"))
	set("ISTIO_SERVICE_CIDR", pick("*", "*", "10.96.0.0/16", "10.96.1.2/16,240.240.0.0/16,fd00:1::/64", "0.0.0.0/0", "127.0.0.1/32,10.0.0.0/8", "::1/128", some("10.1.0.0/16", "2001:db8::/32", "192.0.2.1/32")))
	set("ISTIO_SERVICE_EXCLUDE_CIDR", some("192.168.0.0/16", "10.9.8.7/12", "2001:db8:5::/48", "203.0.113.9/32", "0.0.0.0/0"))
	set("ISTIO_OUTBOUND_PORTS", some("443", "8443", "80"))
	set("ISTIO_LOCAL_OUTBOUND_PORTS_EXCLUDE", some("3306", "5432", "6000:7000", "53", "0:100"))
	set("ISTIO_EXCLUDE_INTERFACES", some("docker0", "tun0", "wg+"))
	set("KUBE_VIRT_INTERFACES", some("virbr0", "br-0123456789"))
	set("ISTIO_INBOUND_INTERCEPTION_MODE", pick("", "REDIRECT", "TPROXY", "TPROXY"))
	maybe("ISTIO_INBOUND_TPROXY_MARK", "1400")
	maybe("ISTIO_INBOUND_TPROXY_ROUTE_TABLE", "140")
	set("ISTIO_META_DNS_CAPTURE", pick("", "true", "true"))
	set("CAPTURE_ALL_DNS", pick("", "", "true"))
	set("INVALID_DROP", pick("", "", "true"))
	set("ISTIO_DUAL_STACK", pick("", "true"))
	if g := some("101", "daemon", "202"); g != "" && r.IntN(2) == 0 {
		set("ISTIO_OUTBOUND_OWNER_GROUPS", g)
	} else {
		maybe("ISTIO_OUTBOUND_OWNER_GROUPS", "*")
		set("ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE", some("101", "daemon", "202"))
	}
	maybe("ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR", pick("127.0.0.0/8", "127.0.0.1/32", "127.5.6.7/16"))
	maybe("INBOUND_CAPTURE_PORT", "16006")
	maybe("PROXY_UID", "995,996")
	maybe("PROXY_GID", pick("995,997", "995,996,997"))
	maybe("INBOUND_TUNNEL_PORT", "16008")
	for _, server := range []string{"127.0.0.53", "10.0.0.2", "2001:db8::53", "10.0.0.2"} {
		if r.IntN(2) == 0 {
			resolv += "nameserver " + server + "\n"
		}
	}
	machine = pick(slices.Sorted(maps.Keys(machineKinds))...)
	if env["ISTIO_DUAL_STACK"] == "true" && machine == "v4" {
		machine = "both" // Istio waits for an IPv6 address; we have the rules in before it comes
	}
	return env, resolv, machine
}

// moreFromEnv adds the settings that the fixtures do not use.
func moreFromEnv(t testing.TB, env map[string]string, cfg *Config) {
	t.Helper()
	port := func(key string) uint16 {
		n, _ := strconv.ParseUint(env[key], 10, 16)
		return uint16(n)
	}
	more := func(key string) (ids []uint32) {
		for _, s := range strings.Split(env[key], ",")[1:] { // the first is that of every test
			n, err := strconv.ParseUint(s, 10, 32)
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, uint32(n))
		}
		return ids
	}
	cfg.MoreUIDs, cfg.MoreGIDs = more("PROXY_UID"), more("PROXY_GID")
	cfg.InboundPort, cfg.TunnelPort = port("INBOUND_CAPTURE_PORT"), port("INBOUND_TUNNEL_PORT")
	if s := env["ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR"]; s != "" {
		cfg.LoopbackCIDR = netip.MustParsePrefix(s)
	}
}

func addressesOf(machine string) []netip.Addr {
	out := []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	for _, a := range machineKinds[machine] {
		out = append(out, netip.MustParsePrefix(a).Addr())
	}
	return out
}

// kernelState is what Istio's tool is compared by.
func kernelState(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{
		"iptables-save": withoutOwn(sh(t, "iptables-nft-save")), "ip6tables-save": withoutOwn(sh(t, "ip6tables-nft-save")),
		"ip rule": sh(t, "ip", "rule"), "ip -6 rule": sh(t, "ip", "-6", "rule"),
		"lo": fmt.Sprint(strings.Contains(sh(t, "ip", "-6", "addr", "show", "dev", "lo"), "inet6 ::6/128")),
	}
	for _, table := range []string{"133", "140"} {
		for _, family := range []string{"-4", "-6"} {
			o, err := exec.Command(netns.Tool(t, "ip"), family, "route", "show", "table", table).Output()
			if err != nil {
				o = nil // no such table
			}
			out["route "+family+" "+table] = string(o)
		}
	}
	return out
}

func TestRandomConfigurationsEqualIstiosOwnTool(t *testing.T) {
	tool := pilotAgent(t)
	netns.Tool(t, "iptables-nft")
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("WINGMAN_SEED"); s != "" {
		seed, _ = strconv.ParseUint(s, 10, 64)
	}
	t.Logf("WINGMAN_SEED=%d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for i := range 25 {
		env, resolv, machine := randomEnv(r)
		t.Run(strconv.Itoa(i), func(t *testing.T) {
			var want, got map[string]string
			t.Run("istio", func(t *testing.T) {
				netns.New(t)
				for _, a := range machineKinds[machine] {
					ip(t, "addr add "+a+" dev lo")
				}
				runPilotAgent(t, tool, env, resolv)
				want = kernelState(t)
			})
			t.Run("ours", func(t *testing.T) {
				netns.New(t)
				for _, a := range machineKinds[machine] {
					ip(t, "addr add "+a+" dev lo")
				}
				cfg := configFromEnv(t, env)
				moreFromEnv(t, env, &cfg)
				mustApply(t, cfg, Facts{Resolvers: nameservers(resolv), Addrs: addressesOf(machine), Groups: map[string]uint32{"daemon": 1}})
				got = kernelState(t)
			})
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("env %q, resolv.conf %q, machine %s (-Istio +ours):\n%s", env, resolv, machine, diff)
			}
		})
	}
}

// runPilotAgent runs Istio's tool in the test's namespace, with a resolv.conf of its own.
func runPilotAgent(t testing.TB, tool string, env map[string]string, resolv string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(file, []byte(resolv), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("unshare", "-m", "sh", "-c", `mount --bind "$1" /etc/resolv.conf && exec "$2" istio-iptables --proxy-uid "$3" --proxy-gid "$4"`, "sh", file, tool,
		stdcmp.Or(env["PROXY_UID"], "995"), stdcmp.Or(env["PROXY_GID"], "995"))
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "FORCE_IPTABLES_BINARY=nft"}
	for k, v := range env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("pilot-agent istio-iptables with %q: %v\n%s", env, err, out)
	}
}
