package iptables

import (
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// This file talks to nf_tables in the kernel's own words, for two things that package nftables does not do: reading rules
// without decoding them, which for thousands of rules is most of the work, and putting rules back exactly as they were.

func nftType(message uint16) netlink.HeaderType {
	return netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | message)
}

// nfgenmsg is the head of every message: family, version, resource.
func nfgenmsg(family byte, resource uint16, attrs []byte) []byte {
	return append([]byte{family, unix.NFNETLINK_V0, byte(resource >> 8), byte(resource)}, attrs...)
}

// rawAttrs returns the attributes of a message, nil when it has none or is cut off.
func rawAttrs(m netlink.Message) []netlink.Attribute {
	if len(m.Data) < 4 {
		return nil
	}
	attrs, err := netlink.UnmarshalAttributes(m.Data[4:])
	if err != nil {
		return nil
	}
	return attrs
}

// dumpRaw lists what a GET message names, in one table.
func dumpRaw(conn *netlink.Conn, get uint16, family nftables.TableFamily, table string) ([]netlink.Message, error) {
	// Attribute 1 is the table's name for chains and for rules.
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: unix.NFTA_RULE_TABLE, Data: []byte(table + "\x00")}})
	if err != nil {
		return nil, err
	}
	messages, err := conn.Execute(netlink.Message{
		Header: netlink.Header{Type: nftType(get), Flags: netlink.Request | netlink.Dump},
		Data:   nfgenmsg(byte(family), 0, attrs),
	})
	if err != nil {
		return nil, kernelError(fmt.Sprintf("list table %s", table), err)
	}
	return messages, nil
}

// rawTable is a table as the kernel described it.
type rawTable struct {
	name   string
	family nftables.TableFamily
	chains [][]netlink.Attribute
	rules  [][]netlink.Attribute
}

// readRaw reads a table so that write can make it again.
func readRaw(family nftables.TableFamily, name string) (*rawTable, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("open nf_tables: %w", err)
	}
	defer conn.Close()
	t := &rawTable{name: name, family: family}
	chains, err := dumpRaw(conn, unix.NFT_MSG_GETCHAIN, family, name)
	if err != nil {
		return nil, err
	}
	for _, m := range chains {
		attrs := rawAttrs(m)
		// The kernel lists the chains of all tables.
		if text(attrs, unix.NFTA_CHAIN_TABLE) == name {
			t.chains = append(t.chains, keepAttrs(attrs, unix.NFTA_CHAIN_TABLE, unix.NFTA_CHAIN_NAME, unix.NFTA_CHAIN_HOOK, unix.NFTA_CHAIN_POLICY, unix.NFTA_CHAIN_TYPE))
		}
	}
	rules, err := dumpRaw(conn, unix.NFT_MSG_GETRULE, family, name)
	if err != nil {
		return nil, err
	}
	for _, m := range rules {
		t.rules = append(t.rules, keepAttrs(rawAttrs(m), unix.NFTA_RULE_TABLE, unix.NFTA_RULE_CHAIN, unix.NFTA_RULE_EXPRESSIONS, unix.NFTA_RULE_USERDATA))
	}
	return t, nil
}

// write replaces the table by what was read, counters included, in one transaction.
func (t *rawTable) write() error {
	var b rawBatch
	name := []netlink.Attribute{{Type: unix.NFTA_TABLE_NAME, Data: []byte(t.name + "\x00")}}
	b.add(unix.NFT_MSG_NEWTABLE, netlink.Create, t.family, name) // so that deleting it is no error
	b.add(unix.NFT_MSG_DELTABLE, 0, t.family, name)
	b.add(unix.NFT_MSG_NEWTABLE, netlink.Create, t.family, name)
	for _, c := range t.chains {
		b.add(unix.NFT_MSG_NEWCHAIN, netlink.Create, t.family, c)
	}
	for _, r := range t.rules {
		b.add(unix.NFT_MSG_NEWRULE, netlink.Create|netlink.Append, t.family, r)
	}
	if err := b.send(0); err != nil {
		return nativeError("put table "+t.name+" back", err)
	}
	return nil
}

// rawBatch is a transaction in the making.
type rawBatch struct {
	messages []netlink.Message
	err      error // the first attribute that could not be written
}

func (b *rawBatch) add(message uint16, flags netlink.HeaderFlags, family nftables.TableFamily, attrs []netlink.Attribute) {
	data, err := netlink.MarshalAttributes(attrs)
	if err != nil && b.err == nil {
		b.err = err
	}
	b.messages = append(b.messages, netlink.Message{
		Header: netlink.Header{Type: nftType(message), Flags: netlink.Request | netlink.Acknowledge | flags},
		Data:   nfgenmsg(byte(family), 0, data),
	})
}

// attrBatchGenID makes the kernel refuse a batch, by ERESTART, when its rules are of another generation by then
// (NFNL_BATCH_GENID in include/uapi/linux/netfilter/nfnetlink.h).
const attrBatchGenID = 1

// send runs the transaction; with a generation, only if nobody has changed nf_tables since then.
func (b *rawBatch) send(generation uint32) error {
	if b.err != nil || len(b.messages) == 0 {
		return b.err
	}
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetWriteBuffer(4 << 20); err != nil {
		return err
	}
	var only []byte
	if generation != 0 {
		only, err = netlink.MarshalAttributes([]netlink.Attribute{{Type: attrBatchGenID, Data: binaryutil.BigEndian.PutUint32(generation)}})
		if err != nil {
			return err
		}
	}
	frame := func(kind netlink.HeaderType, attrs []byte) netlink.Message {
		return netlink.Message{Header: netlink.Header{Type: kind, Flags: netlink.Request}, Data: nfgenmsg(unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, attrs)}
	}
	all := slices.Concat([]netlink.Message{frame(unix.NFNL_MSG_BATCH_BEGIN, only)}, b.messages, []netlink.Message{frame(unix.NFNL_MSG_BATCH_END, nil)})
	if _, err := conn.SendMessages(all); err != nil {
		return err
	}
	for range b.messages { // each is acknowledged, or the first thing that comes is an error
		if _, err := conn.Receive(); err != nil {
			return err
		}
	}
	return nil
}

// attrType is an attribute's number without the flags that say how it is packed.
func attrType(a netlink.Attribute) uint16 {
	return a.Type &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
}

func text(attrs []netlink.Attribute, kind uint16) string {
	for _, a := range attrs {
		if attrType(a) == kind {
			return cString(a.Data)
		}
	}
	return ""
}

// keepAttrs leaves out what the kernel makes itself, such as handles.
func keepAttrs(attrs []netlink.Attribute, kinds ...uint16) []netlink.Attribute {
	var out []netlink.Attribute
	for _, a := range attrs {
		for _, k := range kinds {
			if attrType(a) == k {
				out = append(out, a)
			}
		}
	}
	return out
}
