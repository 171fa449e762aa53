package proxy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"wingman/agent/envoy"
	"wingman/agent/envoy/envoytest"
	"wingman/bootstrap"
	"wingman/test/netns"
)

// newRoot makes the root folder of a machine that has istioctl's files, with settings in wingman.yaml.
func newRoot(t testing.TB, settings string) string {
	t.Helper()
	root := envoytest.Dir(t)
	from := "../../../bootstrap/testdata/istioctl"
	for name, path := range map[string]string{
		"cluster.env": "var/lib/istio/envoy/cluster.env", "mesh.yaml": "etc/istio/config/mesh",
		"hosts": "var/lib/istio/envoy/hosts", "root-cert.pem": "etc/certs/root-cert.pem",
	} {
		b, err := os.ReadFile(filepath.Join(from, name))
		if err != nil {
			t.Fatal(err)
		}
		put(t, root, path, string(b))
	}
	put(t, root, "etc/wingman/wingman.yaml", "workload: {addresses: [10.99.0.2]}\n"+settings)
	return root
}

func put(t testing.TB, root, path, content string) {
	t.Helper()
	path = filepath.Join(root, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func load(t testing.TB, root string) *bootstrap.Config {
	t.Helper()
	cfg, _, err := loadSettings(root)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func TestTheAgentsFileComesFirst(t *testing.T) {
	cfg := load(t, newRoot(t, ""))
	synctest.Test(t, func(t *testing.T) {
		var logs bytes.Buffer
		s := source{cfg: cfg, hostname: "forum-vm", patience: agentPatience, log: slog.New(slog.NewTextHandler(&logs, nil))}
		look := func(want string) {
			t.Helper()
			got, err := s.path(t.Context())
			if want == "" && errors.Is(err, errExpected) {
				return
			}
			if err != nil || got != want {
				t.Errorf("path %q, %v; want %q", got, err, want)
			}
		}
		ours, made := envoy.BootstrapPath(cfg), filepath.Join(cfg.Root, "run/wingman-proxy/bootstrap.json")
		look("") // the agent is given time
		time.Sleep(agentPatience - time.Millisecond)
		look("")
		time.Sleep(time.Millisecond)
		look(made)
		look(made)
		if n := strings.Count(logs.String(), "one is made from the settings"); n != 1 {
			t.Errorf("said %d times, want once:\n%s", n, &logs)
		}
		put(t, cfg.Root, "run/wingman/envoy/bootstrap.json", "{}")
		look(ours)
		if err := os.Remove(ours); err != nil {
			t.Fatal(err)
		}
		look("") // an agent that begins anew
	})
}

func TestTheMadeFileIsTheAgents(t *testing.T) {
	cfg := load(t, newRoot(t, ""))
	got, err := Make(t.Context(), cfg, "forum-vm")
	if err != nil {
		t.Fatal(err)
	}
	addrs := []netip.Addr{netip.MustParseAddr("10.99.0.2")}
	want, err := envoy.Bootstrap(envoy.InputOf(cfg, cfg.Node(bootstrap.NodeFacts{Hostname: "forum-vm", Addrs: addrs, Envoy: true}), addrs))
	if err != nil || !bytes.Equal(got.JSON, want.JSON) {
		t.Errorf("%v\ngot\n%s\nwant\n%s", err, got.JSON, want.JSON)
	}
}

// What the kernel says of routes without netlink, in a network made for it.
func TestRouteSources(t *testing.T) {
	envoytest.Network(t)
	ns := netns.Create(t)
	at := netip.MustParseAddr
	if err := ns.Do(func() error {
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "cable"}, PeerName: "other"}); err != nil {
			return err
		}
		for _, name := range []string{"cable", "other"} {
			link, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			for _, text := range map[string][]string{"cable": {"10.99.0.2/24", "10.98.0.2/24", "fd00:99::2/64"}}[name] {
				addr, err := netlink.ParseAddr(text)
				if err != nil {
					return err
				}
				addr.Flags = unix.IFA_F_NODAD
				if err := netlink.AddrAdd(link, addr); err != nil {
					return err
				}
			}
			if err := netlink.LinkSetUp(link); err != nil {
				return err
			}
		}
		for _, tt := range []struct {
			name      string
			targets   []netip.Addr
			dualStack bool
			want      []netip.Addr
		}{
			{"the way to istiod", []netip.Addr{at("10.98.0.1")}, false, []netip.Addr{at("10.98.0.2")}},
			{"the first that there is a way to", []netip.Addr{at("172.16.0.1"), at("10.99.0.1")}, false, []netip.Addr{at("10.99.0.2")}},
			{"loopback is no address of a machine", []netip.Addr{at("127.0.0.1"), at("10.99.0.1")}, false, []netip.Addr{at("10.99.0.2")}},
			{"both families", []netip.Addr{at("fd00:99::1"), at("10.99.0.1")}, true, []netip.Addr{at("fd00:99::2"), at("10.99.0.2")}},
			{"no way anywhere", nil, true, nil},
		} {
			if got := routeSources(tt.targets, tt.dualStack); !slices.Equal(got, tt.want) {
				t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func TestPortsThatAreLookedAt(t *testing.T) {
	cfg := load(t, newRoot(t, "envoy: {hbone: true}\nstatus: {readinessPort: 16021}\n"))
	f, err := Make(t.Context(), cfg, "forum-vm")
	if err != nil {
		t.Fatal(err)
	}
	facts, err := envoy.FactsOf(f.JSON)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range portsOf(cfg, facts) {
		moves := p.Setting
		if p.Mesh {
			moves += "the mesh"
		}
		got = append(got, fmt.Sprintf("%s %s (%s)", p.Addr, p.Purpose, moves))
	}
	want := []string{
		"127.0.0.1:15000 its admin interface (envoy.adminPort)",
		"0.0.0.0:15090 metrics (status.prometheusPort)",
		"0.0.0.0:16021 readiness (status.readinessPort)",
		"0.0.0.0:15001 outbound traffic (the mesh)",
		"0.0.0.0:15006 inbound traffic (the mesh)",
		"0.0.0.0:15008 HBONE (the mesh)",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestTheOverrideIsMergedByEnvoy(t *testing.T) {
	root := newRoot(t, "")
	put(t, root, "var/lib/istio/envoy/sidecar.env", "ISTIO_BOOTSTRAP_OVERRIDE=/etc/istio/custom.yaml\n")
	cfg := load(t, root)
	if _, err := argumentsOf(cfg, envoy.Facts{IPv4: true}); err == nil || !strings.Contains(err.Error(), "ISTIO_BOOTSTRAP_OVERRIDE of ") {
		t.Errorf("without the file: %v", err)
	}
	put(t, root, "etc/istio/custom.yaml", "stats_flush_interval: 1s\n")
	args, err := argumentsOf(cfg, envoy.Facts{IPv4: true})
	if err != nil || !slices.Equal(args[len(args)-2:], []string{"--config-yaml", "stats_flush_interval: 1s\n"}) {
		t.Errorf("args %q, %v", args, err)
	}
}

func TestBrokenSettingsAreReplacedByTheLastGoodOnes(t *testing.T) {
	root := newRoot(t, "")
	good := load(t, root)
	put(t, root, "etc/wingman/wingman.yaml", "nonsense: true\n")
	if cfg, _, err := loadSettings(root); err == nil {
		t.Errorf("without last good ones: %+v", cfg)
	}
	b, err := json.Marshal(good.Snapshot()) // as the agent writes it
	if err != nil {
		t.Fatal(err)
	}
	put(t, root, "var/lib/wingman/last-good.json", string(b))
	cfg, warning, err := loadSettings(root)
	if err != nil || warning == nil || !strings.Contains(warning.Error(), "nonsense") || cfg.Service != good.Service {
		t.Errorf("settings %+v, warning %v, %v; want the last good ones and a word on nonsense", cfg, warning, err)
	}
}

func TestASupervisorOfAMachine(t *testing.T) {
	cfg := load(t, newRoot(t, "envoy: {terminationDrain: 7s, hangTimeout: 20s, enabled: 'true', path: /none}\n"))
	c := ConfigOf(cfg, "forum-vm", slog.New(slog.DiscardHandler))
	if c.Drain != 7*time.Second || c.HangTimeout != 20*time.Second || !c.Required || c.Dir != cfg.Root || c.RunDir != filepath.Join(cfg.Root, "run/wingman-proxy") {
		t.Errorf("%+v", c)
	}
	if _, err := c.Program(); !errors.Is(err, envoy.ErrNoProgram) {
		t.Errorf("program: %v", err)
	}
}

// A unit that starts it again at once must not make a loop of it.
func TestRunWaitsForSettings(t *testing.T) {
	root := envoytest.Dir(t) // nothing in it
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, Options{Root: root, Getenv: func(string) string { return "" }, Stdout: w, Stderr: w})
		w.Close()
	}()
	said := make([]byte, 4096)
	n, err := r.Read(said)
	if err != nil || !strings.Contains(string(said[:n]), "settings cannot be used") || !strings.Contains(string(said[:n]), "cluster.env") {
		t.Errorf("it says %q (%v)", said[:n], err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("asked to stop: %v", err)
	}
}

// An Envoy is tried with all that it will be started with, the file that an operator has merged into the bootstrap file too.
func TestAnEnvoyIsTriedWithItsOwnFlags(t *testing.T) {
	root := newRoot(t, "")
	put(t, root, "var/lib/istio/envoy/sidecar.env", "ISTIO_BOOTSTRAP_OVERRIDE=/etc/istio/custom.yaml\n")
	put(t, root, "bootstrap.json", `{"admin":{"address":{"socket_address":{"address":"127.0.0.1","port_value":15000}}}}`)
	put(t, root, "envoy", `#!/bin/sh
case "$*" in
*"flags: bad"*) echo "critical: no such flag" >&2; exit 1 ;;
esac
`)
	program, file := filepath.Join(root, "envoy"), filepath.Join(root, "bootstrap.json")
	if err := os.Chmod(program, 0o755); err != nil {
		t.Fatal(err)
	}
	for custom, want := range map[string]string{"flags: good": "", "flags: bad": "--mode validate: exit status 1; it said: critical: no such flag"} {
		put(t, root, "etc/istio/custom.yaml", custom)
		err := Try(t.Context(), load(t, root), program, file)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("with %q: %v, want %q", custom, err, want)
		}
	}
}
