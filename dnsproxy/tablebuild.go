package dnsproxy

import (
	"cmp"
	"errors"
	"fmt"
	"hash/maphash"
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

// NewTable builds a table. The error names every unusable entry (the first ten, and how many more): a name or label that
// is too long, an empty label, an address that is none, a host given twice. A nil error means that all names answer,
// except those without addresses and a bare "*", which Istio's agent ignores too.
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
}

// Update builds the table of names, like NewTable, but shares with t whatever has not changed: the cost is a look at
// each name plus the making of the changed ones. t stays as it is. names must be the whole table, not a difference.
func (t *Table) Update(cfg TableConfig, names []Name) (*Table, error) {
	b, err := newBuild(t, cfg)
	if err != nil {
		return nil, err
	}
	var (
		bad     []error
		changed []*service // replaced or new
		kept    = make(map[*service]struct{}, len(names))
		key     []byte
	)
	for i := range names {
		name := &names[i]
		if name.Host == "*" || name.Host == "*." || len(name.Addrs) == 0 {
			continue
		}
		if key, err = appendKey(key[:0], name.Host); err != nil {
			bad = append(bad, fmt.Errorf("%s: %w", quoted(name.Host), err))
			continue
		}
		if old := b.ownedBy(key, name.Host); old != nil && sameName(&old.Name, name) {
			if _, twice := kept[old]; twice {
				bad = append(bad, fmt.Errorf("%s: given twice", quoted(name.Host)))
			}
			kept[old] = struct{}{}
			continue
		}
		s, err := newService(name, b.domain)
		if err != nil {
			bad = append(bad, fmt.Errorf("%s: %w", quoted(name.Host), err))
			continue
		}
		changed = append(changed, s)
	}
	if err := joinBad(bad); err != nil {
		return nil, err
	}
	former := b.services
	b.services = make([]*service, 0, len(kept)+len(changed))
	for _, s := range former {
		if _, ok := kept[s]; ok {
			b.services = append(b.services, s)
		} else if err := b.remove(s); err != nil {
			return nil, err
		}
	}
	for _, s := range changed {
		if err := b.add(s); err != nil {
			bad = append(bad, fmt.Errorf("%s: %w", quoted(s.Host), err))
		}
	}
	b.services = append(b.services, changed...)
	return b.Table, joinBad(bad)
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

// newService prepares the answers of a name.
func newService(name *Name, domain []byte) (*service, error) {
	s := &service{Name: *name}
	s.Addrs = slices.Clone(name.Addrs)
	for i, addr := range s.Addrs {
		if !addr.IsValid() {
			return nil, fmt.Errorf("address %d is none", i+1)
		}
		if addr.Zone() != "" {
			return nil, fmt.Errorf("address %s has a zone", addr)
		}
		s.Addrs[i] = addr.Unmap()
	}
	s.a, s.aaaa = addressRecords(s.Addrs)
	s.forms = domain != nil && s.Registry == kubernetesRegistry && s.ShortName != "" && s.Namespace != ""
	if s.forms {
		key, err := appendKey(nil, s.Host)
		s.forms = err == nil && isBelow(key, domain)
	}
	return s, nil
}

// keysOf lists the names s wants, each once: its host first, then its aliases. A service whose host is not its short
// name, namespace and domain joined gets that name as an alias, because short forms are completed to it; full is its place
// in the list, -1 if s has no short forms.
func (b *build) keysOf(s *service) (keys [][]byte, full int, err error) {
	host, err := appendKey(nil, s.Host)
	if err != nil {
		return nil, -1, err
	}
	keys = [][]byte{host}
	want := func(key []byte) (at int) {
		if at = slices.IndexFunc(keys, func(k []byte) bool { return slices.Equal(k, key) }); at < 0 {
			at, keys = len(keys), append(keys, key)
		}
		return at
	}
	for _, alt := range s.AltHosts {
		key, err := appendKey(nil, alt)
		if err != nil {
			return nil, -1, fmt.Errorf("alternative host %s: %w", quoted(alt), err)
		}
		want(key)
	}
	if !s.forms {
		return keys, -1, nil
	}
	key, err := appendKey(nil, s.ShortName+"."+s.Namespace)
	if err != nil {
		return nil, -1, fmt.Errorf("short name %s: %w", quoted(s.ShortName), err)
	}
	if key = append(key, b.domain...); len(key) >= maxName {
		return nil, -1, fmt.Errorf("short name %s: name of %d octets, at most %d", quoted(s.ShortName), len(key)+1, maxName)
	}
	return keys, want(key), nil
}

func (b *build) add(s *service) error {
	keys, full, err := b.keysOf(s)
	if err != nil {
		return err
	}
	for i, key := range keys {
		n := b.mutable(key)
		c := claim{service: s, alias: i > 0, full: i == full}
		at, taken := slices.BinarySearchFunc(n.owners, c, compareClaims)
		if taken {
			return errors.New("given twice")
		}
		n.owners = slices.Insert(n.owners, at, c)
		if isWildcard(key) {
			b.wildcards++
		}
	}
	if isWildcard(keys[0]) {
		return nil // no one name to answer a PTR with
	}
	for _, addr := range s.Addrs {
		list := b.addrsOf(addr)
		at, taken := slices.BinarySearchFunc(list, s, comparePTR)
		if !taken {
			list = slices.Insert(slices.Clone(list), at, s)
		}
		b.addrs[shardOf(addr)][addr] = list
	}
	return nil
}

func (b *build) remove(s *service) error {
	keys, _, err := b.keysOf(s)
	if err != nil {
		return err
	}
	for _, key := range keys {
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
	return nil
}

// mutable returns the node of key for changing, and makes it and its ancestors if they are not there.
func (b *build) mutable(key []byte) *node {
	at := maphash.Bytes(hashSeed, key) % shardCount
	if !b.ownNames[at] {
		b.names[at] = cloned(b.names[at])
		b.ownNames[at] = true
	}
	n := b.names[at][string(key)]
	if n != nil && n.build == b.number {
		return n
	}
	fresh := &node{build: b.number}
	if n != nil {
		fresh.owners, fresh.children = slices.Clone(n.owners), n.children
	} else if len(key) > 0 {
		b.mutable(parent(key)).children++
	}
	b.names[at][string(key)] = fresh
	return fresh
}

// prune takes out the node of key, and then its ancestors, while nothing needs them.
func (b *build) prune(key []byte) {
	for {
		n := b.mutable(key)
		if len(n.owners) > 0 || n.children > 0 {
			return
		}
		delete(b.names[maphash.Bytes(hashSeed, key)%shardCount], string(key))
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

func isWildcard(key []byte) bool { return strings.HasPrefix(string(key), wildcardLabel) }

func sameName(a, b *Name) bool {
	return a.Registry == b.Registry && a.ShortName == b.ShortName && a.Namespace == b.Namespace &&
		slices.EqualFunc(a.Addrs, b.Addrs, func(x, y netip.Addr) bool { return x == y.Unmap() }) && slices.Equal(a.AltHosts, b.AltHosts)
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

// maxBadNames bounds the error of a table: enough to mend what is wrong, short enough for a NACK.
const maxBadNames = 10

func joinBad(bad []error) error {
	if len(bad) == 0 {
		return nil
	}
	slices.SortFunc(bad, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	more := ""
	if len(bad) > maxBadNames {
		more = fmt.Sprintf("; and %d more", len(bad)-maxBadNames)
		bad = bad[:maxBadNames]
	}
	texts := make([]string, len(bad))
	for i, err := range bad {
		texts[i] = err.Error()
	}
	return fmt.Errorf("name table: %s%s", strings.Join(texts, "; "), more)
}

// quoted shortens a name that is too long to show.
func quoted(host string) string {
	const most = 80
	if len(host) > most {
		return fmt.Sprintf("%q… (%d octets)", host[:most], len(host))
	}
	return fmt.Sprintf("%q", host)
}
