package controlplane

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	meshapi "istio.io/api/mesh/v1alpha1"

	"wingman/agent/xds/nds"
)

// SetNames replaces the name table and pushes it to every stream that asked for it. The table is copied.
func (s *Server) SetNames(t *nds.NameTable) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.names = proto.CloneOf(t)
	s.changeLocked(NameTableType)
}

// AddService adds a Kubernetes service of the mesh's domain to the name table and pushes it.
func (s *Server) AddService(namespace, name string, addrs ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := proto.CloneOf(s.names)
	if next.Table == nil {
		next.Table = map[string]*nds.NameInfo{}
	}
	next.Table[name+"."+namespace+".svc."+s.cfg.TrustDomain] = &nds.NameInfo{
		Ips: addrs, Registry: "Kubernetes", Shortname: name, Namespace: namespace,
	}
	s.names = next
	s.changeLocked(NameTableType)
}

// Names makes a name table: host to addresses. A host of the form name.namespace.svc.* is a Kubernetes service, any
// other one external.
func Names(hosts map[string][]string) *nds.NameTable {
	t := &nds.NameTable{Table: map[string]*nds.NameInfo{}}
	for host, addrs := range hosts {
		info := &nds.NameInfo{Ips: addrs, Registry: "External"}
		if parts := strings.SplitN(host, ".", 4); len(parts) > 2 && parts[2] == "svc" {
			info.Registry, info.Shortname, info.Namespace = "Kubernetes", parts[0], parts[1]
		}
		t.Table[host] = info
	}
	return t
}

// BadAddressTable is a table that no client can use: its one entry's address is not an IP address.
func BadAddressTable() *nds.NameTable {
	return Names(map[string][]string{"webapp.istioinaction.svc.cluster.local": {"10.96.97.300"}})
}

// LongNameTable is a table whose one name has 300 bytes, 45 more than DNS can carry (RFC 1035 section 2.3.4).
func LongNameTable() *nds.NameTable {
	label := strings.Repeat("a", 59) + "."
	return Names(map[string][]string{strings.Repeat(label, 5)[:299] + "b": {"10.96.97.98"}})
}

// SetResources replaces all resources of one type and pushes them. The map is from resource name to resource.
func (s *Server) SetResources(typeURL string, resources map[string]*anypb.Any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.resources[typeURL] = maps.Clone(resources)
	s.changeLocked(typeURL)
}

// changeLocked marks a type as changed for every stream that watches it.
func (s *Server) changeLocked(typeURL string) {
	s.version++
	for _, st := range s.streams {
		if st.watches[typeURL] == nil {
			continue
		}
		st.dirty[typeURL] = true
		select {
		case st.push <- struct{}{}:
		default:
		}
	}
	s.wakeLocked()
}

// generateLocked makes the answer for one type; ok is false when istiod would send none.
func (s *Server) generateLocked(typeURL string, w *watch, only []string) (a answer, ok bool, err error) {
	version := fmt.Sprintf("%s/%d", time.Now().UTC().Format(time.RFC3339), s.version)
	a = answer{typeURL: typeURL, version: version, nonce: version + newID()}
	switch {
	case typeURL == NameTableType:
		err = a.add("", s.names) // one resource without a name, in delta too
		return a, true, err
	case typeURL == ProxyConfig:
		if !s.cfg.MultiRoot {
			return answer{}, false, nil
		}
		pc := &meshapi.ProxyConfig{}
		for _, c := range s.authority.bundle {
			pc.CaCertificatesPem = append(pc.CaCertificatesPem, string(encodeCerts(c)))
		}
		err = a.add("", pc)
		return a, true, err
	case !slices.Contains(pushOrder, typeURL) && s.resources[typeURL] == nil:
		return answer{}, false, nil
	}
	have := s.resources[typeURL]
	asked := w.names
	if only != nil && !wildcard(typeURL) {
		asked = setOf(only)
	}
	for _, name := range slices.Sorted(maps.Keys(have)) {
		if wildcard(typeURL) || asked[name] {
			a.resources = append(a.resources, &discoveryv3.Resource{Name: name, Resource: have[name]})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(asked)) {
		if have[name] == nil && typeURL != ExtensionType { // Istio never removes extensions: delta.go, neverRemoveDelta
			a.removed = append(a.removed, name)
		}
	}
	return a, true, nil
}

// add packs a resource as istiod does, maps in the order of their keys (Istio pilot/pkg/util/protoconv, MessageToAny): clients may tell by the
// bytes what has changed.
func (a *answer) add(name string, m proto.Message) error {
	packed := new(anypb.Any)
	if err := anypb.MarshalFrom(packed, m, proto.MarshalOptions{Deterministic: true}); err != nil {
		return fmt.Errorf("pack %s: %w", shortType(a.typeURL), err)
	}
	a.resources = append(a.resources, &discoveryv3.Resource{Name: name, Resource: packed})
	return nil
}

// inPushOrder lists types in istiod's order, those it has no place for at the end.
func inPushOrder(types map[string]bool) []string {
	place := func(typeURL string) int {
		if i := slices.Index(pushOrder, typeURL); i >= 0 {
			return i
		}
		return len(pushOrder)
	}
	return slices.SortedFunc(maps.Keys(types), func(a, b string) int {
		if d := place(a) - place(b); d != 0 {
			return d
		}
		return strings.Compare(a, b)
	})
}
