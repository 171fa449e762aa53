package iptables

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Level says how much of the machine's traffic is captured.
type Level uint8

// The levels, from least to most; the zero value captures nothing.
const (
	LevelNone Level = iota // no rules at all
	LevelDNS               // port 53 only: a machine without Envoy
	LevelAll               // DNS, outbound and inbound as configured
)

var levelNames = []string{"none", "dns", "all"}

// String is the level's name in wingman.yaml.
func (l Level) String() string { return nameOf(levelNames, uint8(l)) }

// MarshalText makes the level readable in JSON.
func (l Level) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText is the way back.
func (l *Level) UnmarshalText(b []byte) error {
	i, err := indexOf(levelNames, string(b))
	*l = Level(i)
	return err
}

// Mode is how inbound TCP reaches Envoy. Istio: ISTIO_INBOUND_INTERCEPTION_MODE.
type Mode uint8

// The modes. ModeNone means that Envoy takes no transparent traffic in either direction; DNS is captured all the same.
const (
	ModeRedirect Mode = iota // REDIRECT: the source address is lost
	ModeTProxy               // TPROXY: the source address is kept; needs a policy route
	ModeNone
)

var modeNames = []string{"REDIRECT", "TPROXY", "NONE"}

// String is the mode's Istio name.
func (m Mode) String() string { return nameOf(modeNames, uint8(m)) }

// MarshalText makes the mode readable in JSON.
func (m Mode) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText is the way back.
func (m *Mode) UnmarshalText(b []byte) error {
	i, err := indexOf(modeNames, string(b))
	*m = Mode(i)
	return err
}

// indexOf is the inverse of nameOf.
func indexOf(names []string, name string) (uint8, error) {
	i := slices.Index(names, name)
	if i < 0 {
		return 0, fmt.Errorf("%q: expected one of %s", name, strings.Join(names, ", "))
	}
	return uint8(i), nil
}

func nameOf(names []string, i uint8) string {
	if int(i) < len(names) {
		return names[i]
	}
	return strconv.Itoa(int(i))
}

// PortRange is an inclusive range of ports; a single port has First == Last.
type PortRange struct{ First, Last uint16 }

// String is "N" or "First:Last", as iptables writes it.
func (p PortRange) String() string {
	if p.First == p.Last {
		return strconv.Itoa(int(p.First))
	}
	return fmt.Sprintf("%d:%d", p.First, p.Last)
}

func (p PortRange) contains(port uint16) bool { return p.First <= port && port <= p.Last }

// Config is what the operator wants captured. Lists keep their order: it is the order of the rules.
//
// The zero value captures nothing. Every field names the Istio setting it stands for.
type Config struct {
	Level Level
	Mode  Mode // ISTIO_INBOUND_INTERCEPTION_MODE

	TProxyMark  uint32 // packet mark of TPROXY; zero means 1337. ISTIO_INBOUND_TPROXY_MARK
	TProxyTable int    // route table of TPROXY; zero means 133. ISTIO_INBOUND_TPROXY_ROUTE_TABLE

	InboundAll          bool     // ISTIO_INBOUND_PORTS=*
	InboundPorts        []uint16 // ISTIO_INBOUND_PORTS, a list
	InboundExcludePorts []uint16 // ISTIO_LOCAL_EXCLUDE_PORTS; counts only with InboundAll, as in Istio

	OutboundAll          bool           // ISTIO_SERVICE_CIDR=*
	OutboundCIDRs        []netip.Prefix // ISTIO_SERVICE_CIDR, a list
	OutboundExcludeCIDRs []netip.Prefix // ISTIO_SERVICE_EXCLUDE_CIDR
	OutboundPorts        []uint16       // ISTIO_OUTBOUND_PORTS: captured to any address
	OutboundExcludePorts []PortRange    // ISTIO_LOCAL_OUTBOUND_PORTS_EXCLUDE

	OwnerGroupsAll     bool     // ISTIO_OUTBOUND_OWNER_GROUPS=* (Istio's default)
	OwnerGroups        []string // ISTIO_OUTBOUND_OWNER_GROUPS: gids or names; none and not All captures nobody's traffic
	OwnerGroupsExclude []string // ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE; counts only with OwnerGroupsAll

	ExcludeInterfaces []string // ISTIO_EXCLUDE_INTERFACES
	VirtualInterfaces []string // KUBE_VIRT_INTERFACES: bridges of containers and VMs; what comes from them is outbound

	DNS         bool // ISTIO_META_DNS_CAPTURE
	DNSAll      bool // CAPTURE_ALL_DNS: port 53 of any server, not only resolv.conf's
	DropInvalid bool // INVALID_DROP
	DualStack   bool // ISTIO_DUAL_STACK: IPv6 too. Without it IPv6 is captured only on a machine that has no IPv4

	LoopbackCIDR netip.Prefix // IPv4 loopback that is never captured; zero means 127.0.0.1/32. ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR

	ProxyUID, ProxyGID uint32 // owner of agent and Envoy, never captured; zero (root) is refused
	// MoreUIDs and MoreGIDs are further owners whose traffic is left alone as Envoy's is: PROXY_UID and PROXY_GID are lists in Istio.
	MoreUIDs, MoreGIDs []uint32

	ProxyPort   uint16 // Envoy's outbound port; zero means 15001
	InboundPort uint16 // Envoy's inbound port; zero means 15006
	TunnelPort  uint16 // HBONE, never captured; zero means 15008
	DNSPort     uint16 // the agent's DNS proxy; zero means 15053

	// CaptureMetadata gives up the guard that keeps the cloud's metadata addresses out of capture.
	CaptureMetadata bool
	// OpenInbound and OpenOutbound let traffic of that direction past a proxy that is down; DNS stays captured.
	// They are what policy "open" turns on while Envoy does not answer. Policy "closed" leaves them off: connections are refused.
	OpenInbound, OpenOutbound bool

	Backend string // "auto" (also ""), "nft", "legacy" or "native"
}

// Ports, marks and tables that Istio uses when nothing else is configured (tools/istio-iptables/pkg/constants).
const (
	defaultProxyPort   = 15001
	defaultInboundPort = 15006
	defaultTunnelPort  = 15008
	defaultDNSPort     = 15053
	defaultTProxyMark  = 1337
	defaultTProxyTable = 133
	outboundMark       = 1338 // Envoy's own connections to the machine's address, TPROXY only
)

// maxOwnerGroups bounds OwnerGroups: they become one rule, and kernels limit its length. Istio has the same bound.
const maxOwnerGroups = 64

// withDefaults fills every zero that stands for a default.
func (c Config) withDefaults() Config {
	setPort := func(p *uint16, def uint16) {
		if *p == 0 {
			*p = def
		}
	}
	setPort(&c.ProxyPort, defaultProxyPort)
	setPort(&c.InboundPort, defaultInboundPort)
	setPort(&c.TunnelPort, defaultTunnelPort)
	setPort(&c.DNSPort, defaultDNSPort)
	if c.TProxyMark == 0 {
		c.TProxyMark = defaultTProxyMark
	}
	if c.TProxyTable == 0 {
		c.TProxyTable = defaultTProxyTable
	}
	if !c.LoopbackCIDR.IsValid() {
		c.LoopbackCIDR = netip.MustParsePrefix("127.0.0.1/32")
	}
	if c.Backend == "" {
		c.Backend = BackendAuto
	}
	return c
}

// owners are those whose traffic is left alone, in the order of Istio's rules: uids first.
func (c *Config) owners() (owners [][]Owner) {
	for _, id := range append([]uint32{c.ProxyUID}, c.MoreUIDs...) {
		owners = append(owners, uid(id))
	}
	for _, id := range append([]uint32{c.ProxyGID}, c.MoreGIDs...) {
		owners = append(owners, gid(id))
	}
	return owners
}

// capturesInbound reports whether any inbound port goes to Envoy.
func (c *Config) capturesInbound() bool { return c.InboundAll || len(c.InboundPorts) > 0 }

// capturesOutbound reports whether any outbound connection goes to Envoy.
func (c *Config) capturesOutbound() bool {
	return c.OutboundAll || len(c.OutboundCIDRs) > 0 || len(c.OutboundPorts) > 0
}

// capturesTCP reports whether Envoy takes any traffic: the full set of Istio's chains is then in place.
func (c *Config) capturesTCP() bool { return c.Level == LevelAll && c.Mode != ModeNone }

// OnlyInbound returns the configuration that captures DNS as c does and, of all other traffic, only the inbound connections to
// some ports: a step of adoption between LevelDNS and LevelAll.
func (c Config) OnlyInbound(ports []uint16) Config {
	c.Level = LevelAll
	c.InboundAll, c.InboundPorts, c.InboundExcludePorts = false, ports, nil
	c.OutboundAll, c.OutboundCIDRs, c.OutboundPorts = false, nil, nil
	return c
}

// validate returns every problem of c, which must have its defaults.
func (c *Config) validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Level > LevelAll {
		bad("level %d: expected none, dns or all", c.Level)
	}
	if c.Mode > ModeNone {
		bad("mode %d: expected REDIRECT, TPROXY or NONE", c.Mode)
	}
	switch c.Backend {
	case BackendAuto, BackendNFT, BackendLegacy, BackendNative:
	default:
		bad("backend %q: expected auto, nft, legacy or native", c.Backend)
	}
	if c.Level != LevelNone && (c.ProxyUID == 0 || c.ProxyGID == 0) {
		bad("proxy uid %d, gid %d: the proxy must not run as root, or no traffic of root would be told from its own", c.ProxyUID, c.ProxyGID)
	}
	if c.Level != LevelNone && (slices.Contains(c.MoreUIDs, 0) || slices.Contains(c.MoreGIDs, 0)) {
		bad("further proxy uids %v, gids %v: root's traffic cannot be left alone as Envoy's is", c.MoreUIDs, c.MoreGIDs)
	}
	if p := c.LoopbackCIDR; !p.Addr().Is4() || !p.Addr().IsLoopback() || p.Bits() < 8 {
		bad("loopback CIDR %s: expected a range inside 127.0.0.0/8", p)
	}
	if c.TProxyMark == outboundMark {
		bad("TPROXY mark %d: Istio marks Envoy's own connections with it; choose another", c.TProxyMark)
	}
	if c.TProxyTable < 1 || int64(c.TProxyTable) > 1<<32-1 || (c.TProxyTable >= 253 && c.TProxyTable <= 255) {
		bad("TPROXY route table %d: expected 1 to 4294967295 without 253, 254 and 255, which the kernel uses", c.TProxyTable)
	}
	for _, r := range c.OutboundExcludePorts {
		if r.First > r.Last {
			bad("outbound exclude ports %d:%d: the first port is above the last", r.First, r.Last)
		}
	}
	for _, list := range []struct {
		name  string
		ports []uint16
	}{{"inbound ports", c.InboundPorts}, {"inbound exclude ports", c.InboundExcludePorts}, {"outbound ports", c.OutboundPorts}} {
		if slices.Contains(list.ports, 0) {
			bad("%s: port 0 does not exist; expected 1 to 65535", list.name)
		}
	}
	for _, list := range []struct {
		name  string
		cidrs []netip.Prefix
	}{{"outbound CIDRs", c.OutboundCIDRs}, {"outbound exclude CIDRs", c.OutboundExcludeCIDRs}} {
		for _, p := range list.cidrs {
			if !p.IsValid() {
				bad("%s: not a CIDR; expected one such as 10.0.0.0/8", list.name)
			}
		}
	}
	if n := len(c.OwnerGroups); n > maxOwnerGroups {
		bad("owner groups: %d of them; expected at most %d, because they become one rule", n, maxOwnerGroups)
	}
	for _, list := range []struct {
		name string
		ifs  []string
	}{{"exclude interfaces", c.ExcludeInterfaces}, {"virtual interfaces", c.VirtualInterfaces}} {
		for _, i := range list.ifs {
			if err := checkInterface(i); err != nil {
				bad("%s: %w", list.name, err)
			}
		}
	}
	return errors.Join(errs...)
}

// checkInterface accepts what the kernel takes for a name (IFNAMSIZ), with the final + of iptables that stands for any ending.
func checkInterface(name string) error {
	switch {
	case name == "":
		return errors.New("empty interface name")
	case len(name) > 15:
		return fmt.Errorf("interface %q: names have at most 15 characters", name)
	case strings.ContainsAny(name, " \t\r\n/\"'\\!;{}#"):
		return fmt.Errorf("interface %q: a character that no interface name can have", name)
	case strings.Contains(name[:len(name)-1], "+") || name == "+":
		return fmt.Errorf("interface %q: + stands for any ending and must be last, after at least one character", name)
	}
	return nil
}
