package iptables

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wingman/test/netns"
)

// listing is table inet wingman as nft prints it, without counts.
func listing(t *testing.T) string {
	t.Helper()
	out := sh(t, "nft", "list", "table", "inet", nativeTable)
	return regexp.MustCompile(`packets \d+ bytes \d+`).ReplaceAllString(out, "packets 0 bytes 0")
}

func TestNftReadsThePlanAsTheBackendWritesIt(t *testing.T) {
	for _, f := range fixtures(t) {
		t.Run(f.name, func(t *testing.T) {
			nft := netns.Tool(t, "nft")
			f.cfg.Backend = BackendNative
			rules, err := Plan(f.cfg, f.facts)
			if err != nil {
				t.Fatal(err)
			}
			netns.New(t)
			file := filepath.Join(t.TempDir(), "plan.nft")
			if err := os.WriteFile(file, []byte(rules.NFT()), 0o600); err != nil {
				t.Fatal(err)
			}
			sh(t, nft, "-f", file)
			byText := listing(t)
			sh(t, nft, "delete", "table", "inet", nativeTable)
			if err := applier(t).Apply(t.Context(), rules); err != nil {
				t.Fatal(err)
			}
			byNetlink := listing(t)
			if diff := cmp.Diff(byText, byNetlink); diff != "" {
				t.Errorf("nft -f of the plan and the native backend differ (-text +netlink):\n%s", diff)
			}
			if strings.Contains(byNetlink, "@") && strings.Contains(byNetlink, "th,") {
				t.Errorf("a rule that nft cannot name:\n%s", byNetlink)
			}
		})
	}
}
