package bootstrap

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
)

// addresses allows one instance address per family.
func (l *loader) addresses() {
	ips := l.c.InstanceIPs
	if len(ips) > 2 || len(ips) == 2 && ips[0].Is4() == ips[1].Is4() {
		l.refuse(Error, "workload.addresses", quote(l.source("workload.addresses").Value), "at most one IPv4 and one IPv6 address", "")
	}
}

// capture completes the rules' part from other settings and refuses what Istio's tool would take and misapply.
func (l *loader) capture() {
	c := &l.c.Capture
	l.c.placeDNS()
	c.DualStack, c.DNSPort = l.c.DualStack, l.c.DNS.Listen.Port()
	if len(c.OwnerGroups) > 64 {
		l.refuse(Error, "rules.groups", fmt.Sprintf("%d groups", len(c.OwnerGroups)), "at most 64", "a rule cannot hold more")
	}
	for key, groups := range map[string][]string{"rules.groups": c.OwnerGroups, "rules.excludeGroups": c.OwnerGroupsExclude} {
		for _, name := range groups {
			if _, err := LookupGroup(l.c.Root, name); err != nil {
				l.refuse(Error, key, quote(name), "a group of this machine, or a gid", "")
			}
		}
	}
	for key, cidrs := range map[string][]netip.Prefix{"rules.outboundCIDRs": c.OutboundCIDRs, "rules.outboundExcludeCIDRs": c.OutboundExcludeCIDRs} {
		four := slices.ContainsFunc(cidrs, func(p netip.Prefix) bool { return p.Addr().Is4() })
		six := slices.ContainsFunc(cidrs, func(p netip.Prefix) bool { return p.Addr().Is6() })
		if four && six && !l.c.DualStack {
			l.refuse(Warning, key, "CIDRs of both families without dualStack", "those of one", "only this machine's own family gets rules; set dualStack for both")
		}
	}
	if c.TProxyMark == envoysMark {
		l.refuse(Error, "rules.tproxyMark", fmt.Sprint(c.TProxyMark), "another mark", "Istio marks Envoy's own connections with it")
	}
	for key, ids := range map[string][]uint32{"rules.proxyUID": append([]uint32{c.ProxyUID}, c.MoreUIDs...), "rules.proxyGID": append([]uint32{c.ProxyGID}, c.MoreGIDs...)} {
		if l.isSet(key) && slices.Contains(ids, 0) {
			l.refuse(Error, key, "0", "the id of a user that is not root", "the traffic of root could not be told from Envoy's")
		}
	}
	l.captureWithoutEffect()
	if l.c.Identity.GraceRatio-l.c.Identity.GraceJitter <= 0 || l.c.Identity.GraceRatio+l.c.Identity.GraceJitter >= 1 {
		l.refuse(Error, "identity.graceJitter", quote(l.source("identity.graceJitter").Value), "less than graceRatio, and less than what is left of it to 1", "")
	}
}

// envoysMark is the mark that Istio's configuration has Envoy set on its own connections.
const envoysMark = 1338

// captureWithoutEffect warns of settings that others make void.
func (l *loader) captureWithoutEffect() {
	c := l.c.Capture
	void := func(key, found, expected, hint string) {
		if l.isSet(key) {
			l.refuse(Warning, key, found, expected, hint)
		}
	}
	if len(c.InboundExcludePorts) > 0 && !c.InboundAll {
		void("rules.inboundExcludePorts", "excluded ports beside a list of captured ones", `inboundPorts "*"`, "they count only with it; take them out of the list instead")
	}
	if len(c.OwnerGroupsExclude) > 0 && !c.OwnerGroupsAll {
		void("rules.excludeGroups", "excluded groups beside a list of captured ones", `groups "*"`, "they count only with it; take them out of the list instead")
	}
	if c.Mode == "NONE" && (c.Level == "ports" || c.Level == "all") {
		void("capture", c.Level+" with rules.mode NONE", "REDIRECT or TPROXY", "NONE captures no TCP at all")
	}
	if c.Level == "dns" && !l.c.DNS.Capture {
		void("capture", "dns while dns.capture is false", "dns.capture: true", "nothing is captured")
	}
	if l.c.DNS.Mode == DNSResolved {
		switch {
		case !l.c.DNS.Capture:
			void("dns.mode", "resolved while dns.capture is false", "dns.capture: true", "mesh names are not registered")
		case c.Level == "none":
			void("dns.mode", "resolved while capture is none", "another level of capture", "mesh names are not registered")
		}
		if l.c.DNS.CaptureAll {
			void("dns.captureAll", "true with dns.mode resolved", "false", "no query is redirected then")
		}
	}
	for key, cidrs := range map[string][]netip.Prefix{"rules.outboundCIDRs": c.OutboundCIDRs} {
		if len(cidrs) > 0 && !l.c.DualStack && !slices.ContainsFunc(cidrs, func(p netip.Prefix) bool { return p.Addr().Is4() }) {
			void(key, "CIDRs of IPv6 alone without dualStack", "dualStack: true", "on a machine that has IPv4 too no outbound connection is captured")
		}
	}
}

// users finds the ids of the user whose traffic is never captured. Istio takes 1337 when there is no such user; rules with that
// would capture the agent's own traffic, so here none is taken.
func (l *loader) users() {
	c := &l.c.Capture
	uid, gid, err := LookupUser(l.c.Root, c.User)
	byID := l.isSet("rules.proxyUID")
	c.UserKnown = err == nil || byID
	if !byID {
		c.ProxyUID = uid
	}
	if !l.isSet("rules.proxyGID") {
		c.ProxyGID = gid
	}
	if !c.UserKnown {
		l.refuse(Warning, "user", "no user "+quote(c.User)+" on this machine", "one", "without it no capture rules are put in: useradd --system "+c.User)
	}
}

// ownPort is a port that agent or Envoy listens on, and the setting that says so.
type ownPort struct {
	key  string
	port uint16
}

func (l *loader) ownPorts() []ownPort {
	c := l.c
	return []ownPort{
		{"dns.listen", c.DNS.Listen.Port()}, {"status.port", c.Status.Port}, {"status.readinessPort", c.Status.ReadinessPort},
		{"status.prometheusPort", c.Status.PrometheusPort}, {"envoy.adminPort", c.Envoy.AdminPort}, {"rules.proxyPort", c.Capture.ProxyPort},
		{"rules.inboundPort", c.Capture.InboundPort}, {"rules.tunnelPort", c.Capture.TunnelPort},
	}
}

// scrapeTargets refuses an application at a port of agent or Envoy, whose metrics would come twice or in a circle, and one that is
// named twice, whose samples Prometheus would drop.
func (l *loader) scrapeTargets() {
	const key = "metrics.applications"
	seen := map[ScrapeTarget]bool{}
	for _, t := range l.c.Metrics.Applications {
		for _, own := range l.ownPorts() {
			if own.port == t.Port {
				l.refuse(Error, key, "port "+strconv.Itoa(int(t.Port)), "a port of the application", own.key+" has it: the agent would ask itself or Envoy")
			}
		}
		if seen[t] {
			l.refuse(Error, key, quote(strconv.Itoa(int(t.Port))+":"+t.Path)+" twice", "each target once", "")
		}
		seen[t] = true
	}
}

// distinctPorts refuses two listeners on one port.
func (l *loader) distinctPorts() {
	taken := map[uint16]string{}
	for _, p := range l.ownPorts() {
		if other, ok := taken[p.port]; ok && p.port != 0 {
			key := p.key
			if !l.isSet(key) {
				key, other = other, key
			}
			l.refuse(Error, key, fmt.Sprint(p.port), "a port of its own", other+" has it too")
		}
		taken[p.port] = p.key
	}
}

// outputCerts keeps what applications read apart from what it is made of: links into a folder put in that folder would lead to themselves.
func (l *loader) outputCerts() {
	const key = "identity.outputDir"
	if p := l.c.Paths; p.OutputCerts != "" && (inside(p.StateDir, p.OutputCerts) || inside(p.RunDir, p.OutputCerts)) {
		l.refuse(Error, key, quote(l.source(key).Value), "a folder that is not the agent's own, as /var/lib/wingman and /run/wingman are", "")
	}
}

// rootCert checks that the root file holds certificates; dates are checked when it is used.
func (l *loader) rootCert() {
	file := l.c.Paths.RootCert
	problem := Problem{Severity: Error, Key: KeyRootCert, Hint: "copy root-cert.pem of istioctl x workload entry configure here"}
	if to, err := os.Readlink(file); err == nil { // said only if nothing is there
		problem.Hint = "remove the link that is there, to " + to + ", and " + problem.Hint
	}
	src, ok := l.read(file, problem)
	if !ok {
		return
	}
	problem.File, problem.Expected = file, "certificates in PEM"
	count := 0
	rest := src
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		count++
		if block.Type != "CERTIFICATE" {
			problem.Found = "a " + strings.ToLower(block.Type) + " as block " + strconv.Itoa(count)
			l.add(problem)
			return
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			problem.Found = "block " + strconv.Itoa(count) + " that is no certificate"
			l.add(problem)
			return
		}
	}
	switch {
	case strings.Contains(string(rest), "-----BEGIN"):
		problem.Found = "a truncated block after " + strconv.Itoa(count) + " certificates"
	case len(src) == 0:
		problem.Found = "an empty file"
	case count == 0:
		problem.Found = "no certificate"
	default:
		return
	}
	l.add(problem)
}
