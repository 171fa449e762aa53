package stock

import (
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	caresv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/network/dns_resolver/cares/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

func TestPatienceWithSilentResolvers(t *testing.T) {
	bounded := &caresv3.CaresDnsResolverConfig{
		UdpMaxQueries: wrapperspb.UInt32(100), QueryTimeoutSeconds: wrapperspb.UInt64(1), QueryTries: wrapperspb.UInt32(3),
	}
	soon := &clusterv3.Cluster_RefreshRate{BaseInterval: durationpb.New(time.Second), MaxInterval: durationpb.New(10 * time.Second)}
	rare := &clusterv3.Cluster_RefreshRate{BaseInterval: durationpb.New(time.Minute)}
	for _, c := range []struct {
		name     string
		resolver *caresv3.CaresDnsResolverConfig // nil: none
		retry    *clusterv3.Cluster_RefreshRate
		want     *caresv3.CaresDnsResolverConfig
		wantNext *clusterv3.Cluster_RefreshRate
	}{
		{"istiod's names are given up after a while, and asked for again soon", &caresv3.CaresDnsResolverConfig{UdpMaxQueries: wrapperspb.UInt32(100)}, nil, bounded, soon},
		{"a time-out that somebody set stays", &caresv3.CaresDnsResolverConfig{QueryTimeoutSeconds: wrapperspb.UInt64(9)}, nil,
			&caresv3.CaresDnsResolverConfig{QueryTimeoutSeconds: wrapperspb.UInt64(9)}, nil},
		{"a number of attempts that somebody set stays", &caresv3.CaresDnsResolverConfig{QueryTries: wrapperspb.UInt32(2)}, nil,
			&caresv3.CaresDnsResolverConfig{QueryTries: wrapperspb.UInt32(2)}, nil},
		{"a retry that somebody set stays", &caresv3.CaresDnsResolverConfig{UdpMaxQueries: wrapperspb.UInt32(100)}, rare, bounded, rare},
		{"a cluster without names is left alone", nil, nil, nil, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			wrap := func(resolver *caresv3.CaresDnsResolverConfig, next *clusterv3.Cluster_RefreshRate) *clusterv3.Cluster {
				//lint:ignore SA1019 istiod sends the old field
				cl := &clusterv3.Cluster{Name: "outside", DnsFailureRefreshRate: next}
				if resolver != nil {
					cl.TypedDnsResolverConfig = &corev3.TypedExtensionConfig{Name: "envoy.network.dns_resolver.cares", TypedConfig: packed(t, resolver)}
				}
				return cl
			}
			// A cluster after it must not inherit what is known of it.
			after := &clusterv3.Cluster{Name: "after"}
			in := encode(t, &discoveryv3.DeltaDiscoveryResponse{Resources: []*discoveryv3.Resource{
				{Name: "outside", Resource: packed(t, wrap(c.resolver, c.retry))}, {Name: "after", Resource: packed(t, after)},
			}})
			out, report, err := New(stockEnvoy(t)).Response(urlOf(fixtureCDS), true, in)
			if err != nil {
				t.Fatal(err)
			}
			for i, want := range []*clusterv3.Cluster{wrap(c.want, c.wantNext), after} {
				got := new(clusterv3.Cluster)
				if err := decode(t, out).Resources[i].Resource.UnmarshalTo(got); err != nil {
					t.Fatal(err)
				}
				gotResolver, wantResolver := resolverOf(t, got), resolverOf(t, want)
				got.TypedDnsResolverConfig, want.TypedDnsResolverConfig = nil, nil
				if !proto.Equal(gotResolver, wantResolver) || !proto.Equal(got, want) {
					t.Errorf("got %v with %v, want %v with %v", got, gotResolver, want, wantResolver)
				}
			}
			if wantBounded := c.want != nil && proto.Equal(c.want, bounded); (report.Bounded == 1) != wantBounded {
				t.Errorf("report.Bounded is %d", report.Bounded)
			}
		})
	}
}

func resolverOf(t testing.TB, c *clusterv3.Cluster) *caresv3.CaresDnsResolverConfig {
	t.Helper()
	config := new(caresv3.CaresDnsResolverConfig)
	if c.TypedDnsResolverConfig == nil {
		return config
	}
	if err := c.TypedDnsResolverConfig.TypedConfig.UnmarshalTo(config); err != nil {
		t.Fatal(err)
	}
	return config
}
