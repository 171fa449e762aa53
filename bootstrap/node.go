package bootstrap

import "net/netip"

// NodeFacts is what the node says about the machine, beyond its files.
type NodeFacts struct {
	Hostname string       // short or fully qualified; used when POD_NAME does not say another
	Addrs    []netip.Addr // of this instance, the one of the WorkloadEntry first
	Envoy    bool         // Envoy runs here, so that others may send mTLS
}

// Node is what istiod is told about this proxy.
type Node struct {
	ID       string
	Cluster  string
	Locality Locality
	Metadata map[string]any // as decoded JSON: strings, float64, bool, []any and map[string]any only
}

// Locality is where the machine stands; all empty when no label says so.
type Locality struct{ Region, Zone, SubZone string }

// Node returns the node of this machine. It is pure.
func (c *Config) Node(f NodeFacts) Node { return Node{} }
