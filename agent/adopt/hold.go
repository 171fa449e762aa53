package adopt

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
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
	b := &holdBuilder{conn: c, table: c.AddTable(holdTable), user: h.User}
	every := b.everything(h)
	h.addDrops(b, every)
	if h.DNS != 0 {
		h.addNames(b, every)
	}
	if err := errors.Join(append(b.problems, c.Flush())...); err != nil {
		return fmt.Errorf("hold connections: %w", err)
	}
	return nil
}

// addDrops adds the rules that drop what opens connections.
func (h Hold) addDrops(b *holdBuilder, every *nftables.Set) {
	tcp, except := b.ports("tcp", h.TCP, h.Limit), b.ports("except", h.Except, 0)
	in, out := b.filter("input", nftables.ChainHookInput, holdFirst), b.filter("output", nftables.ChainHookOutput, holdFirst)
	b.rule(in, equals(expr.MetaKeyMARK, binaryutil.NativeEndian.PutUint32(probeMark)), accept())
	b.rule(in, protocol(unix.IPPROTO_TCP), port(dport, tcp), opening(), drop())
	if !h.Everything {
		return
	}
	b.rule(out, b.ofUser(), accept())
	for _, side := range []struct {
		chain  *nftables.Chain
		border expr.MetaKey
	}{{in, expr.MetaKeyIIFNAME}, {out, expr.MetaKeyOIFNAME}} {
		for _, at := range []uint32{sport, dport} {
			b.rule(side.chain, protocol(unix.IPPROTO_TCP), port(at, except), accept())
		}
		b.rule(side.chain, differs(side.border, ifname("lo")), protocol(unix.IPPROTO_TCP), ofProtocol(every), opening(), drop())
	}
}

// addNames adds the rules that have queries answered at port h.DNS. As Istio's rules and ours do it puts both ways into one zone, whatever of those rules is in.
func (h Hold) addNames(b *holdBuilder, every *nftables.Set) {
	nat := b.chain(&nftables.Chain{Name: "dns", Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityRef(*nftables.ChainPriorityNATDest - 10)})
	raw := b.filter("zone", nftables.ChainHookOutput, *nftables.ChainPriorityRaw+10)
	zone := []expr.Any{
		&expr.Immediate{Register: 1, Data: binaryutil.NativeEndian.PutUint16(dnsZone)}, &expr.Ct{Key: expr.CtKeyZONE, SourceRegister: true, Register: 1},
	}
	b.rule(nat, b.ofUser(), accept())
	b.rule(raw, protocol(unix.IPPROTO_UDP), ofProtocol(every), equalsPort(sport, h.DNS), zone)
	b.rule(raw, b.ofUser(), accept())
	for _, r := range h.Resolvers {
		b.rule(raw, protocol(unix.IPPROTO_UDP), ofProtocol(every), to(r), equalsPort(dport, 53), zone)
		b.rule(nat, protocol(unix.IPPROTO_UDP), ofProtocol(every), to(r), equalsPort(dport, 53), []expr.Any{
			&expr.Immediate{Register: 1, Data: binaryutil.BigEndian.PutUint16(h.DNS)}, &expr.Redir{RegisterProtoMin: 1, RegisterProtoMax: 1},
		})
	}
}

// holdFirst is before the chains of firewalls, and after those that redirect.
const holdFirst = nftables.ChainPriority(-10) // filter less 10

// A holdBuilder puts a hold's table together; conn sends it.
type holdBuilder struct {
	conn     *nftables.Conn
	table    *nftables.Table
	user     uint32
	problems []error
}

// ports makes a set of ports, whose elements end after limit; zero: never.
func (b *holdBuilder) ports(name string, ports []uint16, limit time.Duration) *nftables.Set {
	s := &nftables.Set{Table: b.table, Name: name, KeyType: nftables.TypeInetService, HasTimeout: limit > 0}
	var elements []nftables.SetElement
	for _, p := range ports {
		elements = append(elements, nftables.SetElement{Key: binaryutil.BigEndian.PutUint16(p), Timeout: limit})
	}
	b.problems = append(b.problems, b.conn.AddSet(s, elements))
	return s
}

// everything makes a set of the protocols that are held, or redirected, whatever the port: so these rules have a time limit too.
func (b *holdBuilder) everything(h Hold) *nftables.Set {
	s := &nftables.Set{Table: b.table, Name: "everything", KeyType: nftables.TypeInetProto, HasTimeout: true}
	var protocols []nftables.SetElement
	if h.Everything || h.DNS != 0 {
		for _, p := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
			protocols = append(protocols, nftables.SetElement{Key: []byte{p}, Timeout: h.Limit})
		}
	}
	b.problems = append(b.problems, b.conn.AddSet(s, protocols))
	return s
}

func (b *holdBuilder) filter(name string, hook *nftables.ChainHook, priority nftables.ChainPriority) *nftables.Chain {
	return b.chain(&nftables.Chain{Name: name, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: &priority})
}

func (b *holdBuilder) chain(c *nftables.Chain) *nftables.Chain {
	c.Table = b.table
	return b.conn.AddChain(c)
}

func (b *holdBuilder) rule(chain *nftables.Chain, parts ...[]expr.Any) {
	b.conn.AddRule(&nftables.Rule{Table: b.table, Chain: chain, Exprs: slices.Concat(parts...)})
}

// ofUser matches what the user sends who is exempt.
func (b *holdBuilder) ofUser() []expr.Any {
	return equals(expr.MetaKeySKUID, binaryutil.NativeEndian.PutUint32(b.user))
}

func drop() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}} }

func accept() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}} }

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
