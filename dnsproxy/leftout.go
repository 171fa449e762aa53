package dnsproxy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// LeftOut is a name that the control plane sent and that a table does not have, or has without what cannot be used of it. Istio hands on
// what it is told: the name of a pod with a subdomain is a label of up to 253 octets (pilot/pkg/serviceregistry/kube/controller/endpoint_builder.go).
// One such name must not cost the others, so nothing else of the table depends on it. Istio's agent serves the same rest
// (pkg/dns/client/dns.go, BuildAlternateHosts), and keeps names that nobody can ask for.
type LeftOut struct {
	Host string // as the control plane wrote it
	Why  string // one part of a sentence for each fault
}

func (l LeftOut) String() string { return quoted(l.Host) + ": " + l.Why }

// LeftOut is what could not be used of the names that the table is made of, sorted by host: of those whose host matches glob, see Names.
func (t *Table) LeftOut(glob string) []LeftOut {
	if t == nil {
		return nil
	}
	var list []LeftOut
	for host, why := range t.leftOut {
		if matches(glob, host) {
			list = append(list, LeftOut{host, why})
		}
	}
	slices.SortFunc(list, func(a, b LeftOut) int { return strings.Compare(a.Host, b.Host) })
	return list
}

// givenTwice is the fault of a host that is there already; one of the two stays.
const givenTwice = "given twice"

// mostFaults of one name are told.
const mostFaults = 5

// leaveOut notes that a name is not in the table, or not all of it.
func (b *build) leaveOut(host string, why ...string) {
	if more := len(why) - mostFaults; more > 0 {
		why = append(why[:mostFaults:mostFaults], fmt.Sprintf("and %d more", more))
	}
	b.ownLeftOut()
	b.leftOut[host] = strings.Join(why, ", ")
}

// takeBack forgets what was left out of a host.
func (b *build) takeBack(host string) {
	if _, ok := b.leftOut[host]; ok {
		b.ownLeftOut()
		delete(b.leftOut, host)
	}
}

func (b *build) ownLeftOut() {
	if !b.ownLeft {
		b.leftOut, b.ownLeft = cloned(b.leftOut), true
	}
}

// isNobodys reports a name that is no one's to answer for, without being wrong. Istio's agent ignores it too.
func (n *Name) isNobodys() bool {
	return n.Host == "*" || n.Host == "*." || len(n.Addrs) == 0 && len(n.BadAddrs) == 0
}

// newService prepares the answers of a name whose key is given, without what cannot be used of it; nil if no address is left.
func (b *build) newService(name *Name, key string) *service {
	s := &service{Name: *name, key: key}
	var why []string
	for _, text := range s.BadAddrs {
		why = append(why, quoted(text)+" is no address")
	}
	if slices.ContainsFunc(s.Addrs, func(a netip.Addr) bool { return !a.IsValid() || a.Zone() != "" || a.Is4In6() }) {
		s.Addrs = make([]netip.Addr, 0, len(name.Addrs)) // the caller's stay
		for i, addr := range name.Addrs {
			switch {
			case !addr.IsValid():
				why = append(why, fmt.Sprintf("address %d is none", i+1))
			case addr.Zone() != "":
				why = append(why, fmt.Sprintf("address %s has a zone", addr))
			default:
				s.Addrs = append(s.Addrs, addr.Unmap())
			}
		}
	}
	var bad []string
	for _, alt := range s.AltHosts {
		if _, err := appendKey(nil, alt); err != nil {
			bad = append(bad, alt)
			why = append(why, fmt.Sprintf("alternative host %s: %v", quoted(alt), err))
		}
	}
	if bad != nil {
		s.AltHosts = slices.DeleteFunc(slices.Clone(s.AltHosts), func(alt string) bool { return slices.Contains(bad, alt) })
	}
	if _, err := b.fullKey(s); err != nil {
		s.ShortName = ""
		why = append(why, err.Error())
	}
	if why != nil {
		b.leaveOut(name.Host, why...)
	}
	if len(s.Addrs) == 0 {
		return nil
	}
	s.a, s.aaaa = addressRecords(s.Addrs)
	return s
}

// quoted shortens a name that is too long to show.
func quoted(host string) string {
	const most = 80
	if len(host) > most {
		return fmt.Sprintf("%q… (%d octets)", host[:most], len(host))
	}
	return fmt.Sprintf("%q", host)
}
