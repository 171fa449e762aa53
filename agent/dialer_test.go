package agent

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func TestDialerResolves(t *testing.T) {
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	hosts := map[string][]netip.Addr{"istiod.istio-system.svc": {b}}
	none := func(context.Context, string) ([]netip.Addr, error) { return nil, errors.New("no such host") }
	system := func(context.Context, string) ([]netip.Addr, error) { return []netip.Addr{a}, nil }
	silent := func(ctx context.Context, _ string) ([]netip.Addr, error) { <-ctx.Done(); return nil, ctx.Err() }
	for _, tc := range []struct {
		name   string
		host   string
		lookup func(context.Context, string) ([]netip.Addr, error)
		hosts  map[string][]netip.Addr
		want   []netip.Addr
		within time.Duration
	}{
		{"an address is itself", "10.0.0.1", none, nil, []netip.Addr{a}, 0},
		{"the hosts file stands in where the system has no answer", "istiod.istio-system.svc", none, hosts, []netip.Addr{b}, 0},
		{"names are compared without case and final dot", "IstioD.istio-system.svc.", none, hosts, []netip.Addr{b}, 0},
		{"the system comes first, the file second", "istiod.istio-system.svc", system, hosts, []netip.Addr{a, b}, 0},
		{"a silent resolver is not waited for when the file knows", "istiod.istio-system.svc", silent, hosts, []netip.Addr{b}, lookupPatience},
	} {
		synctest.Test(t, func(t *testing.T) {
			d := &dialer{hosts: tc.hosts, lookup: tc.lookup}
			began := time.Now()
			got, err := d.resolve(t.Context(), tc.host)
			if err != nil || !slices.Equal(got, tc.want) || time.Since(began) > tc.within {
				t.Errorf("%s: resolve(%q) = %v, %v after %v; want %v within %v", tc.name, tc.host, got, err, time.Since(began), tc.want, tc.within)
			}
		})
	}
	d := &dialer{lookup: none}
	if _, err := d.resolve(t.Context(), "istiod.istio-system.svc"); err == nil || !strings.Contains(err.Error(), "hosts file") {
		t.Errorf("resolve of an unknown name = %v, want an error that names both ways", err)
	}
}

func TestDialerTriesEveryAddress(t *testing.T) {
	dead, alive := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	var tried []string
	d := &dialer{
		lookup: func(context.Context, string) ([]netip.Addr, error) { return []netip.Addr{dead, alive}, nil },
		dial: func(_ context.Context, address string) (net.Conn, error) {
			tried = append(tried, address)
			if strings.HasPrefix(address, dead.String()) {
				return nil, syscall.ECONNREFUSED
			}
			c, _ := net.Pipe()
			return c, nil
		},
	}
	conn, err := d.Dial(t.Context(), "istiod.istio-system.svc:15012")
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if want := []string{"10.0.0.1:15012", "10.0.0.2:15012"}; !slices.Equal(tried, want) {
		t.Errorf("tried %v, want %v", tried, want)
	}
	d.lookup = func(context.Context, string) ([]netip.Addr, error) { return []netip.Addr{dead}, nil }
	if _, err := d.Dial(t.Context(), "istiod.istio-system.svc:15012"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("Dial = %v, want the refusal as its cause", err)
	}
}
