package dnsproxy

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
)

func sameName(a, b *Name) bool {
	return a.Registry == b.Registry && a.ShortName == b.ShortName && a.Namespace == b.Namespace &&
		slices.EqualFunc(a.Addrs, b.Addrs, func(x, y netip.Addr) bool { return x == y.Unmap() }) && slices.Equal(a.AltHosts, b.AltHosts) && slices.Equal(a.BadAddrs, b.BadAddrs)
}

// compareClaims puts first who gets a name that several want: a host before an alias, Kubernetes before other registries,
// then by host name, so that every agent decides alike. Istio pkg/dns/client/name_index.go, preferredTo.
func compareClaims(a, b claim) int {
	return cmp.Or(
		compareBool(a.alias, b.alias),
		compareBool(a.service.Registry != kubernetesRegistry, b.service.Registry != kubernetesRegistry),
		strings.Compare(a.service.Host, b.service.Host),
	)
}

// comparePTR puts first the service that an address is best called by: one with few addresses (the pod before its
// headless service), Kubernetes before others, then by host name.
func comparePTR(a, b *service) int {
	return cmp.Or(
		cmp.Compare(len(a.Addrs), len(b.Addrs)),
		compareBool(a.Registry != kubernetesRegistry, b.Registry != kubernetesRegistry),
		strings.Compare(a.Host, b.Host),
	)
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}
