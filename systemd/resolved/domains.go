package resolved

import (
	"cmp"
	"slices"
	"strings"
)

// MaxDomains is how many domains systemd-resolved takes for a link (LINK_SEARCH_DOMAINS_MAX in src/resolve/resolved-link.h). One more and it forgets them all.
const MaxDomains = 256

// mostNamed bounds how many of the suffixes without a place are named.
const mostNamed = 3

// Names are what the mesh's table answers.
type Names struct {
	Hosts     []string // host names, "*." in front makes a wildcard; any letter case, final dot optional
	Domain    string   // of the cluster's services, "svc.cluster.local"
	Namespace string   // the machine's own: its services have names of one label
}

// A Domain is one of a link's: names that end in it are asked of the link's servers.
type Domain struct {
	Name string // lower case, no final dot
	// Search is whether names of one label are completed by it too.
	Search bool
}

// String is the domain as resolvectl shows it.
func (d Domain) String() string {
	if d.Search {
		return d.Name
	}
	return "~" + d.Name
}

// Domains is what to register for a table.
type Domains struct {
	List []Domain // the most important first, at most MaxDomains
	// LeftOut counts the suffixes that have no place, and Missing names some of them: systemd-resolved asks others for their names.
	LeftOut int
	Missing []string
}

// Covers returns the domain by which systemd-resolved sends a name here; false: it does not. Names of one label come here completed by a search
// domain or not at all.
func (d Domains) Covers(name string) (Domain, bool) {
	name = normal(name)
	var best Domain
	for _, x := range d.List {
		if (name == x.Name || strings.HasSuffix(name, "."+x.Name)) && len(x.Name) > len(best.Name) {
			best = x
		}
	}
	return best, best.Name != "" && strings.Contains(name, ".")
}

// DomainsOf derives the domains to register from the table's names. It is pure.
//
// The cluster's domain stands for all Kubernetes services; below "svc" and "svc.cluster" there is nobody else either. Any other host is a domain by itself, and a
// wildcard is its parent: systemd-resolved knows no finer measure, so the names below a host and the apex of a wildcard come here too, and go on upstream. No two
// hosts are ever drawn together into a parent that the table does not have: it would take foreign names from the link that knows them. What has no place
// then is left out, and said. The short forms "service.namespace", which the search domains complete for most programs anyway, come last: all of them or
// none.
func DomainsOf(n Names) Domains {
	domain, own := normal(n.Domain), normal(n.Namespace)
	var (
		hosts  = map[string]bool{} // suffix → whether it is a wildcard's parent
		shorts = map[string]bool{}
		inside bool // there are names in the cluster's domain
		d      Domains
	)
	for _, host := range n.Hosts {
		host = normal(host)
		suffix, wildcard := strings.CutPrefix(host, "*.")
		if !plain(suffix) {
			d.LeftOut++ // "*" is among them: all there is, not ours to take
			d.Missing = append(d.Missing, host)
			continue
		}
		if domain != "" {
			if rest, ok := strings.CutSuffix(suffix, "."+domain); ok {
				inside = true
				if short, ok := lastTwo(rest); ok && !wildcard {
					shorts[short] = true
				}
				continue
			}
			if suffix == domain {
				inside = true
				continue
			}
		}
		if !wildcard && !strings.Contains(suffix, ".") {
			continue // systemd-resolved asks no server for a name of one label
		}
		hosts[suffix] = hosts[suffix] || wildcard
	}

	if inside {
		if own != "" {
			d.List = append(d.List, Domain{own + "." + domain, true})
		}
		d.List = append(d.List, Domain{domain, true})
		for _, cut := range cuts(domain) {
			d.List = append(d.List, Domain{cut, false})
		}
	}
	fixed := len(d.List)
	for suffix := range hosts {
		if !below(suffix, hosts) {
			d.List = append(d.List, Domain{suffix, false})
		}
	}
	slices.SortFunc(d.List[fixed:], func(a, b Domain) int {
		return cmp.Or(-compareBool(hosts[a.Name], hosts[b.Name]), cmp.Compare(a.Name, b.Name))
	})
	if over := len(d.List) - MaxDomains; over > 0 {
		d.LeftOut += over
		for _, x := range d.List[MaxDomains:] {
			d.Missing = append(d.Missing, x.Name)
		}
		d.List = slices.Clip(d.List[:MaxDomains])
	}
	slices.Sort(d.Missing)
	d.Missing = d.Missing[:min(len(d.Missing), mostNamed)]
	for short := range shorts {
		if _, there := hosts[short]; there || below(short, hosts) {
			delete(shorts, short)
		}
	}
	if d.LeftOut > 0 || len(d.List)+len(shorts) > MaxDomains {
		return d
	}
	at := len(d.List)
	for short := range shorts {
		d.List = append(d.List, Domain{short, false})
	}
	slices.SortFunc(d.List[at:], func(a, b Domain) int { return cmp.Compare(a.Name, b.Name) })
	return d
}

// cuts are what short forms keep of the cluster's domain, "svc" and "svc.cluster" of svc.cluster.local. A domain of another make has none: its first label
// may be anybody's.
func cuts(domain string) (out []string) {
	if !strings.HasPrefix(domain, "svc.") {
		return nil
	}
	for i := range len(domain) {
		if domain[i] == '.' {
			out = append(out, domain[:i])
		}
	}
	return out
}

// lastTwo is the short form of what stands before the cluster's domain: "service.namespace", also for a pod of a stateful set; false: it has none.
func lastTwo(name string) (string, bool) {
	at := strings.LastIndexByte(name, '.')
	if at < 0 {
		return "", false
	}
	if before := strings.LastIndexByte(name[:at], '.'); before >= 0 {
		name = name[before+1:]
	}
	return name, true
}

// plain reports whether a name is of letters, digits, - and _ alone: others would come back from systemd-resolved in another spelling.
func plain(name string) bool {
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return false
		}
	}
	return len(name) <= 253
}

// below reports whether an ancestor of name is among suffixes.
func below[T any](name string, suffixes map[string]T) bool {
	for {
		_, parent, ok := strings.Cut(name, ".")
		if !ok {
			return false
		}
		if _, there := suffixes[parent]; there {
			return true
		}
		name = parent
	}
}

func normal(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}
