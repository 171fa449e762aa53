package iptables

import (
	"testing"

	goiptables "github.com/coreos/go-iptables/iptables"

	"wingman/test/netns"
)

// TestOtherToolsFindIstiosChains looks at our rules through the library that docker's, flannel's and other people's tools
// use, and changes rules of its own beside them.
func TestOtherToolsFindIstiosChains(t *testing.T) {
	netns.New(t)
	netns.Tool(t, "iptables")
	cfg, facts := vmDefault(BackendNFT)
	mustApply(t, cfg, facts)
	stranger, err := goiptables.New(goiptables.Path(netns.Tool(t, "iptables-nft")))
	if err != nil {
		t.Fatal(err)
	}
	for _, chain := range []string{chainInbound, chainInRedirect, chainOutput, chainOutputDNS, chainRedirect} {
		if ok, err := stranger.ChainExists("nat", chain); err != nil || !ok {
			t.Errorf("chain %s: %t, %v; want it there", chain, ok, err)
		}
	}
	if ok, err := stranger.Exists("nat", "OUTPUT", "-j", chainOutput); err != nil || !ok {
		t.Errorf("Istio's jump: %t, %v; want it there", ok, err)
	}
	if err := stranger.InsertUnique("nat", "PREROUTING", 1, "-p", "tcp", "--dport", "8081", "-j", "ACCEPT"); err != nil {
		t.Fatal(err)
	}
	cfg.OutboundExcludePorts = []PortRange{{25, 25}}
	mustApply(t, cfg, facts)
	if err := applier(t).Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if ok, err := stranger.Exists("nat", "PREROUTING", "-p", "tcp", "--dport", "8081", "-j", "ACCEPT"); err != nil || !ok {
		t.Errorf("the stranger's rule after apply and remove: %t, %v; want it there", ok, err)
	}
	if chains, err := stranger.ListChains("nat"); err != nil || len(chains) != 4 {
		t.Errorf("chains after remove: %v, %v; want the built-in four", chains, err)
	}
}
