// Package resolved tells systemd-resolved which names this machine's DNS proxy answers, so that nothing has to be redirected.
//
// systemd-resolved keeps servers and domains by network interface. So there is one for the purpose: a veth pair whose ends are both on this
// machine and which carries no packet (link.go). It has the proxy as its only server, the mesh's suffixes as its domains (domains.go, pure), is no default
// route for names, and knows neither LLMNR, mDNS, DNSSEC nor DNS over TLS. Registration.Run compares what systemd-resolved has with that and sets what
// differs, when something tells of a change and every few seconds:
//
//	a start, another table ──► make the link, read, compare ──► set what differs ──► wait for news
//	            ▲                                                                     │
//	            └── systemd-resolved or the bus came or went, the link is gone, time ◄┘
//
// The link is the registration: it stays when this process dies, the next one finds it, and to take it away undoes all (ip link delete wingman-dns).
//
// It leaves to others when to be registered and what the table holds. Goroutines: Run's own, and while it runs one that hears of links and those of
// the bus. Needs CAP_NET_ADMIN for the link; and for systemd-resolved root, or the polkit rule that folder units ships. No files, no ports.
//
// To match: org.freedesktop.resolve1(5) of systemd 246 or later, systemd.network(5) for the meaning of domains.
package resolved
