package xds_test

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	meshapi "istio.io/api/mesh/v1alpha1"

	"wingman/agent/xds"
	"wingman/test/controlplane"
)

// proxyConfig is a push of what istiod would send.
func proxyConfig(t testing.TB, pc *meshapi.ProxyConfig) xds.Push {
	t.Helper()
	packed, err := anypb.New(pc)
	if err != nil {
		t.Fatal(err)
	}
	return xds.Push{TypeURL: xds.TypeProxyConfig, Resources: []*anypb.Any{packed}}
}

func TestTrustBundle(t *testing.T) {
	full := &meshapi.ProxyConfig{DiscoveryAddress: "istiod:15012", CaCertificatesPem: []string{"first", "second"}, StatusPort: 15020}
	two := proxyConfig(t, full)
	two.Resources = append(two.Resources, two.Resources[0])
	cut := proxyConfig(t, full)
	cut.Resources[0].Value = cut.Resources[0].Value[:len(cut.Resources[0].Value)-3]
	other := proxyConfig(t, full)
	other.Resources[0].TypeUrl = xds.TypeNameTable
	tests := []struct {
		name string
		push xds.Push
		want string
		err  string
	}{
		{"two anchors among other settings", proxyConfig(t, full), "first second", ""},
		{"no anchor", proxyConfig(t, &meshapi.ProxyConfig{StatusPort: 1}), "", ""},
		{"nothing at all", xds.Push{}, "", ""},
		{"two configurations", two, "", "push has 2 proxy configurations, expected 1"},
		{"cut short", cut, "", "proxy configuration: "},
		{"another type", other, "", "expected \"type.googleapis.com/istio.mesh.v1alpha1.ProxyConfig\""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := xds.TrustBundle(tt.push)
			if strings.Join(got, " ") != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("got %q, %v; want %q, %q", got, err, tt.want, tt.err)
			}
		})
	}
}

// FuzzTrustBundle holds the reader by hand against the generated one: what that takes, this one reads alike.
func FuzzTrustBundle(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(proxyConfig(f, &meshapi.ProxyConfig{CaCertificatesPem: []string{"a", ""}, ConfigPath: "/etc"}).Resources[0].Value)
	f.Add([]byte{0x92, 0x02, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, raw []byte) {
		got, err := xds.TrustBundle(xds.Push{Resources: []*anypb.Any{{TypeUrl: xds.TypeProxyConfig, Value: raw}}})
		var want meshapi.ProxyConfig
		if proto.Unmarshal(raw, &want) == nil && (err != nil || !slices.Equal(got, want.CaCertificatesPem)) {
			t.Errorf("got %q, %v; want %q", got, err, want.CaCertificatesPem)
		}
	})
}

func TestPCDSIsAskedForAndNeverWaitedFor(t *testing.T) {
	for _, multi := range []bool{true, false} {
		for _, delta := range []bool{true, false} {
			t.Run(map[bool]string{true: "istiod has several roots", false: "istiod knows nothing of it"}[multi]+map[bool]string{true: ", delta", false: ", state of the world"}[delta], func(t *testing.T) {
				istiod := newIstiod(t, controlplane.Config{MultiRoot: multi})
				bundles := make(chan []string, 10)
				v := newVM(t, istiod, delta, func(cfg *xds.Config) {
					cfg.Subscriptions = append(cfg.Subscriptions, xds.Subscription{TypeURL: xds.TypeProxyConfig, Handle: func(p xds.Push) error {
						pems, err := xds.TrustBundle(p)
						bundles <- pems
						return err
					}})
				})
				v.run()
				if !multi {
					v.wait(1, "a name table taken in", func(e controlplane.Event) bool { return e.Kind == controlplane.Acked && e.TypeURL == xds.TypeNameTable })
					return
				}
				if got := <-bundles; len(got) != 1 || got[0] != string(istiod.RootPEM()) {
					t.Errorf("got %q, want the root", got)
				}
				if err := istiod.Faults().RotateRoot(true); err != nil {
					t.Fatal(err)
				}
				if got := <-bundles; len(got) != 2 {
					t.Errorf("got %d anchors after the rotation, want 2", len(got))
				}
			})
		}
	}
}
