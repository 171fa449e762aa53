package iptables

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wingman/test/netns"
)

func TestParseResolversTakesEveryServerInOrder(t *testing.T) {
	tests := []struct {
		name, text string
		want       []string
	}{
		{"two families and other words", "search corp.example\nnameserver 10.0.0.2\noptions edns0\nnameserver 2001:db8::53\n", []string{"10.0.0.2", "2001:db8::53"}},
		{"a zone is cut off, because rules know none", "nameserver fe80::1%eth0\n", []string{"fe80::1"}},
		{"an IPv4 address in IPv6 clothes is IPv4", "nameserver ::ffff:10.0.0.2\n", []string{"10.0.0.2"}},
		{"comments, names and empty entries are passed over", "#nameserver 1.1.1.1\n; nameserver 1.1.1.2\nnameserver\nnameserver dns.corp\n\tnameserver 1.1.1.3 # ours\n", []string{"1.1.1.3"}},
		{"a word that only begins like it is another", "nameservers 1.1.1.1\n", nil},
		{"no final line end", "nameserver 127.0.0.53", []string{"127.0.0.53"}},
		{"nothing", "", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, a := range parseResolvers(tt.text) {
				got = append(got, a.String())
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("parseResolvers(%q) (-want +got):\n%s", tt.text, diff)
			}
		})
	}
}

func TestParseSSHDConfigFindsPortsAndIncludes(t *testing.T) {
	tests := []struct {
		name, text      string
		ports, includes string
	}{
		{"a port", "Port 2222\n", "[2222]", "[]"},
		{"several, in any letter case, with equals signs", "PORT=22\nport 2222 # and here\n", "[22 2222]", "[]"},
		{"addresses with ports", "ListenAddress 10.0.0.1:2022\nListenAddress [::]:2023\nListenAddress host:2024\n", "[2022 2023 2024]", "[]"},
		{"an address without a port names none", "ListenAddress 10.0.0.1\nListenAddress ::\nListenAddress fe80::1\n", "[]", "[]"},
		{"includes", "Include /etc/ssh/sshd_config.d/*.conf extra\n", "[]", "[/etc/ssh/sshd_config.d/*.conf extra]"},
		{"what stands after Match is not about ports", "Match User git\nPort 1\n", "[]", "[]"},
		{"what is no port is passed over", "Port 0\nPort 70000\nPort ssh\nPort\n", "[]", "[]"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ports, includes := parseSSHDConfig(tt.text)
			if got := fmt.Sprint(ports); got != tt.ports {
				t.Errorf("ports of %q: %s, want %s", tt.text, got, tt.ports)
			}
			if got := fmt.Sprint(includes); got != tt.includes {
				t.Errorf("includes of %q: %s, want %s", tt.text, got, tt.includes)
			}
		})
	}
}

func TestReadSSHDConfigFollowsIncludes(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	main := filepath.Join(dir, "sshd_config")
	write("sshd_config", "Include sshd_config.d/*.conf\n")
	if got, err := readSSHDConfig(main, 0); err != nil || !slices.Equal(got, []uint16{22}) {
		t.Errorf("without a port: %v, %v; want sshd's default, 22", got, err)
	}
	write("sshd_config.d/10-port.conf", "Port 2222\n")
	if got, err := readSSHDConfig(main, 0); err != nil || !slices.Equal(got, []uint16{2222}) {
		t.Errorf("with an included port: %v, %v; want 2222", got, err)
	}
	write("sshd_config", "Include sshd_config\n")
	if got, err := readSSHDConfig(main, 0); err == nil {
		t.Errorf("a file that includes itself: %v, want an error", got)
	}
}

func TestParseSSHDTestReadsWhatTheProgramPrints(t *testing.T) {
	got, err := parseSSHDTest("port 22\nport 2222\naddressfamily any\nlistenaddress [::]:2222\nlistenaddress 0.0.0.0:2022\nusepam yes\n")
	if want := []uint16{22, 2222, 2022}; err != nil || !slices.Equal(got, want) {
		t.Errorf("sshd -T: %v, %v; want %v", got, err, want)
	}
	if got, err := parseSSHDTest("usepam yes\n"); err == nil {
		t.Errorf("sshd -T without a port: %v, want an error", got)
	}
}

func TestSocketUnitsAreReadAsSystemdDoes(t *testing.T) {
	etc, run, lib := t.TempDir(), t.TempDir(), t.TempDir()
	write := func(dir, name, text string) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755), os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	dirs := []string{etc, run, lib}
	check := func(when string, want []uint16, enabled bool) {
		t.Helper()
		if got, on := socketUnit(dirs, "ssh.socket"); !slices.Equal(got, want) || on != enabled {
			t.Errorf("%s: ports %v, enabled %t; want %v, %t", when, got, on, want, enabled)
		}
	}
	check("no unit", nil, false)
	write(lib, "ssh.socket", "[Socket]\nListenStream=22\nListenStream=/run/x.sock\nListenDatagram=99\n")
	check("the distribution's unit", []uint16{22}, false)
	write(run, "ssh.socket.d/addresses.conf", "[Socket]\nListenStream=\nListenStream=0.0.0.0:2222\nListenStream=[::]:2222\n")
	check("what Ubuntu's generator adds replaces it", []uint16{2222}, false)
	write(etc, "ssh.socket.d/addresses.conf", "[Socket]\nListenStream = 2022\n")
	check("a drop-in of the same name in /etc is stronger", []uint16{22, 2022}, false)
	write(etc, "sockets.target.wants/ssh.socket", "")
	check("enabled", []uint16{22, 2022}, true)
}

// noCommands is a host on which nothing is installed.
func noCommands() *host {
	h := systemHost()
	h.find = func(names ...string) (string, error) { return "", fmt.Errorf("%s: %w", names[0], errNoCommand) }
	h.run = func(context.Context, string, ...string) (string, error) { return "", errors.New("nothing to run") }
	return h
}

func TestWithoutAnyWordOfSSHDPort22AndRootsLowPortsAreGuarded(t *testing.T) {
	netns.New(t)
	for _, addr := range []string{"0.0.0.0:822", "127.0.0.1:823", "0.0.0.0:8022"} {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	}
	ssh, notes := gatherSSH(t.Context(), GatherConfig{SSHDConfig: filepath.Join(t.TempDir(), "none")}, noCommands())
	var ports []uint16
	for _, l := range ssh.sortedListeners() {
		ports = append(ports, l.Port)
	}
	if want := []uint16{22, 822}; !slices.Equal(ports, want) {
		t.Errorf("guarded ports: %v, want %v", ports, want)
	}
	if len(notes) != 1 {
		t.Errorf("notes: %q, want one that says so", notes)
	}
}

func TestARunningSSHDIsAskedWhenNothingElseTells(t *testing.T) {
	dir := t.TempDir()
	sleep, err := os.ReadFile(netns.Tool(t, "sleep"))
	if err != nil {
		t.Fatal(err)
	}
	sshd := filepath.Join(dir, "sshd")
	if err := os.WriteFile(sshd, sleep, 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(sshd, "60") // a process of that name, which listens nowhere
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	h := noCommands()
	h.find = func(...string) (string, error) { return sshd, nil }
	h.run = func(_ context.Context, _ string, argv ...string) (string, error) {
		return map[string]string{sshd + " -T": "port 2022\n"}[strings.Join(argv, " ")], nil
	}
	netns.New(t)
	ssh, _ := gatherSSH(t.Context(), GatherConfig{SSHDConfig: filepath.Join(dir, "none")}, h)
	if want := (Listener{2022, "sshd -T says so"}); !slices.Contains(ssh.Listeners, want) {
		t.Errorf("listeners %+v, want %+v", ssh.Listeners, want)
	}
}

func TestTheReportOfTheRootHelperIsReadBack(t *testing.T) {
	dir := t.TempDir()
	conf, report := filepath.Join(dir, "sshd_config"), filepath.Join(dir, "ssh.json")
	if err := os.WriteFile(conf, []byte("Port 2022\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	netns.New(t)
	if err := WriteSSHReport(t.Context(), report, GatherConfig{SSHDConfig: conf}); err != nil {
		t.Fatal(err)
	}
	ssh, _ := gatherSSH(t.Context(), GatherConfig{SSHDConfig: filepath.Join(dir, "unreadable"), SSHReport: report}, noCommands())
	if !slices.ContainsFunc(ssh.Listeners, func(l Listener) bool { return l.Port == 2022 }) {
		t.Errorf("listeners %+v, want 2022 among them", ssh.Listeners)
	}
}

func TestGatherFactsReadsThisNamespace(t *testing.T) {
	netns.New(t)
	dir := t.TempDir()
	resolv, group := filepath.Join(dir, "resolv.conf"), filepath.Join(dir, "group")
	if err := os.WriteFile(resolv, []byte("nameserver 192.0.2.53\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(group, []byte("root:x:0:\ndaemon:x:1:a,b\nbroken\ndaemon:x:9:\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	sh(t, "ip", "addr", "add", "192.0.2.7/24", "dev", "lo")
	f, err := GatherFacts(t.Context(), GatherConfig{ResolvConf: resolv, Group: group})
	if err != nil {
		t.Fatal(err)
	}
	if want := []netip.Addr{netip.MustParseAddr("192.0.2.53")}; !slices.Equal(f.Resolvers, want) {
		t.Errorf("resolvers %v, want %v", f.Resolvers, want)
	}
	if want := map[string]uint32{"root": 0, "daemon": 1}; !cmp.Equal(f.Groups, want) {
		t.Errorf("groups %v, want %v", f.Groups, want)
	}
	if !slices.Contains(f.Addrs, netip.MustParseAddr("192.0.2.7")) || !slices.Contains(f.InterfaceAddrs["lo"], netip.MustParseAddr("192.0.2.7")) {
		t.Errorf("addresses %v, by interface %v; want 192.0.2.7 on lo", f.Addrs, f.InterfaceAddrs)
	}
	if len(f.SSH.Listeners) == 0 {
		t.Error("no port of sshd is guarded")
	}
}

func TestDualStackOnAMachineWithIPv6SwitchedOff(t *testing.T) {
	for _, backend := range allBackends {
		t.Run(backend, func(t *testing.T) {
			netns.New(t)
			for _, name := range []string{"all", "lo"} {
				sysctl(t, "net/ipv6/conf/"+name+"/disable_ipv6", "1")
			}
			facts, err := GatherFacts(t.Context(), GatherConfig{})
			if err != nil || !facts.NoIPv6 {
				t.Fatalf("NoIPv6 %t, %v; want it noticed", facts.NoIPv6, err)
			}
			cfg, _ := childConfig("tproxy", backend)
			rules := mustApply(t, cfg, facts)
			if rules.Families[IPv6].Wanted || len(rules.Notes) == 0 {
				t.Errorf("IPv6 wanted: %t, notes %q; want none, and a note", rules.Families[IPv6].Wanted, rules.Notes)
			}
			if diff, err := applier(t).Diff(t.Context(), rules); err != nil || len(diff) > 0 {
				t.Errorf("%d differences, %v", len(diff), err)
			}
		})
	}
}
