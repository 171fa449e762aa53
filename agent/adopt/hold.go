package adopt

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// While one Envoy ends and the other is not there yet, a connection would be refused. A hold has the kernel drop the packets that open connections instead: whoever
// sends them does so again after a second, and meets the next Envoy. It is a table of nf_tables of its own, whose rules go by sets with a time limit: they let go by
// themselves, whatever becomes of this process.
//
// Where the kernel has no nf_tables nothing is held: connections are refused for that moment.

// probeMark is on packets of adopt's own questions, which no hold is for.
const probeMark = 0x57414454

// A Hold is what is held.
type Hold struct {
	TCP []uint16 // connections to these ports, after any redirection
	// Everything holds each new TCP connection that crosses the machine's border: for the time without rules. Not of User, who is exempt from the rules, nor
	// by one of the ports in Except, at either end.
	Everything bool
	// Queries to Resolvers go to port DNS of this machine meanwhile, but those of User; zero: they are left alone.
	DNS       uint16
	Resolvers []netip.Addr
	User      uint32
	Except    []uint16
	Limit     time.Duration // at least a second
}

// dnsZone is the zone of conntrack that captured queries are in (Istio tools/istio-iptables/pkg/capture/run.go).
const dnsZone = 2

var holdTable = &nftables.Table{Name: "wingman-adopt", Family: nftables.TableFamilyINet}

// begin puts the hold in the place of one before.
func (h Hold) begin() error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("hold connections: %w", err)
	}
	c.AddTable(holdTable) // so that deleting it is no error
	c.DelTable(holdTable)
	t := c.AddTable(holdTable)
	var problems []error
	set := func(name string, ports []uint16, limit time.Duration) *nftables.Set {
		s := &nftables.Set{Table: t, Name: name, KeyType: nftables.TypeInetService, HasTimeout: limit > 0}
		var elements []nftables.SetElement
		for _, p := range ports {
			elements = append(elements, nftables.SetElement{Key: binaryutil.BigEndian.PutUint16(p), Timeout: limit})
		}
		problems = append(problems, c.AddSet(s, elements))
		return s
	}
	tcp := set("tcp", h.TCP, h.Limit)
	// "Everything" is a set of protocols with a time limit.
	var protocols []nftables.SetElement
	if h.Everything || h.DNS != 0 {
		for _, p := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
			protocols = append(protocols, nftables.SetElement{Key: []byte{p}, Timeout: h.Limit})
		}
	}
	every := &nftables.Set{Table: t, Name: "everything", KeyType: nftables.TypeInetProto, HasTimeout: true}
	problems = append(problems, c.AddSet(every, protocols))
	except := set("except", h.Except, 0)

	chain := func(name string, hook *nftables.ChainHook) *nftables.Chain {
		return c.AddChain(&nftables.Chain{Name: name, Table: t, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityRef(*nftables.ChainPriorityFilter - 10)})
	}
	in, out := chain("input", nftables.ChainHookInput), chain("output", nftables.ChainHookOutput)
	add := func(to *nftables.Chain, parts ...[]expr.Any) {
		var all []expr.Any
		for _, p := range parts {
			all = append(all, p...)
		}
		c.AddRule(&nftables.Rule{Table: t, Chain: to, Exprs: all})
	}
	drop, accept := []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}, []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}
	add(in, equals(expr.MetaKeyMARK, binaryutil.NativeEndian.PutUint32(probeMark)), accept)
	add(in, protocol(unix.IPPROTO_TCP), port(dport, tcp), opening(), drop)
	for _, side := range []struct {
		chain *nftables.Chain
		iface expr.MetaKey
	}{{in, expr.MetaKeyIIFNAME}, {out, expr.MetaKeyOIFNAME}} {
		border := side.iface
		if side.chain == out {
			add(out, equals(expr.MetaKeySKUID, binaryutil.NativeEndian.PutUint32(h.User)), accept)
		}
		if !h.Everything {
			break
		}
		for _, at := range []uint32{sport, dport} {
			add(side.chain, protocol(unix.IPPROTO_TCP), port(at, except), accept)
		}
		add(side.chain, differs(border, ifname("lo")), protocol(unix.IPPROTO_TCP), ofProtocol(every), opening(), drop)
	}
	if h.DNS != 0 {
		nat := c.AddChain(&nftables.Chain{Name: "dns", Table: t, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityRef(*nftables.ChainPriorityNATDest - 10)})
		add(nat, equals(expr.MetaKeySKUID, binaryutil.NativeEndian.PutUint32(h.User)), accept)
		// As Istio's rules and ours do: both ways in one zone, whatever of those rules is in.
		raw := c.AddChain(&nftables.Chain{Name: "zone", Table: t, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityRef(*nftables.ChainPriorityRaw + 10)})
		zone := []expr.Any{
			&expr.Immediate{Register: 1, Data: binaryutil.NativeEndian.PutUint16(dnsZone)}, &expr.Ct{Key: expr.CtKeyZONE, SourceRegister: true, Register: 1},
		}
		add(raw, protocol(unix.IPPROTO_UDP), ofProtocol(every), equalsPort(sport, h.DNS), zone)
		add(raw, equals(expr.MetaKeySKUID, binaryutil.NativeEndian.PutUint32(h.User)), accept)
		for _, r := range h.Resolvers {
			add(raw, protocol(unix.IPPROTO_UDP), ofProtocol(every), to(r), equalsPort(dport, 53), zone)
			add(nat, protocol(unix.IPPROTO_UDP), ofProtocol(every), to(r), equalsPort(dport, 53), []expr.Any{
				&expr.Immediate{Register: 1, Data: binaryutil.BigEndian.PutUint16(h.DNS)}, &expr.Redir{RegisterProtoMin: 1, RegisterProtoMax: 1},
			})
		}
	}
	if err := errors.Join(append(problems, c.Flush())...); err != nil {
		return fmt.Errorf("hold connections: %w", err)
	}
	return nil
}

// letGo ends any hold.
func letGo() error {
	c, err := nftables.New()
	if err != nil {
		return nil // nothing was held
	}
	c.AddTable(holdTable)
	c.DelTable(holdTable)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("let connections go (nft delete table inet %s): %w", holdTable.Name, err)
	}
	return nil
}

// Offsets of the ports in a TCP or UDP header.
const (
	sport uint32 = 0
	dport uint32 = 2
)

func protocol(p byte) []expr.Any { return equals(expr.MetaKeyL4PROTO, []byte{p}) }

func equals(key expr.MetaKey, value []byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: value}}
}

func differs(key expr.MetaKey, value []byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: value}}
}

func ofProtocol(s *nftables.Set) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Lookup{SourceRegister: 1, SetName: s.Name, SetID: s.ID}}
}

func port(offset uint32, s *nftables.Set) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2},
		&expr.Lookup{SourceRegister: 1, SetName: s.Name, SetID: s.ID},
	}
}

func equalsPort(offset uint32, p uint16) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(p)},
	}
}

// to matches packets to an address.
func to(a netip.Addr) []expr.Any {
	family, offset := byte(unix.NFPROTO_IPV4), uint32(16)
	if a.Is6() {
		family, offset = unix.NFPROTO_IPV6, 24
	}
	return append(equals(expr.MetaKeyNFPROTO, []byte{family}),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(a.BitLen() / 8)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: a.AsSlice()})
}

// opening matches a TCP packet with SYN and without ACK.
func opening() []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{0x12}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0x02}},
	}
}

func ifname(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}
