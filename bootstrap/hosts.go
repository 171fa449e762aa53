package bootstrap

import (
	"net"
	"net/netip"
	"slices"
	"strings"
)

// ParseHosts reads a file in the form of hosts(5): an address and its names on each line, # begins a comment. Names are lower
// case and without a final dot; addresses of a name keep the file's order, each once. Lines it cannot read are problems of
// severity Warning: the resolver of the C library skips them too.
func ParseHosts(file string, src []byte) (map[string][]netip.Addr, Problems) {
	hosts := map[string][]netip.Addr{}
	var problems Problems
	for i, line := range strings.Split(string(src), "\n") {
		line, _, _ = strings.Cut(line, "#")
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		addr, err := netip.ParseAddr(fields[0])
		if err != nil || len(fields) == 1 {
			problems = append(problems, Problem{Severity: Warning, File: file, Line: i + 1, Found: quote(strings.TrimSpace(line)), Expected: "an address and its names"})
			continue
		}
		addr = addr.Unmap()
		for _, name := range fields[1:] {
			name = strings.ToLower(strings.TrimSuffix(name, "."))
			if name != "" && !slices.Contains(hosts[name], addr) {
				hosts[name] = append(hosts[name], addr)
			}
		}
	}
	return hosts, problems
}

// hosts reads istioctl's hosts file, and what etc/hosts below root says about istiod: the book has operators append the former
// to the latter, and the system's resolver knows nothing of a root folder.
func (l *loader) hosts() map[string][]netip.Addr {
	hosts := map[string][]netip.Addr{}
	if src, ok := l.read(l.c.Paths.Hosts, Problem{}); ok {
		var problems Problems
		hosts, problems = ParseHosts(l.c.Paths.Hosts, src)
		l.add(problems...)
	}
	src, _, err := readFile(l.c.Paths.EtcHosts)
	if err != nil {
		return hosts // the system's business
	}
	system, _ := ParseHosts(l.c.Paths.EtcHosts, src)
	for _, endpoint := range []Endpoint{l.c.Discovery, l.c.CA} {
		host, _, _ := net.SplitHostPort(endpoint.Address)
		host = strings.ToLower(strings.TrimSuffix(host, "."))
		if _, ok := hosts[host]; !ok && len(system[host]) > 0 {
			hosts[host] = system[host]
		}
	}
	return hosts
}
