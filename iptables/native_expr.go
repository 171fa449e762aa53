package iptables

import (
	"net/netip"
	"strings"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// exprs is the rule as the kernel's nf_tables runs it, in the order in which nft itself would write it. Only register 1 is
// used: each match is done with it before the next one loads it.
func (r *nativeRule) exprs() []expr.Any {
	e := exprList{}
	if r.family != nil && !r.namesAddress() {
		e.family(*r.family)
	}
	if r.In != "" {
		e.name(expr.MetaKeyIIFNAME, r.In)
	}
	if r.Out != "" {
		e.name(expr.MetaKeyOIFNAME, r.Out)
	}
	e.address(r.Src, 12, 8)
	e.address(r.Dst, 16, 24)
	if r.Proto != "" {
		proto := byte(unix.IPPROTO_TCP)
		if r.Proto == "udp" {
			proto = unix.IPPROTO_UDP
		}
		e.meta(expr.MetaKeyL4PROTO, expr.CmpOpEq, []byte{proto})
	}
	e.ports(r.Sport, 0)
	e.ports(r.Dport, 2)
	if r.Syn {
		e.add(&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1}) // FIN 1, SYN 2, RST 4, ACK 16
		e.add(&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{1 | 2 | 4 | 16}, Xor: []byte{0}}, cmp1(expr.CmpOpEq, []byte{2}))
	}
	for _, o := range r.Owners {
		key := expr.MetaKeySKUID
		if o.Group {
			key = expr.MetaKeySKGID
		}
		e.meta(key, equal(o.Not), binaryutil.NativeEndian.PutUint32(o.ID))
	}
	if r.Mark != nil {
		e.meta(expr.MetaKeyMARK, equal(r.Mark.Not), binaryutil.NativeEndian.PutUint32(r.Mark.Value))
	}
	if r.ConnMark != nil {
		e.add(&expr.Ct{Key: expr.CtKeyMARK, Register: 1}, cmp1(expr.CmpOpEq, binaryutil.NativeEndian.PutUint32(*r.ConnMark)))
	}
	e.state(r.State)
	if r.Known {
		e.bits(expr.CtKeySTATUS, ctStatusConfirmed)
	}
	if r.DNAT {
		e.bits(expr.CtKeySTATUS, ctStatusDNAT)
	}
	if r.NotToLocal || r.ToLocal {
		e.add(&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true}, cmp1(equal(r.NotToLocal), binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)))
	}
	e.add(&expr.Counter{})
	e.verdict(r)
	return e.list
}

type exprList struct{ list []expr.Any }

func (e *exprList) add(x ...expr.Any) { e.list = append(e.list, x...) }

func cmp1(op expr.CmpOp, data []byte) *expr.Cmp { return &expr.Cmp{Op: op, Register: 1, Data: data} }

func equal(not bool) expr.CmpOp {
	if not {
		return expr.CmpOpNeq
	}
	return expr.CmpOpEq
}

func (e *exprList) meta(key expr.MetaKey, op expr.CmpOp, data []byte) {
	e.add(&expr.Meta{Key: key, Register: 1}, cmp1(op, data))
}

func (e *exprList) family(fam Family) {
	e.meta(expr.MetaKeyNFPROTO, expr.CmpOpEq, []byte{byte(nftFamilies[fam])})
}

// name matches an interface: all of its 16 bytes, or only the beginning when the name ends in +.
func (e *exprList) name(key expr.MetaKey, name string) {
	data := make([]byte, unix.IFNAMSIZ)
	copy(data, name)
	if prefix, ok := strings.CutSuffix(name, "+"); ok {
		data = []byte(prefix)
	}
	e.meta(key, expr.CmpOpEq, data)
}

// address matches a prefix at its place in the IPv4 or IPv6 header.
func (e *exprList) address(a Addr, offset4, offset6 uint32) {
	if !a.Prefix.IsValid() || (a.Prefix.Bits() == 0 && !a.Not) {
		return
	}
	addr, offset := a.Prefix.Masked().Addr(), offset4
	if addr.Is6() {
		offset = offset6
	}
	e.family(familyOf(addr))
	n := uint32(addr.BitLen() / 8)
	e.add(&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: n})
	if !a.Prefix.IsSingleIP() {
		e.add(&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: n, Mask: mask(a.Prefix), Xor: make([]byte, n)})
	}
	e.add(cmp1(equal(a.Not), addr.AsSlice()))
}

func mask(p netip.Prefix) []byte {
	m := make([]byte, p.Addr().BitLen()/8)
	for i := range p.Bits() {
		m[i/8] |= 0x80 >> (i % 8)
	}
	return m
}

// ports matches a range, or none of several: expand has split every other list.
func (e *exprList) ports(p Ports, offset uint32) {
	if !p.narrow() {
		return
	}
	for _, r := range p.Ranges {
		e.add(&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2})
		first, last := binaryutil.BigEndian.PutUint16(r.First), binaryutil.BigEndian.PutUint16(r.Last)
		switch {
		case r.First == r.Last:
			e.add(cmp1(equal(p.Not), first))
		case p.Not:
			e.add(&expr.Range{Op: expr.CmpOpNeq, Register: 1, FromData: first, ToData: last})
		default:
			e.add(cmp1(expr.CmpOpGte, first), cmp1(expr.CmpOpLte, last))
		}
	}
}

func (e *exprList) state(states string) {
	if states == "" {
		return
	}
	bits := map[string]uint32{"INVALID": expr.CtStateBitINVALID, "ESTABLISHED": expr.CtStateBitESTABLISHED, "RELATED": expr.CtStateBitRELATED}
	var want uint32
	for s := range strings.SplitSeq(states, ",") {
		want |= bits[s]
	}
	e.bits(expr.CtKeySTATE, want)
}

// Bits of a connection's status (enum ip_conntrack_status, nf_conntrack_common.h).
const (
	ctStatusConfirmed = 1 << 3
	ctStatusDNAT      = 1 << 5
)

// bits matches when any of the wanted bits is set in what conntrack knows.
func (e *exprList) bits(key expr.CtKey, want uint32) {
	e.add(&expr.Ct{Key: key, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(want), Xor: make([]byte, 4)},
		cmp1(expr.CmpOpNeq, make([]byte, 4)))
}

func (e *exprList) verdict(r *nativeRule) {
	v := r.Verdict
	immediate := func(data []byte) { e.add(&expr.Immediate{Register: 1, Data: data}) }
	setMark := func(mark uint32) {
		immediate(binaryutil.NativeEndian.PutUint32(mark))
		e.add(&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1})
	}
	switch v.Action {
	case Accept:
		e.add(&expr.Verdict{Kind: expr.VerdictAccept})
	case Return:
		e.add(&expr.Verdict{Kind: expr.VerdictReturn})
	case Drop:
		e.add(&expr.Verdict{Kind: expr.VerdictDrop})
	case Jump:
		e.add(&expr.Verdict{Kind: expr.VerdictJump, Chain: v.Chain})
	case Redirect:
		immediate(binaryutil.BigEndian.PutUint16(uint16(v.Value)))
		e.add(&expr.Redir{RegisterProtoMin: 1, Flags: unix.NF_NAT_RANGE_PROTO_SPECIFIED})
	case CTZone:
		immediate(binaryutil.NativeEndian.PutUint16(uint16(v.Value)))
		e.add(&expr.Ct{Key: expr.CtKeyZONE, SourceRegister: true, Register: 1})
	case SetMark:
		setMark(v.Value)
	case SaveMark:
		e.add(&expr.Meta{Key: expr.MetaKeyMARK, Register: 1}, &expr.Ct{Key: expr.CtKeyMARK, SourceRegister: true, Register: 1})
	case RestoreMark:
		e.add(&expr.Ct{Key: expr.CtKeyMARK, Register: 1}, &expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1})
	case TProxy:
		immediate(binaryutil.BigEndian.PutUint16(uint16(v.Value)))
		e.add(&expr.TProxy{Family: byte(nftFamilies[*r.tproxyFamily()]), TableFamily: unix.NFPROTO_INET, RegPort: 1})
		setMark(v.Mark)
		e.add(&expr.Verdict{Kind: expr.VerdictAccept})
	}
}
