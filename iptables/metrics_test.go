package iptables

import (
	"context"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"wingman/test/netns"
)

func TestMetricsTellWhatHappened(t *testing.T) {
	ns := netns.New(t)
	netns.Tool(t, "nft")
	registry := prometheus.NewRegistry()
	a, err := NewApplier(ApplierConfig{Metrics: registry})
	if err != nil {
		t.Fatal(err)
	}
	cfg, facts := vmDefault(BackendNative)
	cfg.OpenInbound = true
	_, plan := fixedPlan(t, cfg, facts)
	k := keep(t, ns, KeeperConfig{Applier: a, Plan: plan, MaxRepairs: 1})
	sh(t, "nft", "delete", "table", "inet", "wingman")
	k.until(t, "repaired", func(s KeeperState) bool { return s.Repairs == 1 && s.InPlace })
	sh(t, "nft", "delete", "table", "inet", "wingman")
	k.until(t, "contested", func(s KeeperState) bool { return s.Contested })
	k.stop(t)
	if err := a.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := map[string]float64{
		MetricApplies + " apply ok": 2, MetricApplies + " remove ok": 1, MetricRepairs: 1, MetricContested: 1,
		MetricOpen + " inbound": 1, MetricOpen + " outbound": 0, MetricApplySeconds: 2,
	}
	if diff := cmp.Diff(want, values(t, registry)); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
	if _, err := NewApplier(ApplierConfig{Metrics: registry}); err == nil {
		t.Error("a second Applier took the same registry")
	}
}

// values reads all metrics: name and label values; of histograms the number of observations.
func values(t *testing.T, registry *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			key := []string{f.GetName()}
			for _, l := range m.GetLabel() {
				key = append(key, l.GetValue())
			}
			out[strings.Join(key, " ")] = m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return out
}

func TestANewAddressIsFollowedInPlace(t *testing.T) {
	ns := netns.New(t)
	plan := func(context.Context) (Rules, error) {
		cfg, facts := vmDefault(BackendNative)
		var err error
		if facts.Addrs, _, err = interfaceAddrs(); err != nil {
			return Rules{}, err
		}
		return Plan(cfg, facts)
	}
	k := keep(t, ns, KeeperConfig{Plan: plan})
	if strings.Contains(listing(t), "ip6 daddr") {
		t.Fatal("IPv6 is captured on a machine that has no address of it")
	}
	ip(t, "addr add 2001:db8::7/64 dev lo nodad") // now the machine has IPv6 and nothing else
	k.eventually(t, "IPv6 is captured", func() bool { return strings.Contains(listing(t), "ip6 daddr") })
	ip(t, "addr add 10.99.0.2/24 dev lo")
	k.eventually(t, "IPv4 comes first again", func() bool { return !strings.Contains(listing(t), "ip6 daddr") })
}
