package iptables

import (
	"strings"
	"testing"

	"wingman/test/netns"
)

// What pilot-agent left, natively as well, is as it was when a snapshot is put back after our rules were in.
func TestASnapshotOfIstiosRulesIsPutBack(t *testing.T) {
	netns.New(t)
	const native = `table inet istio-proxy-nat {
	chain istio-redirect {
		tcp dport 1-65535 redirect to :15001
	}
	chain output {
		type nat hook output priority -100; policy accept;
		oifname != "lo" jump istio-redirect
	}
}
`
	in := netns.Tool(t, "nft")
	sh(t, "sh", "-c", in+` -f - <<'EOT'
`+native+`EOT`)
	a, err := NewApplier(ApplierConfig{})
	if err != nil {
		t.Fatal(err)
	}
	before := sh(t, in, "list", "table", "inet", "istio-proxy-nat")
	restore, err := a.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	rules, err := Plan(Config{Level: LevelAll, ProxyUID: 995, ProxyGID: 995, Backend: BackendNative, InboundAll: true, OutboundAll: true, OwnerGroupsAll: true}, Facts{})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Apply(t.Context(), rules); err != nil {
		t.Fatal(err)
	}
	if out := sh(t, in, "list", "tables"); strings.Contains(out, "istio-proxy-nat") || !strings.Contains(out, "wingman") {
		t.Fatalf("tables with our rules in: %s", out)
	}
	if err := restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := sh(t, in, "list", "table", "inet", "istio-proxy-nat"); after != before {
		t.Errorf("after:\n%s\nwant\n%s", after, before)
	}
	if out := sh(t, in, "list", "tables"); strings.Contains(out, "wingman") {
		t.Errorf("ours are left: %s", out)
	}
}
