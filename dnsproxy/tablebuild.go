package dnsproxy

import (
	"errors"
	"fmt"
	"hash/maphash"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
)

// shardCount parts of a map are copied one by one when a table is made from an earlier one.
const shardCount = 64

// sharded is a map in parts, so that a changed copy shares the parts that stay.
type sharded[K comparable, V any] [shardCount]map[K]V

func (s *sharded[K, V]) get(k K) V { return s[maphash.Comparable(hashSeed, k)%shardCount][k] }

// NewTable builds a table of what can be used of names: the rest is left out, see Table.LeftOut. A nameless wildcard ("*") and names without
// addresses are not the mesh's, as for Istio's agent, and not told. The error is for cfg alone: a namespace or domain that is no name.
func NewTable(cfg TableConfig, names []Name) (*Table, error) {
	return (*Table)(nil).Update(cfg, names)
}

// builds numbers the builds, so that each knows its own nodes.
var builds atomic.Uint64

// build is a table in the making. Parts of the former table are shared until they are touched.
type build struct {
	*Table
	number   uint64
	ownNames [shardCount]bool // this part of names is ours to change
	ownAddrs [shardCount]bool
	ownLeft  bool // leftOut is

	// room for what many names need one of: a table is made of few allocations
	nodeRoom    []node
	claimRoom   []claim
	serviceRoom []*service
	key         []byte // scratch
}

// Update builds the table of names, like NewTable, but shares with t whatever has not changed: the cost is a look at
// each name plus the making of the changed ones. t stays as it is. names must be the whole table, not a difference.
func (t *Table) Update(cfg TableConfig, names []Name) (*Table, error) {
	b, err := newBuild(t, cfg)
	if err != nil {
		return nil, err
	}
	former := b.leftOut
	b.leftOut, b.ownLeft = nil, false
	var (
		changed []*service // replaced or new
		kept    = make(map[*service]struct{}, len(b.services))
	)
	for i := range names {
		name := &names[i]
		if name.isNobodys() {
			continue
		}
		if b.key, err = appendKey(b.key[:0], name.Host); err != nil {
			b.leaveOut(name.Host, err.Error())
			continue
		}
		if old := b.ownedBy(b.key, name.Host); old != nil && former[name.Host] == "" && sameName(&old.Name, name) {
			if _, twice := kept[old]; twice {
				b.leaveOut(name.Host, givenTwice)
			}
			kept[old] = struct{}{}
			continue
		}
		if s := b.newService(name, string(b.key)); s != nil {
			changed = append(changed, s)
		}
	}
	gone := map[*service]struct{}{}
	for _, s := range b.services {
		if _, ok := kept[s]; !ok {
			gone[s] = struct{}{}
		}
	}
	return b.replace(gone, changed), nil
}

// Change builds the table that is t but for some names: those of the hosts in gone are not in it, and names are new or take the place of
// what their hosts had. The cost is in what changes, not in what is there. t stays as it is, and must be for the same proxy as cfg.
func (t *Table) Change(cfg TableConfig, gone []string, names []Name) (*Table, error) {
	if t == nil || t.cfg.Namespace != cfg.Namespace || t.cfg.Domain != cfg.Domain {
		return nil, errors.New("name table: a change needs a table for the same namespace and domain")
	}
	b, err := newBuild(t, cfg)
	if err != nil {
		return nil, err
	}
	var (
		changed  []*service
		replaced = map[*service]struct{}{}
	)
	// take marks what a host has as replaced; its key is in b.key then.
	take := func(host string) (err error) {
		b.takeBack(host)
		if b.key, err = appendKey(b.key[:0], host); err != nil {
			return err
		}
		if old := b.ownedBy(b.key, host); old != nil {
			replaced[old] = struct{}{}
		}
		return nil
	}
	for _, host := range gone {
		_ = take(host) // what is no name is not in the table
	}
	for i := range names {
		name := &names[i]
		err := take(name.Host)
		switch {
		case name.isNobodys():
			continue
		case err != nil:
			b.leaveOut(name.Host, err.Error())
			continue
		}
		if s := b.newService(name, string(b.key)); s != nil {
			changed = append(changed, s)
		}
	}
	return b.replace(replaced, changed), nil
}

// replace takes services out of the table in the making and puts others in.
func (b *build) replace(gone map[*service]struct{}, added []*service) *Table {
	former := b.services
	b.services = make([]*service, 0, len(former)-len(gone)+len(added))
	for _, s := range former {
		if _, ok := gone[s]; !ok {
			b.services = append(b.services, s)
		} else {
			b.remove(s)
		}
	}
	b.reserve(len(added))
	for _, s := range added {
		if b.add(s) {
			b.services = append(b.services, s)
		} else {
			b.leaveOut(s.Host, givenTwice)
		}
	}
	return b.Table
}

// newBuild starts from former if it answers for the same proxy, else from nothing.
func newBuild(former *Table, cfg TableConfig) (*build, error) {
	b := &build{Table: &Table{}, number: builds.Add(1)}
	if former != nil && former.cfg.Namespace == cfg.Namespace && former.cfg.Domain == cfg.Domain {
		*b.Table = *former
		b.cfg = cfg
		return b, nil
	}
	b.cfg = cfg
	domain := strings.TrimPrefix(strings.TrimSuffix(cfg.Domain, "."), cfg.Namespace+".")
	if domain == "" {
		return b, nil
	}
	var err error
	if b.domain, err = appendKey(nil, domain); err != nil {
		return nil, fmt.Errorf("domain %q: %w", cfg.Domain, err)
	}
	for at := 0; at < len(b.domain); at += 1 + int(b.domain[at]) {
		b.cuts = append(b.cuts, at)
	}
	if cfg.Namespace == "" {
		return b, nil
	}
	if b.own, err = appendKey(nil, cfg.Namespace+"."+domain); err != nil {
		return nil, fmt.Errorf("namespace %q: %w", cfg.Namespace, err)
	}
	return b, nil
}

// reserve makes room for n more services. An empty table gets its maps in the size they will have.
func (b *build) reserve(n int) {
	b.nodeRoom, b.claimRoom, b.serviceRoom = make([]node, 0, n), make([]claim, 0, n), make([]*service, 0, n)
	if len(b.services) > 0 || n < shardCount {
		return
	}
	for i := range shardCount {
		b.names[i], b.ownNames[i] = make(map[string]*node, n/shardCount), true
		b.addrs[i], b.ownAddrs[i] = make(map[netip.Addr][]*service, n/shardCount), true
	}
}

// alone is a list of one, in room as long as there is any. Appending to it copies it.
func alone[T any](room *[]T, v T) []T {
	if len(*room) == cap(*room) {
		return []T{v}
	}
	*room = append(*room, v)
	n := len(*room)
	return (*room)[n-1 : n : n]
}

// wants are the names s wants, each once: its host first, then its aliases. A Kubernetes service within the domain whose
// host is not its short name, namespace and domain joined gets that name as an alias, because short forms are completed to it.
func (b *build) wants(s *service) iter.Seq2[string, claim] {
	return func(yield func(string, claim) bool) {
		full, _ := b.fullKey(s) // newService has seen to it
		if !yield(s.key, claim{service: s, full: string(full) == s.key}) || len(s.AltHosts) == 0 && (full == nil || string(full) == s.key) {
			return
		}
		aliases := make([]string, 0, len(s.AltHosts)+1)
		if full != nil {
			aliases = append(aliases, string(full))
		}
		for _, alt := range s.AltHosts {
			if key, err := appendKey(nil, alt); err == nil {
				aliases = append(aliases, string(key))
			}
		}
		for i, key := range aliases {
			if key == s.key || slices.Contains(aliases[:i], key) {
				continue
			}
			if !yield(key, claim{service: s, alias: true, full: full != nil && i == 0}) {
				return
			}
		}
	}
}

// fullKey is the key of the name that the short forms of s are short for, in scratch room; nil if s has no such forms.
func (b *build) fullKey(s *service) ([]byte, error) {
	if b.domain == nil || s.Registry != kubernetesRegistry || s.ShortName == "" || s.Namespace == "" || !isBelow(s.key, b.domain) {
		return nil, nil
	}
	key, err := appendKey(b.key[:0], s.ShortName)
	if err != nil {
		return nil, fmt.Errorf("short name %s: %w", quoted(s.ShortName), err)
	}
	rest, err := appendKey(key[len(key):], s.Namespace)
	if err != nil {
		return nil, fmt.Errorf("namespace %s: %w", quoted(s.Namespace), err)
	}
	if key = append(append(key, rest...), b.domain...); len(key) >= maxName {
		return nil, fmt.Errorf("short name %s: name of %d octets, at most %d", quoted(s.ShortName), len(key)+1, maxName)
	}
	b.key = key
	return key, nil
}

// add puts s in. It does nothing, and says so, if its host is there already.
func (b *build) add(s *service) bool {
	for key, c := range b.wants(s) {
		n := b.mutable(key)
		if len(n.owners) == 0 {
			n.owners = alone(&b.claimRoom, c)
		} else {
			at, taken := slices.BinarySearchFunc(n.owners, c, compareClaims)
			if taken {
				return false // at the first, the host: aliases of one service differ
			}
			n.owners = slices.Insert(n.owners, at, c)
		}
		if isWildcard(key) {
			b.wildcards++
		}
	}
	if isWildcard(s.key) {
		return true // no one name to answer a PTR with
	}
	for _, addr := range s.Addrs {
		list := b.addrsOf(addr)
		if len(list) == 0 {
			b.addrs[shardOf(addr)][addr] = alone(&b.serviceRoom, s)
			continue
		}
		if at, taken := slices.BinarySearchFunc(list, s, comparePTR); !taken {
			b.addrs[shardOf(addr)][addr] = slices.Insert(slices.Clone(list), at, s)
		}
	}
	return true
}

func (b *build) remove(s *service) {
	for key := range b.wants(s) {
		n := b.mutable(key)
		n.owners = slices.DeleteFunc(n.owners, func(c claim) bool { return c.service == s })
		if isWildcard(key) {
			b.wildcards--
		}
		b.prune(key)
	}
	for _, addr := range s.Addrs {
		list := slices.DeleteFunc(slices.Clone(b.addrsOf(addr)), func(o *service) bool { return o == s })
		if b.addrs[shardOf(addr)][addr] = list; len(list) == 0 {
			delete(b.addrs[shardOf(addr)], addr)
		}
	}
}

// mutable returns the node of key for changing, and makes it and its ancestors if they are not there.
func (b *build) mutable(key string) *node {
	at := maphash.String(hashSeed, key) % shardCount
	if !b.ownNames[at] {
		b.names[at] = cloned(b.names[at])
		b.ownNames[at] = true
	}
	n := b.names[at][key]
	if n != nil && n.build == b.number {
		return n
	}
	fresh := &alone(&b.nodeRoom, node{build: b.number})[0]
	if n != nil {
		fresh.owners, fresh.children = slices.Clone(n.owners), n.children
	} else if len(key) > 0 {
		b.mutable(parent(key)).children++
	}
	b.names[at][key] = fresh
	return fresh
}

// prune takes out the node of key, and then its ancestors, while nothing needs them.
func (b *build) prune(key string) {
	for {
		n := b.mutable(key)
		if len(n.owners) > 0 || n.children > 0 {
			return
		}
		delete(b.names[maphash.String(hashSeed, key)%shardCount], key)
		if len(key) == 0 {
			return
		}
		key = parent(key)
		b.mutable(key).children--
	}
}

// addrsOf is the candidates for addr, in a part that is ours to change.
func (b *build) addrsOf(addr netip.Addr) []*service {
	at := shardOf(addr)
	if !b.ownAddrs[at] {
		b.addrs[at] = cloned(b.addrs[at])
		b.ownAddrs[at] = true
	}
	return b.addrs[at][addr]
}

// ownedBy is the service that has key by being called host.
func (b *build) ownedBy(key []byte, host string) *service {
	n := b.node(key)
	if n == nil {
		return nil
	}
	for _, c := range n.owners {
		if !c.alias && c.service.Host == host {
			return c.service
		}
	}
	return nil
}

func shardOf(addr netip.Addr) uint64 { return maphash.Comparable(hashSeed, addr) % shardCount }

func cloned[K comparable, V any](m map[K]V) map[K]V {
	if m == nil {
		return make(map[K]V)
	}
	return maps.Clone(m)
}

func isWildcard(key string) bool { return strings.HasPrefix(key, wildcardLabel) }
