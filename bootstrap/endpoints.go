package bootstrap

import (
	"net"
	"strings"
)

// endpoints decides where istiod and its CA are, and what their certificates must be made out to.
//
// The order for the CA is that of istio-start.sh: CA_ADDR, PILOT_ADDRESS, ISTIO_PILOT_PORT, istiod.<namespace>.svc:15012. An
// istiod.address of wingman.yaml comes right after CA_ADDR. The last resort is the default only if ISTIO_SYSTEM_NAMESPACE chose
// it: else it is the discovery address, which is what pilot-agent itself falls back to.
func (l *loader) endpoints() {
	c := l.c
	fallback := l.source("istiod.namespace")
	fallback.Value = "istiod." + c.systemNamespace + ".svc:15012"
	discovery := l.source("istiod.address")
	if c.Discovery.Address == "" {
		discovery = fallback
		c.Discovery.Address = fallback.Value
		l.setAs("istiod.address", fallback)
	}

	explicit := l.isSet("istiod.caAddress")
	if !explicit {
		ca := discovery
		pilot := l.pick(pilotAddress)
		if _, own := l.own["istiod.address"]; !own {
			if pilot.rank != rankBuiltin {
				ca = Setting{Istio: pilot.key, Value: pilot.text, File: pilot.file, Line: pilot.line}
			} else if l.isSet("istiod.namespace") {
				ca = fallback
			}
		}
		c.CA.Address = ca.Value
		l.setAs("istiod.caAddress", ca)
	}

	c.Discovery.ServerName = c.serverName(c.Discovery.Address, c.san)
	c.CA.ServerName = c.serverName(c.CA.Address, "")
	if !explicit || c.CA.Address == c.Discovery.Address { // ISTIOD_SAN is istiod's name, not that of another CA
		c.CA.ServerName = c.serverName(c.CA.Address, c.san)
	}
}

// pilotAddress are the variables that istio-start.sh reads the address of istiod from.
var pilotAddress = setting{key: "istiod.address", istio: []string{"ISTIO_PILOT_PORT", "PILOT_ADDRESS"}}

// setAs records the setting at key with the value and the place of another.
func (l *loader) setAs(key string, s Setting) {
	s.Key = key
	l.c.settings = append(l.c.settings, s)
}

// serverName is the name to expect in the certificate of a server: san, else its host. What is on localhost is a tunnel.
func (c *Config) serverName(address, san string) string {
	if san != "" {
		return san
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return ""
	}
	if host == "localhost" {
		return "istiod." + c.systemNamespace + ".svc"
	}
	return strings.TrimSuffix(host, ".")
}
