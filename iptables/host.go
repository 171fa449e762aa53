package iptables

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// host is what this package asks of the machine. Tests change single functions; systemHost is the real one. Every function
// acts in the network namespace of the calling thread.
type host struct {
	find       func(names ...string) (string, error)
	run        func(ctx context.Context, stdin string, argv ...string) (stdout string, err error)
	makeTable  func(fam Family, name string) error
	dropTables func(fam Family, names []string) error
	// socketsOfSSHD returns the inodes of sshd's sockets, and whether there may be a process of it.
	socketsOfSSHD func() (inodes map[uint32]bool, running bool)
	step          func(name string) // called between the steps of a change; for tests that die there
}

func systemHost() *host {
	return &host{find: findCommand, run: runCommand, makeTable: makeMarkedTable, dropTables: dropIdleTables, socketsOfSSHD: socketsOfSSHD, step: func(string) {}}
}

// seen is what a look at the kernel found without starting a process.
type seen struct {
	nft    *nftSeen // nil when the kernel has no nf_tables, or we may not look
	nftErr error    // why nft is nil
	legacy [2]struct {
		tables map[string]legacyTable
		err    error
	}
	noIPv6 bool
	marks  []uint32 // packet marks of the TPROXY chains that reading found
}

// nftSeen is every table and chain of nf_tables.
type nftSeen struct {
	chains []*nftables.Chain
	names  map[nftables.TableFamily]map[string]bool   // tables
	flags  map[nftables.TableFamily]map[string]uint32 // of the tables: 1 is switched off (dormant)
}

var nftFamilies = [2]nftables.TableFamily{IPv4: nftables.TableFamilyIPv4, IPv6: nftables.TableFamilyIPv6}

// look reads which tables and chains exist, by both flavours and natively. It fails only when this process may not look, for
// then everything would seem to be absent.
func (h *host) look() (*seen, error) {
	s := &seen{}
	if s.nft, s.nftErr = lookNFT(); errors.Is(s.nftErr, unix.EPERM) {
		return nil, s.nftErr
	}
	for _, fam := range []Family{IPv4, IPv6} {
		l := &s.legacy[fam]
		l.tables, l.err = legacyTables(fam)
	}
	s.noIPv6 = noIPv6()
	return s, nil
}

func lookNFT() (*nftSeen, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("open nf_tables: %w", err)
	}
	tables, err := conn.ListTables()
	if err != nil {
		return nil, kernelError("list the tables of nf_tables", err)
	}
	chains, err := conn.ListChains()
	if err != nil {
		return nil, kernelError("list the chains of nf_tables", err)
	}
	s := &nftSeen{chains: chains, names: map[nftables.TableFamily]map[string]bool{}, flags: map[nftables.TableFamily]map[string]uint32{}}
	for _, t := range tables {
		if s.names[t.Family] == nil {
			s.names[t.Family], s.flags[t.Family] = map[string]bool{}, map[string]uint32{}
		}
		s.names[t.Family][t.Name], s.flags[t.Family][t.Name] = true, t.Flags
	}
	return s, nil
}

// tables lists which of our tables exist in a flavour; with legacy, only those that hold something.
func (s *seen) tables(flavour string, fam Family) []string {
	return slices.DeleteFunc(slices.Clone(ourTables), func(name string) bool {
		if flavour == BackendLegacy {
			return !s.legacy[fam].tables[name].rules
		}
		return s.nft == nil || !s.nft.names[nftFamilies[fam]][name]
	})
}

// chains lists the chains of ours that a flavour holds, by table.
func (s *seen) chains(flavour string, fam Family) map[string][]string {
	out := map[string][]string{}
	if flavour == BackendLegacy {
		for name, t := range s.legacy[fam].tables {
			for _, c := range t.chains {
				if ours(c) {
					out[name] = append(out[name], c)
				}
			}
		}
		return out
	}
	if s.nft == nil {
		return out
	}
	for _, c := range s.nft.chains {
		if c.Table.Family == nftFamilies[fam] && slices.Contains(ourTables, c.Table.Name) && ours(c.Name) {
			out[c.Table.Name] = append(out[c.Table.Name], c.Name)
		}
	}
	return out
}

// ours reports whether a flavour may hold anything of ours in a family. When in doubt it says yes.
func (s *seen) ours(flavour string, fam Family) bool {
	if fam == IPv6 && s.noIPv6 {
		return false
	}
	if flavour == BackendLegacy && s.legacy[fam].err != nil {
		return true
	}
	return len(s.chains(flavour, fam)) > 0
}

// oursBeside reports whether another backend than the named one holds something of ours.
func (s *seen) oursBeside(name string) bool {
	for _, flavour := range []string{BackendNFT, BackendLegacy} {
		if flavour != name && (s.ours(flavour, IPv4) || s.ours(flavour, IPv6)) {
			return true
		}
	}
	return name != BackendNative && s.nativeTable()
}

// usesLegacy reports whether anybody has rules or chains in a table of iptables-legacy.
func (s *seen) usesLegacy() bool {
	for _, l := range s.legacy {
		for _, t := range l.tables {
			if t.rules {
				return true
			}
		}
	}
	return false
}

// nativeTable reports whether our native table is there.
func (s *seen) nativeTable() bool {
	return s.nft != nil && s.nft.names[nftables.TableFamilyINet][nativeTable]
}

// usesNFT reports whether somebody has rules in a table of iptables-nft. Tables alone do not count: older commands make them
// when they only look.
func (s *seen) usesNFT() bool {
	if s.nft == nil {
		return false
	}
	conn, err := nftables.New()
	if err != nil {
		return false
	}
	for _, c := range s.nft.chains {
		if c.Table.Family != nftables.TableFamilyIPv4 && c.Table.Family != nftables.TableFamilyIPv6 {
			continue
		}
		if _, isXtables := hooksOf[c.Table.Name]; !isXtables && c.Table.Name != "filter" {
			continue
		}
		if !builtins[c.Name] {
			return true
		}
		if rules, err := conn.GetRules(c.Table, c); err != nil || len(rules) > 0 {
			return true
		}
	}
	return false
}

// makeMarkedTable makes an empty table of iptables-nft with our mark. A process of iptables would make the same.
func makeMarkedTable(fam Family, name string) error {
	text := func(kind uint16, s string) netlink.Attribute {
		return netlink.Attribute{Type: kind, Data: []byte(s + "\x00")}
	}
	var b rawBatch
	b.add(unix.NFT_MSG_NEWTABLE, netlink.Create, nftFamilies[fam], []netlink.Attribute{text(unix.NFTA_TABLE_NAME, name)})
	b.add(unix.NFT_MSG_NEWCHAIN, netlink.Create, nftFamilies[fam], []netlink.Attribute{text(unix.NFTA_CHAIN_TABLE, name), text(unix.NFTA_CHAIN_NAME, chainTable)})
	if err := b.send(0); err != nil {
		return nativeError(fmt.Sprintf("make %s table %s", fam, name), err)
	}
	return nil
}

// missing lists the built-in chains that a table of iptables-nft does not have.
func (s *seen) missing(flavour string, fam Family, table string) []string {
	if flavour != BackendNFT || s.nft == nil {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(hooksOf[table]), func(name string) bool {
		return slices.ContainsFunc(s.nft.chains, func(c *nftables.Chain) bool {
			return c.Table.Family == nftFamilies[fam] && c.Table.Name == table && c.Name == name
		})
	})
}

// whenUnchanged sends the batch that prepare makes, if nobody has changed nf_tables since; else it is made anew, a few times.
func whenUnchanged(prepare func(b *rawBatch) error) error {
	err := unix.ERESTART
	for try := 0; try < 5 && errors.Is(err, unix.ERESTART); try++ {
		generation := nftGeneration()
		var b rawBatch
		if err := prepare(&b); err != nil {
			return err
		}
		if sendErr := b.send(generation); sendErr == nil {
			return nil
		} else if !errors.As(sendErr, &err) {
			return sendErr
		}
	}
	return err
}

// dropIdleChains deletes built-in chains, by table, that are empty and accepting.
func dropIdleChains(fam Family, chains map[string][]string) error {
	err := whenUnchanged(func(b *rawBatch) error {
		conn, err := nftables.New()
		if err != nil {
			return fmt.Errorf("open nf_tables: %w", err)
		}
		have, err := conn.ListChainsOfTableFamily(nftFamilies[fam])
		if err != nil {
			return kernelError("list the chains of nf_tables", err)
		}
		for _, c := range have {
			if slices.Contains(chains[c.Table.Name], c.Name) && idleChain(conn, c) {
				b.add(unix.NFT_MSG_DELCHAIN, 0, nftFamilies[fam], []netlink.Attribute{
					{Type: unix.NFTA_CHAIN_TABLE, Data: []byte(c.Table.Name + "\x00")}, {Type: unix.NFTA_CHAIN_NAME, Data: []byte(c.Name + "\x00")},
				})
			}
		}
		return nil
	})
	if err != nil {
		return kernelError(fmt.Sprintf("delete empty chains of %s tables", fam), err)
	}
	return nil
}

// idleChain reports whether a chain is one of the kernel's hooks and does nothing there.
func idleChain(conn *nftables.Conn, c *nftables.Chain) bool {
	rules, err := conn.GetRules(c.Table, c)
	return err == nil && len(rules) == 0 && builtins[c.Name] && (c.Policy == nil || *c.Policy == nftables.ChainPolicyAccept)
}

// dropIdleTables deletes tables of iptables-nft in which nothing is left but chains of the kernel's hooks, empty and accepting.
// The kernel does it only if nobody has changed anything since we looked: then we look again.
func dropIdleTables(fam Family, names []string) error {
	err := whenUnchanged(func(b *rawBatch) error {
		idle, err := idleTables(fam, names)
		for _, name := range idle {
			b.add(unix.NFT_MSG_DELTABLE, 0, nftFamilies[fam], []netlink.Attribute{{Type: unix.NFTA_TABLE_NAME, Data: []byte(name + "\x00")}})
		}
		return err
	})
	if err != nil {
		return kernelError(fmt.Sprintf("delete empty tables of %v", names), err)
	}
	return nil
}

// idleTables returns which of the tables are there and do nothing.
func idleTables(fam Family, names []string) ([]string, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("open nf_tables: %w", err)
	}
	tables, err := conn.ListTablesOfFamily(nftFamilies[fam])
	if err != nil {
		return nil, kernelError("list the tables of nf_tables", err)
	}
	chains, err := conn.ListChainsOfTableFamily(nftFamilies[fam])
	if err != nil {
		return nil, kernelError("list the chains of nf_tables", err)
	}
	var out []string
	for _, t := range tables {
		idle := slices.Contains(names, t.Name)
		for _, c := range chains {
			if !idle || c.Table.Name != t.Name {
				continue
			}
			idle = idleChain(conn, c)
		}
		if idle {
			out = append(out, t.Name)
		}
	}
	return out, nil
}
