package vm

import (
	"regexp"
	"strings"
	"testing"
	"time"
)

// The rules stand in for the agent's, which has the same chains.
const dnsRules = `
iptables-nft-restore --noflush <<'END'
*nat
:ISTIO_OUTPUT - [0:0]
:ISTIO_OUTPUT_DNS - [0:0]
:WINGMAN_CONTAINERS - [0:0]
-A OUTPUT -p tcp -m comment --comment "somebody else's, --dport 53 " -j ACCEPT
-A OUTPUT -j ISTIO_OUTPUT
-A ISTIO_OUTPUT -j ISTIO_OUTPUT_DNS
-A ISTIO_OUTPUT -p tcp -d 10.1.0.0/16 -j REDIRECT --to-ports 15001
-A ISTIO_OUTPUT_DNS -d 127.0.0.53/32 -p udp -m udp --dport 53 -j REDIRECT --to-ports 15053
-A WINGMAN_CONTAINERS -i docker0 -p udp -m udp --dport 53 -m addrtype ! --dst-type LOCAL -j REDIRECT --to-ports 15053
-A WINGMAN_CONTAINERS -i docker0 -p tcp -m tcp --dport 80 -j ACCEPT
COMMIT
*raw
:ISTIO_OUTPUT_DNS - [0:0]
:ISTIO_INBOUND - [0:0]
-A OUTPUT -j ISTIO_OUTPUT_DNS
-A PREROUTING -j ISTIO_INBOUND
-A ISTIO_OUTPUT_DNS -d 127.0.0.53/32 -p udp -m udp --dport 53 -j CT --zone 2
-A ISTIO_INBOUND -s 127.0.0.53/32 -p udp -m udp --sport 53 -j CT --zone 1
COMMIT
END
ip6tables-nft-restore --noflush <<'END'
*nat
:ISTIO_OUTPUT_DNS - [0:0]
-A OUTPUT -j ISTIO_OUTPUT_DNS
-A ISTIO_OUTPUT_DNS -d ::53/128 -p udp -m udp --dport 53 -j REDIRECT --to-ports 15053
COMMIT
END
nft -f - <<'END'
table inet wingman {
	chain nat-istio-output-dns { ip daddr 127.0.0.53 udp dport 53 redirect to :15053; }
	chain raw-istio-output-dns { ip daddr 127.0.0.53 udp dport 53 ct zone set 2; }
	chain raw-istio-inbound { ip saddr 127.0.0.53 udp sport 53 ct zone set 1; }
	chain nat-istio-inbound { tcp dport 22 return; }
	chain nat-wingman-containers { iifname "docker0" udp dport 53 redirect to :15053; iifname "docker0" tcp dport 80 accept; }
}
END
`

func TestACrashLoopGivesDNSBack(t *testing.T) {
	m := withDaemon(t)
	m.Sh(dnsRules)
	rules := func() string {
		dump := m.Sh("for t in nat raw; do iptables-nft-save -t $t; ip6tables-nft-save -t $t; done; nft list table inet wingman")
		dump = regexp.MustCompile(`(?m)^#.*\n`).ReplaceAllString(dump, "")
		return regexp.MustCompile(`\[\d+:\d+\]`).ReplaceAllString(dump, "[]")
	}
	before := rules()
	for range 10 { // what an operator asks for is no crash
		m.Run("systemctl", "restart", "wingman")
	}
	if rules() != before {
		t.Fatal("ten restarts took rules out")
	}
	m.Write("/var/lib/wingman/crash", "", 0o644)
	m.Run("systemctl", "kill", "--kill-who=main", "--signal=KILL", "wingman")
	m.await("the guard", func() bool { return m.Sh("cat /run/wingman-guard/open 2>/dev/null || :") != "" })

	var want []string
	for line := range strings.SplitSeq(before, "\n") {
		ours := !strings.Contains(line, "somebody")
		if ours && (strings.Contains(line, "port 53 ") || strings.Contains(line, "CT --zone")) {
			continue
		}
		want = append(want, line)
	}
	if got := rules(); got != strings.Join(want, "\n") {
		t.Errorf("the guard left\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
	var fifth, guard time.Time
	bad := 0
	for _, e := range m.Journal("wingman") {
		if strings.Contains(e.Message, "Main process exited") && !strings.Contains(e.Message, "status=0") {
			if bad++; bad == 5 {
				fifth = e.At
			}
		}
		if strings.HasPrefix(e.Message, "DNS is taken away from the agent: the agent ended badly 5 times within 30 s") {
			if e.Priority != 3 {
				t.Errorf("the guard spoke with priority %d, want 3: a person must act", e.Priority)
			}
			guard = e.At
		}
	}
	if guard.IsZero() || guard.Sub(fifth) > time.Second && !busy(t) {
		t.Errorf("the rules were out %s after the fifth bad end, want at most 1 s\n%s", guard.Sub(fifth), m.lastWords())
	}

	m.Run("rm", "/var/lib/wingman/crash")
	m.waitActive("wingman.service") // systemd went on trying
	m.Run("systemctl", "restart", "wingman")
	if open, err := m.Try("test", "-e", "/run/wingman-guard/open"); err == nil {
		t.Errorf("the guard's note is still there after the agent came back: %s", open)
	}
}

func TestAMissingProgramIsACrashLoopToo(t *testing.T) {
	m := withDaemon(t)
	m.Sh(dnsRules)
	m.Sh("rm /usr/bin/wingman && systemctl kill --kill-who=main --signal=KILL wingman")
	m.await("the guard", func() bool { return m.Sh("cat /run/wingman-guard/open 2>/dev/null || :") != "" })
	if out := m.Sh("iptables-nft-save -t nat"); strings.Contains(out, "--to-ports 15053") {
		t.Errorf("DNS still goes to the agent:\n%s", out)
	}
}
