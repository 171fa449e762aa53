package iptables

import (
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wingman/test/netns"
)

// flow is one packet's question: who sends it, from where, to where.
type flow struct {
	who   string // "app", "member" (of group 101), "other" (group 300), "proxy", "proxygroup", "outside", "container"
	from  string // source address, "" for the kernel's choice
	proto string
	to    string
	port  int
	// wanted end on a default VM (fixture vm-default), in docs/capture.md
	end string
	// guarded says that one of our guards changes the end: Istio's own rules give istio instead.
	istio string
}

// Flows that together visit every rule of the fixtures. "direct" is where the packet was sent.
var flows = []flow{
	{who: "app", proto: "tcp", to: "203.0.113.9", port: 443, end: "15001"},
	{who: "app", proto: "tcp", to: "203.0.113.9", port: 80, end: "15001"},
	{who: "app", proto: "tcp", to: "10.96.0.7", port: 80, end: "15001"},
	{who: "app", proto: "tcp", to: "240.240.0.7", port: 80, end: "15001"},
	{who: "app", proto: "tcp", to: "192.168.3.4", port: 80, end: "15001"},
	{who: "app", proto: "tcp", to: "203.0.113.9", port: 3306, end: "15001"},
	{who: "app", proto: "tcp", to: "2001:db8:1::9", port: 443, end: "direct"},
	{who: "app", proto: "udp", to: "203.0.113.9", port: 443, end: "direct"},
	{who: "member", proto: "tcp", to: "203.0.113.9", port: 443, end: "15001"},
	{who: "other", proto: "tcp", to: "203.0.113.9", port: 443, end: "15001"},
	{who: "proxy", proto: "tcp", to: "203.0.113.9", port: 443, end: "direct"},
	{who: "proxygroup", proto: "tcp", to: "203.0.113.9", port: 443, end: "direct"},

	{who: "app", proto: "udp", to: "127.0.0.53", port: 53, end: "15053"},
	{who: "app", proto: "tcp", to: "127.0.0.53", port: 53, end: "15053"},
	{who: "app", proto: "udp", to: "10.0.0.2", port: 53, end: "direct"},
	{who: "app", proto: "tcp", to: "10.0.0.2", port: 53, end: "15001"},
	{who: "app", proto: "udp", to: "2001:db8::53", port: 53, end: "direct"},
	{who: "app", proto: "tcp", to: "2001:db8::53", port: 53, end: "direct"},
	{who: "member", proto: "udp", to: "127.0.0.53", port: 53, end: "15053"},
	{who: "other", proto: "udp", to: "127.0.0.53", port: 53, end: "15053"},
	{who: "proxy", proto: "udp", to: "10.0.0.2", port: 53, end: "direct"},
	{who: "proxy", proto: "udp", to: "127.0.0.53", port: 53, end: "direct"},
	{who: "proxygroup", proto: "udp", to: "10.0.0.2", port: 53, end: "direct"},

	{who: "app", proto: "tcp", to: "127.0.0.1", port: 8080, end: "direct"},
	{who: "app", proto: "tcp", to: vmAddr, port: 8080, end: "direct"},
	{who: "app", from: "127.0.0.6", proto: "tcp", to: vmAddr, port: 8080, end: "direct"},
	{who: "proxy", proto: "tcp", to: vmAddr, port: 8080, end: "15006"},
	{who: "proxygroup", proto: "tcp", to: vmAddr, port: 8080, end: "direct"},
	{who: "proxy", proto: "tcp", to: "127.0.0.1", port: 8080, end: "direct"},
	{who: "proxy", from: "127.0.0.6", proto: "tcp", to: vmAddr, port: 8080, end: "direct"},
	{who: "proxy", proto: "tcp", to: vmAddr, port: 15008, end: "direct"},
	{who: "proxy", proto: "tcp", to: vmAddr6, port: 8080, end: "direct"},

	{who: "outside", proto: "tcp", to: vmAddr, port: 8080, end: "15006"},
	{who: "outside", proto: "tcp", to: vmAddr, port: 9090, end: "15006"},
	{who: "outside", proto: "tcp", to: vmAddr, port: 80, end: "15006"},
	{who: "outside", proto: "tcp", to: vmAddr, port: 22, end: "direct", istio: "15006 where port 22 is not excluded"},
	{who: "outside", proto: "tcp", to: vmAddr, port: 2222, end: "direct", istio: "15006: Istio knows nothing of sshd on 2222"},
	{who: "outside", proto: "tcp", to: vmAddr, port: 15008, end: "direct"},
	{who: "outside", proto: "tcp", to: vmAddr, port: 15090, end: "direct", istio: "15006 where it is not excluded"},
	{who: "outside", proto: "tcp", to: vmAddr6, port: 8080, end: "direct"},
	{who: "outside", proto: "tcp", to: vmAddr6, port: 2222, end: "direct", istio: "15006 with dual stack"},
	{who: "outside", proto: "udp", to: vmAddr, port: 8080, end: "direct"},

	{who: "app", proto: "tcp", to: "169.254.169.254", port: 80, end: "direct", istio: "15001: a machine cut off from its cloud"},
	{who: "app", proto: "tcp", to: "fd00:ec2::254", port: 80, end: "direct", istio: "15001 with dual stack"},

	{who: "container", proto: "tcp", to: "203.0.113.9", port: 443, end: "direct", istio: "15006: taken for inbound, and lost"},
	{who: "container", proto: "udp", to: "8.8.8.8", port: 53, end: "direct"},
	{who: "container", proto: "tcp", to: bridgeAddr, port: 8080, end: "15006"},
}

// String is the flow as a line of the table.
func (f flow) String() string {
	from := ""
	if f.from != "" {
		from = " from " + f.from
	}
	return fmt.Sprintf("%s%s → %s %s", f.who, from, f.proto, net.JoinHostPort(f.to, fmt.Sprint(f.port)))
}

// run sends the packet and returns where it ended: a port of the proxy, "direct", "dropped" or "refused".
func (f flow) run(t *testing.T, w *world) string {
	t.Helper()
	to := net.JoinHostPort(f.to, fmt.Sprint(f.port))
	var answer string
	wait := patience
	if f.end == "dropped" {
		wait = impatience
	}
	question := func() error { answer = ask(f.proto, f.from, to, wait); return nil }
	var err error
	switch f.who {
	case "outside":
		err = w.net.Do(question)
	case "container":
		err = w.container.Do(question)
	default:
		who := map[string][2]int{"app": {1000, 1000}, "member": {1001, 101}, "other": {1002, 300}, "proxy": {proxyID, proxyID}, "proxygroup": {1003, proxyID}}[f.who]
		err = as(who[0], who[1], question)
	}
	if err != nil {
		t.Fatal(err)
	}
	server, _, _ := strings.Cut(answer, " ")
	for _, p := range proxyPorts {
		if server == fmt.Sprintf("vm:%d", p) {
			return fmt.Sprint(p)
		}
	}
	if server == fmt.Sprintf("vm:%d", f.port) || server == fmt.Sprintf("net:%d", f.port) {
		return "direct"
	}
	return answer
}

// ends runs all flows.
func ends(t *testing.T, w *world) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, f := range flows {
		out[f.String()] = f.run(t, w)
	}
	return out
}

// loadFixture puts the rules into the kernel that Istio's tool left, routes and addresses included.
func loadFixture(t *testing.T, f *fixture) {
	t.Helper()
	if nft := f.read(t, "nft"); nft != "" {
		file := filepath.Join(t.TempDir(), "fixture.nft")
		if err := os.WriteFile(file, []byte(nft), 0o600); err != nil {
			t.Fatal(err)
		}
		sh(t, "nft", "-f", file)
	} else {
		load(t, "iptables-nft-restore", f.read(t, "iptables-save"))
		load(t, "ip6tables-nft-restore", f.read(t, "ip6tables-save"))
	}
	if f.cfg.DualStack {
		ip(t, "addr add ::6/128 dev lo nodad")
	}
	if f.cfg.Mode == ModeTProxy {
		cfg := f.cfg.withDefaults()
		ip(t, fmt.Sprintf("rule add fwmark %d lookup %d", cfg.TProxyMark, cfg.TProxyTable), fmt.Sprintf("route add local default dev lo table %d", cfg.TProxyTable))
	}
}

func TestPacketsEndWhereIstiosOwnRulesSendThemExceptForGuards(t *testing.T) {
	for _, f := range fixtures(t) {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			netns.Tool(t, "nft")
			netns.Tool(t, "iptables-nft-restore")
			w := newWorld(t)
			a := applier(t)
			loadFixture(t, &f)
			want := ends(t, w)
			if err := a.Remove(t.Context()); err != nil {
				t.Fatal(err)
			}
			for _, backend := range allBackends {
				f.cfg.Backend = backend
				rules, err := Plan(f.cfg, f.facts)
				if err != nil {
					t.Fatal(err)
				}
				if err := a.Apply(t.Context(), rules); err != nil {
					t.Fatal(err)
				}
				got := ends(t, w)
				for _, fl := range flows {
					name := fl.String()
					switch {
					case f.native && !f.cfg.DualStack && strings.Contains(fl.to, ":"):
						// Istio's native rules capture IPv6 even where it was not asked for; ours do not.
						if got[name] != "direct" {
							t.Errorf("%s: %s ends at %s, want direct: IPv6 is not captured", backend, name, got[name])
						}
					case fl.istio != "":
						if got[name] != fl.end {
							t.Errorf("%s: %s ends at %s, want %s: it is guarded", backend, name, got[name], fl.end)
						}
					case got[name] != want[name]:
						t.Errorf("%s: %s ends at %s, by Istio's rules at %s", backend, name, got[name], want[name])
					}
				}
				if err := a.Remove(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

var update = flag.Bool("update", false, "rewrite the table of flows in docs/capture.md")

func TestTheDocumentationHasTheFlows(t *testing.T) {
	const page, from, to = "../docs/capture.md", "<!-- flows: made by go test ./iptables -run TestTheDocumentation -update -->\n", "<!-- end of flows -->"
	var b strings.Builder
	b.WriteString("| who | to | ends at | by Istio's own rules |\n|---|---|---|---|\n")
	for _, f := range flows {
		who := map[string]string{"member": "a member of group 101", "other": "a member of group 300", "proxygroup": "proxy's group"}[f.who]
		if who == "" {
			who = f.who
		}
		if f.from != "" {
			who += " from " + f.from
		}
		istio := f.istio
		if istio == "" {
			istio = "the same"
		}
		fmt.Fprintf(&b, "| %s | %s %s | %s | %s |\n", who, f.proto, net.JoinHostPort(f.to, fmt.Sprint(f.port)), f.end, istio)
	}
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(text), from)
	table, tail, ok2 := strings.Cut(rest, to)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the flows", page)
	}
	if *update {
		if err := os.WriteFile(page, []byte(head+from+b.String()+to+tail), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(b.String(), table); diff != "" {
		t.Errorf("%s is not what the tests send; run with -update (-tests +page):\n%s", page, diff)
	}
}

func TestPacketsOnADefaultVMEndAsTheDocumentationSays(t *testing.T) {
	i := slices.IndexFunc(fixtures(t), func(f fixture) bool { return f.name == "vm-default" })
	f := fixtures(t)[i]
	for _, backend := range allBackends {
		t.Run(backend, func(t *testing.T) {
			w := newWorld(t)
			f.cfg.Backend = backend
			rules, err := Plan(f.cfg, f.facts)
			if err != nil {
				t.Fatal(err)
			}
			if err := applier(t).Apply(t.Context(), rules); err != nil {
				t.Fatal(err)
			}
			want := map[string]string{}
			for _, fl := range flows {
				want[fl.String()] = fl.end
			}
			if diff := cmp.Diff(want, ends(t, w)); diff != "" {
				t.Errorf("(-documented +kernel):\n%s", diff)
			}
		})
	}
}
