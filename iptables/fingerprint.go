package iptables

import (
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
			policy := nftables.ChainPolicyAccept
			if c.Policy != nil {
				policy = *c.Policy
			}
			fmt.Fprintf(h, "%d %s %s %d;", c.Table.Family, c.Table.Name, c.Name, policy)
		}
	}
	for _, family := range []nftables.TableFamily{nftables.TableFamilyINet, nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
		for _, name := range slices.Sorted(maps.Keys(s.names[family])) {
			if !isOurTable(&nftables.Table{Name: name, Family: family}) {
				continue
			}
			fmt.Fprintf(h, "%d %s %d;", family, name, s.flags[family][name])
			if err := hashHandles(h, conn, family, name); err != nil {
				return err
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

// hashHandles adds chain and handle of each rule of a table, in order.
func hashHandles(h hash.Hash, conn *netlink.Conn, family nftables.TableFamily, table string) error {
	rules, err := dumpRaw(conn, unix.NFT_MSG_GETRULE, family, table)
	if err != nil {
		return err
	}
	for _, m := range rules {
		for _, a := range keepAttrs(rawAttrs(m), unix.NFTA_RULE_CHAIN, unix.NFTA_RULE_HANDLE) {
			h.Write(a.Data)
		}
	}
	return nil
}
