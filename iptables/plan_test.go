package iptables

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPlanEqualsWhatIstiosToolLeavesOnceOurChainsAreLeftOut(t *testing.T) {
	for _, f := range fixtures(t) {
		if f.native {
			continue
		}
		t.Run(f.name, func(t *testing.T) {
			rules, err := Plan(f.cfg, f.facts)
			if err != nil {
				t.Fatal(err)
			}
			for fam, name := range []string{IPv4: "iptables-save", IPv6: "ip6tables-save"} {
				got := withoutOwn(rules.Save(Family(fam)))
				if diff := cmp.Diff(f.read(t, name), got); diff != "" {
					t.Errorf("%s (-Istio +ours):\n%s", name, diff)
				}
			}
		})
	}
}
