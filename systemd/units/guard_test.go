package units

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"wingman/test/netns"
)

// strangerRules are somebody else's, and memberRules ours among them, in both forms that the kernel has.
const (
	strangerRules = `
iptables-nft-restore --noflush <<'END'
*nat
:OTHER - [0:0]
-A OUTPUT -p tcp -m comment --comment "not -j ISTIO_OUTPUT" -j ACCEPT
-A OUTPUT -j OTHER
COMMIT
END
`
	memberRules = `
iptables-nft-restore --noflush <<'END'
*nat
:ISTIO_OUTPUT - [0:0]
:ISTIO_REDIRECT - [0:0]
:WINGMAN_OUTPUT - [0:0]
-A OUTPUT -j WINGMAN_OUTPUT
-A OUTPUT -j ISTIO_OUTPUT
-A ISTIO_OUTPUT -j ISTIO_REDIRECT
-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001
COMMIT
*mangle
:ISTIO_INBOUND - [0:0]
-A PREROUTING -p tcp -j ISTIO_INBOUND
COMMIT
END
ip6tables-nft-restore --noflush <<'END'
*nat
:ISTIO_OUTPUT - [0:0]
-A OUTPUT -j ISTIO_OUTPUT
COMMIT
END
nft add table inet wingman
`
)

// The guard takes rules out only where the agent was stopped for good and says that they are its own.
func TestTheGuardOfAStop(t *testing.T) {
	for _, tool := range []string{"iptables-nft-restore", "ip6tables-nft-restore", "nft"} {
		netns.Tool(t, tool)
	}
	for _, c := range []struct {
		name, state, job, system string
		ours                     bool
		rules, note              bool   // stay
		istio, record            string // state of istio.service, and what an adopt noted
	}{
		{"it hands over to another agent", "inactive", "handover", "running", true, true, false, "inactive", ""},
		{"it was about to hand over, to one that was killed", "inactive", "handover of the dead", "running", true, false, false, "inactive", ""},
		{"Istio's own agent is back", "inactive", "", "running", true, true, false, "active", ""},
		{"Istio's own agent starts again", "inactive", "", "running", true, true, false, "activating", `{"step":"undo"}`},
		{"Istio's own agent beside an adopt that is through", "inactive", "", "running", true, false, false, "active", `{"step":"done"}`},
		{"stopped", "inactive", "", "running", true, false, false, "inactive", ""},
		{"stopped after a failure", "failed", "12 wingman.service stop running", "degraded", true, false, false, "inactive", ""},
		{"rules of somebody else", "inactive", "", "running", false, true, false, "inactive", ""},
		{"it runs", "active", "", "running", true, true, true, "inactive", ""},
		{"between two starts", "activating", "", "running", true, true, true, "inactive", ""},
		{"it ends", "deactivating", "", "running", true, true, true, "inactive", ""},
		{"a restart", "inactive", "12 wingman.service restart waiting", "running", true, true, true, "inactive", ""},
		{"a start", "inactive", "12 wingman.service start waiting", "running", true, true, true, "inactive", ""},
		{"a shutdown", "inactive", "", "stopping", true, true, true, "inactive", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			netns.New(t)
			dir := t.TempDir()
			write := func(name, content string, mode os.FileMode) {
				t.Helper()
				if err := os.WriteFile(filepath.Join(dir, name), []byte(content), mode); err != nil {
					t.Fatal(err)
				}
			}
			sh := func(script string) string {
				t.Helper()
				out, err := exec.Command("sh", "-euc", script).CombinedOutput()
				if err != nil {
					t.Fatalf("%v: %s", err, out)
				}
				return string(out)
			}
			write("systemctl", `#!/bin/sh
case "$*" in
is-system-running) echo `+c.system+` ;;
"show --property=ActiveState --value wingman.service") echo `+c.state+` ;;
"show --property=ActiveState --value istio.service") echo `+c.istio+` ;;
"list-jobs --plain --no-legend wingman.service") echo "`+c.job+`" ;;
*) echo "unexpected: $*" >&2; exit 1 ;;
esac
`, 0o755)
			content, err := files.ReadFile("crash-guard")
			if err != nil {
				t.Fatal(err)
			}
			guard := string(content)
			for from, to := range map[string]string{ // the agent's program is missing here
				"\nPATH=": "\nPATH=" + dir + ":", "notes=/run/wingman-guard\n": "notes=" + dir + "\n", "ours=/var/lib/wingman/rules.in\n": "ours=" + dir + "/rules.in\n",
				"record=/var/lib/wingman-adopt/record.json\n": "record=" + dir + "/record.json\n",
				"/usr/bin/wingman rules remove":               dir + "/wingman rules remove",
			} {
				if strings.Count(guard, from) == 0 {
					t.Fatalf("the guard has no %q", from)
				}
				guard = strings.ReplaceAll(guard, from, to)
			}
			write("guard", guard, 0o755)
			write("open", "2026-11-23T12:00:00Z why\n", 0o644)
			if c.ours {
				write("rules.in", "", 0o600)
			}
			if c.record != "" {
				write("record.json", c.record+"\n", 0o600)
			}
			switch c.job { // no job, but that note
			case "handover":
				write("handover", strconv.Itoa(os.Getpid())+"\n", 0o644)
			case "handover of the dead":
				write("handover", sh("sh -c 'echo $$'"), 0o644)
			}
			const dump = `for t in nat mangle raw; do iptables-nft-save -t $t; ip6tables-nft-save -t $t; done | grep '^[:-]' | sed 's/ \[.*//'; nft list tables | grep wingman || :`
			sh(strangerRules)
			strangers := sh(dump)
			sh(memberRules)
			all := sh(dump)
			out := sh(filepath.Join(dir, "guard") + " --stopped")
			want := strangers
			if c.rules {
				want = all
			}
			got := sh(dump)
			if got != want {
				t.Errorf("rules are\n%s\nwant\n%s\nit said %s", got, want, out)
			}
			if _, err := os.Stat(filepath.Join(dir, "open")); (err == nil) != c.note {
				t.Errorf("its note: %v, want it to stay: %v", err, c.note)
			}
			if _, err := os.Stat(filepath.Join(dir, "rules.in")); c.ours && (err == nil) != c.rules {
				t.Errorf("the agent's note: %v, want it to stay: %v", err, c.rules)
			}
		})
	}
}

// At the fifth bad end DNS is taken away from the agent, and the guard says so, only where it could do that: rules of the native backend need nft.
func TestTheGuardSaysWhatItDid(t *testing.T) {
	for _, tool := range []string{"nft", "awk", "grep", "rm", "mv", "date", "mkdir"} {
		netns.Tool(t, tool)
	}
	for _, c := range []struct {
		name string
		nft  bool
		want string
	}{
		{"with nft", true, "<3>DNS is taken away from the agent: "},
		{"without nft", false, "<3>The agent keeps ending badly, and DNS rules stay in table inet wingman, as there is no nft"},
	} {
		t.Run(c.name, func(t *testing.T) {
			netns.New(t)
			dir := t.TempDir()
			for _, tool := range []string{"nft", "awk", "grep", "rm", "mv", "date", "mkdir"} {
				if tool == "nft" && !c.nft {
					continue
				}
				if err := os.Symlink(netns.Tool(t, tool), filepath.Join(dir, tool)); err != nil {
					t.Fatal(err)
				}
			}
			content, err := files.ReadFile("crash-guard")
			if err != nil {
				t.Fatal(err)
			}
			guard := strings.NewReplacer("\nPATH=/usr/sbin:/usr/bin:/sbin:/bin\n", "\nPATH="+dir+"\n", "notes=/run/wingman-guard\n", "notes="+dir+"\n",
				"ours=/var/lib/wingman/rules.in\n", "ours="+dir+"/rules.in\n", "\nsleep \"$pause\"\n", "\n").Replace(string(content))
			for name, content := range map[string]string{"guard": guard, "rules.in": ""} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			if out, err := exec.Command("nft", "add table inet wingman; add chain inet wingman nat-istio-output-dns; add rule inet wingman nat-istio-output-dns udp dport 53 accept").CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			said := ""
			for range 7 {
				cmd := exec.Command("sh", filepath.Join(dir, "guard"))
				cmd.Env = append(cmd.Environ(), "SERVICE_RESULT=signal")
				out, err := cmd.CombinedOutput()
				if err != nil {
					t.Fatalf("%v: %s", err, out)
				}
				said += string(out)
			}
			if !strings.HasPrefix(said, c.want) || strings.Count(said, "<3>") != 1 {
				t.Errorf("the guard said\n%s\nwant one line that begins with %s", said, c.want)
			}
			if _, err := os.Stat(filepath.Join(dir, "open")); (err == nil) != c.nft {
				t.Errorf("its note that DNS was taken away: %v, want one: %v", err, c.nft)
			}
			table, err := exec.Command("nft", "list", "table", "inet", "wingman").CombinedOutput()
			if err != nil || strings.Contains(string(table), "dport 53") == c.nft {
				t.Errorf("the table is now (%v)\n%s", err, table)
			}
		})
	}
}
