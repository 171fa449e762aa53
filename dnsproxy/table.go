package dnsproxy

import (
	"hash/maphash"
	"iter"
	"net/netip"
	"path"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// tableTTL is the life of an answer from the table, positive or negative, in seconds: low, because the next push may
// change it. Istio pkg/dns/client/dns.go, defaultTTLInSeconds.
const tableTTL = 30

// kubernetesRegistry marks the names that have short forms. Istio pilot/pkg/serviceregistry/provider.
const kubernetesRegistry = "Kubernetes"

// Name is one entry of Istio's NameTable (pkg/dns/proto/nds.proto).
type Name struct {
	Host      string       // fully qualified, final dot optional, any letter case; "*." in front makes a wildcard
	Addrs     []netip.Addr // answers, not to be changed any more; a name without any is not the mesh's and is asked upstream, as Istio does
	Registry  string       // "Kubernetes" has short forms; any other value is stored and shown only
	ShortName string       // "webapp", or "mysql-0.mysql" for a stateful pod
	Namespace string
	AltHosts  []string // further names with the same answers
	BadAddrs  []string // what stood among the addresses and is none: only told, see Table.LeftOut
}

// TableConfig says for whom a table answers.
type TableConfig struct {
	Namespace string // the proxy's own: its services answer to their short name alone
	Domain    string // suffix of the cluster's services, "svc.cluster.local"; the namespace in front of it is cut off. Empty: no short forms
	Version   string // of the push, for people to read
	NoIPv6    bool   // the mesh carries no IPv6 on this machine: AAAA of mesh names is NODATA
}

// Table maps names to answers. It is immutable and safe for concurrent use; the nil table knows no name.
type Table struct {
	cfg    TableConfig
	domain []byte // key of the domain; nil: no short forms
	cuts   []int  // offsets in domain where its labels begin
	own    []byte // key of namespace.domain; nil: no names of one's own namespace

	services  []*service // one per Name that has addresses, in no order
	names     sharded[string, *node]
	addrs     sharded[netip.Addr, []*service] // candidates for PTR, best first
	wildcards int                             // names that begin with "*."
	leftOut   map[string]string               // host → what of it cannot be used
}

// service is a Name with its answers in wire form, each record's owner being a pointer to the question's name.
type service struct {
	Name
	key     string
	a, aaaa []byte // whole resource records of aSize and aaaaSize octets
}

// node is a place in the tree of names. A node without an owner is an empty non-terminal: it exists because of the
// names below it (RFC 8020 section 2).
type node struct {
	owners   []claim // best first
	children int     // nodes directly below
	build    uint64  // the build that made it; only that build may change it
}

// claim is a service's wish to own a name.
type claim struct {
	service *service
	alias   bool // not by its host
	full    bool // this is the name that its short forms are short for
}

func (n *node) service() *service {
	if n == nil || len(n.owners) == 0 {
		return nil
	}
	return n.owners[0].service
}

// shortened is the service whose short forms are short for this name.
func (n *node) shortened() *service {
	if n == nil || len(n.owners) == 0 || !n.owners[0].full {
		return nil
	}
	return n.owners[0].service
}

// hashSeed spreads keys over shards; any value will do, for all tables alike.
var hashSeed = maphash.MakeSeed()

func (t *Table) node(key []byte) *node {
	return t.names[maphash.Bytes(hashSeed, key)%shardCount][string(key)]
}

// rule says by what a question was found to be the mesh's.
type rule string

const (
	ruleNone     rule = ""
	ruleExact    rule = "exact"
	ruleShort    rule = "short form"
	ruleWildcard rule = "wildcard"
	rulePTR      rule = "address"

	// by these a question is not the table's, but answered here
	ruleSearch      rule = "search list"
	ruleNonTerminal rule = "non-terminal"
	ruleLocalhost   rule = "localhost"
)

// match finds the owner of the name whose key is buf[:n]; what lies beyond n is scratch. The exact name wins over a short
// form, a short form over a wildcard, the longest wildcard over others. Never allocates.
func (t *Table) match(buf *[2 * maxName]byte, n int) (*service, rule) {
	if s := t.node(buf[:n]).service(); s != nil {
		return s, ruleExact
	}
	if n == 0 {
		return nil, ruleNone
	}
	if t.domain != nil {
		if s := t.matchShort(buf, n); s != nil {
			return s, ruleShort
		}
	}
	if t.wildcards > 0 {
		if s := t.matchWildcard(buf, n); s != nil {
			return s, ruleWildcard
		}
	}
	return nil, ruleNone
}

// matchShort completes the name as the search list of a pod would: what is there of the cluster's domain is kept, the
// rest appended (name.namespace, name.namespace.svc, name.namespace.svc.cluster), at last the own namespace (name).
// Only Kubernetes services have such forms. Istio pkg/dns/client/dns.go, generateAltHosts.
func (t *Table) matchShort(buf *[2 * maxName]byte, n int) *service {
	for k := len(t.cuts) - 1; k >= 0; k-- {
		there, missing := t.domain[:t.cuts[k]], t.domain[t.cuts[k]:]
		if n+len(missing) >= maxName || n <= len(there) || string(buf[n-len(there):n]) != string(there) {
			continue
		}
		if s := t.node(buf[:n+copy(buf[n:], missing)]).shortened(); s != nil {
			return s
		}
	}
	if t.own == nil || n+len(t.own) >= maxName {
		return nil
	}
	return t.node(buf[:n+copy(buf[n:], t.own)]).shortened()
}

// matchWildcard tries "*" in place of one label, of two, and so on. The name right under the wildcard's dot, its apex,
// is thereby never matched. Unlike RFC 4592 section 2.2.1 a nearer existing name does not end the search: Istio's proxies
// match hosts this way, and DNS must agree with them.
func (t *Table) matchWildcard(buf *[2 * maxName]byte, n int) *service {
	key := buf[n : n+copy(buf[n:], buf[:n])] // labels are overwritten on the way up
	for at := 0; at < n; {
		at += 1 + int(key[at])
		copy(key[at-len(wildcardLabel):], wildcardLabel)
		if s := t.node(key[at-len(wildcardLabel):]).service(); s != nil {
			return s
		}
	}
	return nil
}

// exists reports whether the key, not a name of the mesh itself, has names of the mesh below it, by their host names, by
// their short forms or by their addresses' names. Such a name must not be answered by NXDOMAIN: that would deny what is below it (RFC 8020).
func (t *Table) exists(key []byte) bool {
	if t == nil {
		return false
	}
	if t.node(key) != nil {
		return true
	}
	if prefix, ok := reversePrefix(key); ok {
		return t.hasAddr(prefix)
	}
	if t.domain == nil {
		return false
	}
	for k := len(t.cuts) - 1; k >= 0; k-- {
		there, missing := t.domain[:t.cuts[k]], t.domain[t.cuts[k]:]
		if len(key) >= len(there) && isBelow(key, there) && t.node(slices.Concat(key, missing)) != nil {
			return true
		}
	}
	return false
}

// hasAddr reports whether an address within prefix has a name. It looks at all of them: few questions are for such names.
func (t *Table) hasAddr(prefix netip.Prefix) bool {
	for i := range t.addrs {
		for addr := range t.addrs[i] {
			if prefix.Contains(addr) {
				return true
			}
		}
	}
	return false
}

// find is match for a key of its own.
func (t *Table) find(key []byte) (*service, rule) {
	if t == nil || len(key) >= maxName {
		return nil, ruleNone
	}
	var buf [2 * maxName]byte
	return t.match(&buf, copy(buf[:], key))
}

// Lookup answers one question from the table.
//
// name is in presentation format, the final dot optional, in any letter case (RFC 4343); records carry it as given, a TTL
// of 30 s, and keep the table's order. found reports whether the mesh knows the name at all, for any qtype: found with no
// records means NODATA (RFC 2308 section 2.2), and the caller must not ask upstream. Of the types, A, AAAA and, for names
// under in-addr.arpa and ip6.arpa, PTR have records, and ANY those of one of them. Never blocks, never fails, safe for concurrent use.
func (t *Table) Lookup(name string, qtype uint16) (records []dns.RR, found bool) {
	key, err := keyOf(name)
	if err != nil {
		return nil, false
	}
	s, by := t.resolve(key)
	if s == nil {
		return nil, false
	}
	return t.records(s, by, dns.Fqdn(name), qtype), true
}

// resolve finds the owner of a key: a name, or the reverse name of an address of the mesh.
func (t *Table) resolve(key []byte) (*service, rule) {
	if t == nil {
		return nil, ruleNone
	}
	if s, by := t.find(key); s != nil {
		return s, by
	}
	if addr, ok := reverseAddr(key); ok {
		if candidates := t.addrs.get(addr); len(candidates) > 0 {
			return candidates[0], rulePTR
		}
	}
	return nil, ruleNone
}

// records are the answers that s has for a question of type qtype under the given owner name.
func (t *Table) records(s *service, by rule, owner string, qtype uint16) []dns.RR {
	if qtype == dns.TypeANY {
		qtype = s.anyType(by)
	}
	header := dns.RR_Header{Name: owner, Rrtype: qtype, Class: dns.ClassINET, Ttl: tableTTL}
	if by == rulePTR {
		if qtype != dns.TypePTR {
			return nil
		}
		return []dns.RR{&dns.PTR{Hdr: header, Ptr: dns.Fqdn(s.Host)}}
	}
	var rrs []dns.RR
	for _, addr := range s.Addrs {
		addr = addr.Unmap()
		switch {
		case qtype == dns.TypeA && addr.Is4():
			rrs = append(rrs, &dns.A{Hdr: header, A: addr.AsSlice()})
		case qtype == dns.TypeAAAA && addr.Is6() && !t.cfg.NoIPv6:
			rrs = append(rrs, &dns.AAAA{Hdr: header, AAAA: addr.AsSlice()})
		}
	}
	return rrs
}

// anyType is the type that a question for any is answered with: one of those there are (RFC 8482 section 4.1).
func (s *service) anyType(by rule) uint16 {
	switch {
	case by == rulePTR:
		return dns.TypePTR
	case len(s.a) > 0:
		return dns.TypeA
	}
	return dns.TypeAAAA
}

// Version is the TableConfig's.
func (t *Table) Version() string {
	if t == nil {
		return ""
	}
	return t.cfg.Version
}

// Len is the number of names that answer, short forms not counted.
func (t *Table) Len() int {
	if t == nil {
		return 0
	}
	return len(t.services)
}

// Hosts yields every name of the entries that answer, alternative ones included, as the control plane wrote them and in no order.
func (t *Table) Hosts() iter.Seq[string] {
	return func(yield func(string) bool) {
		if t == nil {
			return
		}
		for _, s := range t.services {
			if !yield(s.Host) {
				return
			}
			for _, alt := range s.AltHosts {
				if !yield(alt) {
					return
				}
			}
		}
	}
}

// Names returns the entries whose host matches glob (path.Match syntax on lower case; "" is all), sorted by host. The
// entries' slices belong to the table.
func (t *Table) Names(glob string) ([]Name, error) {
	if _, err := path.Match(glob, ""); err != nil {
		return nil, err
	}
	if t == nil {
		return nil, nil
	}
	var names []Name
	for _, s := range t.services {
		if matches(glob, s.Host) {
			names = append(names, s.Name)
		}
	}
	slices.SortFunc(names, func(a, b Name) int { return strings.Compare(a.Host, b.Host) })
	return names, nil
}

func matches(glob, host string) bool {
	if glob == "" {
		return true
	}
	ok, _ := path.Match(strings.ToLower(glob), strings.ToLower(host))
	return ok
}
