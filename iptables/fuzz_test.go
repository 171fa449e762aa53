package iptables

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// seedSaves adds every iptables-save output that the fixtures and the tests have.
func seedSaves(f *testing.F) {
	f.Helper()
	files, err := filepath.Glob("testdata/capture/*/ip*tables-save")
	if err != nil || len(files) == 0 {
		f.Fatalf("no fixtures: %v", err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(b))
	}
	f.Add(strangers)
	f.Add("*nat\n:PREROUTING ACCEPT [1:60]\n[1:60] -A PREROUTING -j ISTIO_INBOUND\nCOMMIT\n")
	f.Add("# Warning: iptables-legacy tables present, use iptables-legacy-save to see them\n")
}

func FuzzParseSave(f *testing.F) {
	seedSaves(f)
	f.Fuzz(func(t *testing.T, text string) {
		s, err := parseSave(text)
		if err != nil {
			return
		}
		for name, table := range s {
			for _, chain := range table.order {
				if len(table.chains[chain]) != len(table.raw[chain]) {
					t.Fatalf("table %s chain %s: %d rules to compare, %d as printed", name, chain, len(table.chains[chain]), len(table.raw[chain]))
				}
				for _, i := range table.owned(chain) {
					if i < 0 || i >= len(table.chains[chain]) {
						t.Fatalf("table %s chain %s: owned rule %d of %d", name, chain, i, len(table.chains[chain]))
					}
				}
			}
		}
		// What removes everything of ours must delete only what is there, and name no chain of others.
		for line := range strings.Lines(changeAll(IPv4, s, &Ruleset{}, true)) {
			f := strings.Fields(line)
			switch {
			case len(f) == 0:
				t.Fatal("an empty line in the input of iptables-restore")
			case strings.HasPrefix(line, ":") && !ours(strings.TrimPrefix(f[0], ":")), f[0] == "-X" && !ours(f[1]):
				t.Fatalf("removing ours touches a chain of others: %s", line)
			case f[0] == "-A" || f[0] == "-I":
				t.Fatalf("removing ours adds a rule: %s", line)
			}
		}
	})
}

func FuzzCanonicalIsItsOwnCanon(f *testing.F) {
	for _, s := range []string{"-p tcp -m tcp --dport 53 -j REDIRECT --to-ports 15053", "-p 6 -m conntrack --ctstate ESTABLISHED,RELATED -j ISTIO_DIVERT", "-p", "-m tcp", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, spec string) {
		once := canonical(spec)
		if twice := canonical(once); twice != once {
			t.Errorf("canonical(%q) = %q, and of that %q", spec, once, twice)
		}
	})
}

func FuzzResolvConf(f *testing.F) {
	f.Add("search a b\nnameserver 10.0.0.2\nnameserver fe80::1%eth0\noptions edns0\n")
	f.Fuzz(func(t *testing.T, text string) {
		for _, a := range parseResolvers(text) {
			if !a.IsValid() || a.Zone() != "" || a.Is4In6() {
				t.Errorf("%q: address %s cannot stand in a rule", text, a)
			}
		}
	})
}

func FuzzSSHDConfig(f *testing.F) {
	f.Add("Port 22\nListenAddress [::]:2222\nInclude /etc/ssh/sshd_config.d/*.conf\nMatch User x\nListenStream=[::]:22\n")
	f.Fuzz(func(t *testing.T, text string) {
		ports, _ := parseSSHDConfig(text)
		more, _ := parseSSHDTest(text)
		for _, p := range append(append(ports, more...), parseListenStream(nil, text)...) {
			if p == 0 {
				t.Errorf("%q: port 0", text)
			}
		}
	})
}

func FuzzLegacyTable(f *testing.F) {
	// An entry with the head of chain ISTIO_X, as ip_tables.c lays it out.
	entry := make([]byte, 112+32+32)
	binary.NativeEndian.PutUint16(entry[88:], 112)
	binary.NativeEndian.PutUint16(entry[90:], uint16(len(entry)))
	copy(entry[112+2:], "ERROR")
	copy(entry[112+32:], "ISTIO_X")
	f.Add(entry, false)
	f.Add(append(append([]byte{}, entry...), entry...), false)
	f.Add([]byte{}, true)
	f.Fuzz(func(t *testing.T, entries []byte, v6 bool) {
		fam := IPv4
		if v6 {
			fam = IPv6
		}
		names, _ := legacyChains(entries, fam)
		for _, name := range names {
			if len(name) > 30 {
				t.Errorf("chain name of %d bytes", len(name))
			}
		}
	})
}

func FuzzNetlink(f *testing.F) {
	f.Add([]byte{0, 4, 'a', 'b', 'c', 0, 0x57, 2, 'x', 'y'})
	f.Add([]byte{0, 0, 0, 0, 8, 0, 1, 0, 0, 0, 0, 7, 8, 0, 2, 0, 0, 0, 0, 9, 8, 0, 3, 0, 'n', 'f', 't', 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		udataEntry(data, 0x57)
		parseGeneration(data)
	})
}

func FuzzParseSocket(f *testing.F) {
	message := make([]byte, diagMessageSize)
	message[0], message[1] = unix.AF_INET6, tcpListen
	f.Add(message)
	f.Add(append(message, 12, 0, diagCgroupID, 0, 1, 2, 3, 4, 5, 6, 7, 8))
	f.Add(message[:diagMessageSize-1])
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, ok := parseSocket(data); ok != (len(data) >= diagMessageSize) {
			t.Errorf("parseSocket of %d bytes: %t", len(data), ok)
		}
	})
}
