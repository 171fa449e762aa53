package iptables

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wingman/test/netns"
)

// sh runs a command in the test's namespace and returns what it printed.
func sh(t testing.TB, argv ...string) string {
	t.Helper()
	path := netns.Tool(t, argv[0])
	out, err := exec.Command(path, argv[1:]...).Output()
	if err != nil {
		stderr := ""
		if ee, ok := err.(*exec.ExitError); ok {
			stderr = string(ee.Stderr)
		}
		t.Fatalf("%s: %v: %s", strings.Join(argv, " "), err, stderr)
	}
	return string(out)
}

// applier returns an Applier for the test's namespace, with the commands of iptables there.
func applier(t testing.TB) *Applier {
	t.Helper()
	a, err := NewApplier(ApplierConfig{})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestAppliedRulesReadBackFromTheKernelAsIstiosTool(t *testing.T) {
	for _, flavour := range []string{BackendNFT, BackendLegacy} {
		for _, f := range fixtures(t) {
			if f.native {
				continue
			}
			t.Run(flavour+"/"+f.name, func(t *testing.T) {
				netns.Tool(t, "iptables-"+flavour)
				netns.New(t)
				f.cfg.Backend = flavour
				rules, err := Plan(f.cfg, f.facts)
				if err != nil {
					t.Fatal(err)
				}
				if err := applier(t).Apply(t.Context(), rules); err != nil {
					t.Fatal(err)
				}
				for what, got := range map[string]string{
					"iptables-save":  withoutOwn(sh(t, "iptables-"+flavour+"-save")),
					"ip6tables-save": withoutOwn(sh(t, "ip6tables-"+flavour+"-save")),
					"ip-rule":        sh(t, "ip", "rule"),
					"ip6-rule":       sh(t, "ip", "-6", "rule"),
				} {
					want := f.read(t, what)
					if flavour == BackendLegacy {
						want, got = byTable(want), byTable(got)
					}
					if diff := cmp.Diff(want, got); diff != "" {
						t.Errorf("%s (-Istio +kernel):\n%s", what, diff)
					}
				}
				if want := f.read(t, "ip-route-133"); want != "" {
					got := sh(t, "ip", "route", "show", "table", "133")
					if diff := cmp.Diff(want, got); diff != "" {
						t.Errorf("route table 133 (-Istio +kernel):\n%s", diff)
					}
				}
			})
		}
	}
}

// byTable puts the tables of an iptables-save output in order of their names and drops empty ones: legacy prints them in the
// order of their first use, and keeps every table that was ever looked at.
func byTable(save string) string {
	if !strings.HasPrefix(save, "*") && !strings.HasPrefix(save, "#") {
		return save // no tables, but another of the things that are compared beside them
	}
	save = withoutOwn(save)
	var out []string
	for _, table := range strings.SplitAfter(save, "COMMIT\n") {
		if strings.Contains(table, "-A ") {
			out = append(out, sortChains(table))
		}
	}
	for i := range out {
		for j := range i {
			if out[i] < out[j] {
				out[i], out[j] = out[j], out[i]
			}
		}
	}
	return strings.Join(out, "")
}

// sortChains sorts the lines that declare chains, which legacy prints in the order of their making, and keeps rules grouped
// by chain in that order.
func sortChains(table string) string {
	lines := strings.Split(table, "\n")
	var decl []string
	rules := map[string][]string{}
	for _, l := range lines[1:] {
		switch {
		case strings.HasPrefix(l, ":"):
			decl = append(decl, l)
		case strings.HasPrefix(l, "-A "):
			chain := strings.Fields(l)[1]
			rules[chain] = append(rules[chain], l)
		}
	}
	user := decl
	for len(user) > 0 && !strings.Contains(user[0], " - ") {
		user = user[1:]
	}
	for i := range user {
		for j := range i {
			if user[i] < user[j] {
				user[i], user[j] = user[j], user[i]
			}
		}
	}
	out := append([]string{lines[0]}, decl...)
	for _, d := range decl {
		out = append(out, rules[strings.Fields(d)[0][1:]]...)
	}
	return strings.Join(append(out, "COMMIT\n"), "\n")
}
