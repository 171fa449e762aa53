package iptables

import (
	"encoding/binary"
	"fmt"
	"hash"
	"hash/fnv"
	"maps"
	"slices"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// fingerprint sums up the tables we have rules in without starting a process: which chains there are, and which rules by
// their handles, which the kernel never uses twice. Counters do not show in it. Equal prints mean that nobody changed
// anything there; different ones, that it is worth reading the rules.
func fingerprint(rules *Rules, s *seen) (uint64, error) {
	h := fnv.New64a()
	if s.nft != nil {
		if err := fingerprintNFT(h, s.nft); err != nil {
			return 0, err
		}
	}
	for _, fam := range []Family{IPv4, IPv6} {
		for _, name := range slices.Sorted(maps.Keys(s.legacy[fam].tables)) {
			fmt.Fprintf(h, "%s %s %x;", fam, name, s.legacy[fam].tables[name].sum)
		}
	}
	for _, r := range rules.Routes {
		have, err := findRules(r)
		if err != nil {
			return 0, err
		}
		route, err := hasLocalDefault(r)
		if err != nil {
			return 0, err
		}
		fmt.Fprintf(h, "%v %d %t;", r, len(have), route)
	}
	return h.Sum64(), nil
}

func fingerprintNFT(h hash.Hash, s *nftSeen) error {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fmt.Errorf("open nf_tables: %w", err)
	}
	defer conn.Close()
	for _, c := range s.chains {
		if isOurTable(c.Table) {
			fmt.Fprintf(h, "%d %s %s;", c.Table.Family, c.Table.Name, c.Name)
		}
	}
	for _, family := range []nftables.TableFamily{nftables.TableFamilyINet, nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
		for _, name := range slices.Sorted(maps.Keys(s.names[family])) {
			if !isOurTable(&nftables.Table{Name: name, Family: family}) {
				continue
			}
			fmt.Fprintf(h, "%d %s;", family, name)
			if err := hashHandles(h, conn, family, name); err != nil {
				return kernelError(fmt.Sprintf("list the rules of table %s", name), err)
			}
		}
	}
	return nil
}

// isOurTable reports whether we may have rules in a table.
func isOurTable(t *nftables.Table) bool {
	if t.Family == nftables.TableFamilyINet {
		return t.Name == nativeTable || slices.Contains(istioTables, t.Name)
	}
	return (t.Family == nftables.TableFamilyIPv4 || t.Family == nftables.TableFamilyIPv6) && slices.Contains(ourTables, t.Name)
}

// hashHandles dumps the rules of a table and adds chain and handle of each, in order.
func hashHandles(h hash.Hash, conn *netlink.Conn, family nftables.TableFamily, table string) error {
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: unix.NFTA_RULE_TABLE, Data: []byte(table + "\x00")}})
	if err != nil {
		return err
	}
	messages, err := conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETRULE, Flags: netlink.Request | netlink.Dump},
		Data:   append([]byte{byte(family), unix.NFNETLINK_V0, 0, 0}, attrs...), // struct nfgenmsg
	})
	if err != nil {
		return err
	}
	for _, m := range messages {
		if len(m.Data) < 4 {
			continue
		}
		ad, err := netlink.NewAttributeDecoder(m.Data[4:])
		if err != nil {
			return err
		}
		ad.ByteOrder = binary.BigEndian
		for ad.Next() {
			switch ad.Type() {
			case unix.NFTA_RULE_CHAIN:
				fmt.Fprintf(h, "%s ", ad.String())
			case unix.NFTA_RULE_HANDLE:
				fmt.Fprintf(h, "%d;", ad.Uint64())
			}
		}
		if err := ad.Err(); err != nil {
			return err
		}
	}
	return nil
}
