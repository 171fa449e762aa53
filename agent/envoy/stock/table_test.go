package stock

import (
	"fmt"
	"strings"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stream/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/common/matching/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/composite/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/filter_chain/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/dubbo_proxy/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/generic_proxy/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/set_filter_state/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/thrift_proxy/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/udp/dns_filter/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/udp/udp_proxy/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/http_11_proxy/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/internal_upstream/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/proxy_protocol/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/quic/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/starttls/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tap/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tcp_stats/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
)

// passedOver are messages and fields that lead to something of interest and are not followed, each with its reason.
var passedOver = map[string]string{
	"envoy.extensions.filters.network.dubbo_proxy.v3.DubboProxy":                 dubbo,
	"envoy.extensions.filters.network.dubbo_proxy.v3.MultipleRouteConfiguration": dubbo,
}

const dubbo = "Dubbo borrows the weights of HTTP's routes; it has no HTTP filters that a route could configure"

// Any field of Envoy's API through which a filter, an access logger, an ALPN list or a route's filter configuration can be reached must be in
// the table, and what is in the table must be what it is taken for.
func TestTableMatchesEnvoysAPI(t *testing.T) {
	seen := map[string]bool{}
	var check func(d protoreflect.MessageDescriptor, m *message)
	check = func(d protoreflect.MessageDescriptor, m *message) {
		if key := fmt.Sprintf("%s %p", d.FullName(), m); seen[key] {
			return
		} else {
			seen[key] = true
		}
		for num, s := range m.slots {
			fd := d.Fields().ByNumber(protoreflect.FieldNumber(num))
			if s == (slot{}) {
				continue
			}
			if fd == nil {
				t.Errorf("%s has no field %d", d.FullName(), num)
				continue
			}
			if problem := mismatch(s, fd); problem != "" {
				t.Errorf("%s (%d): %s", fd.FullName(), num, problem)
				continue
			}
			if s.to != nil {
				check(fd.Message(), s.to)
			}
		}
		for i := range d.Fields().Len() {
			fd := d.Fields().Get(i)
			if _, meant := passedOver[string(fd.FullName())]; meant || m.slot(fd.Number()).do != pass {
				continue
			}
			if why, leads := interesting(fd, map[protoreflect.FullName]bool{}); leads {
				t.Errorf("%s (%d) is passed over and leads to %s", fd.FullName(), fd.Number(), why)
			}
		}
	}
	check((&discoveryv3.Resource{}).ProtoReflect().Descriptor(), &deltaResource)
	for name, m := range types {
		d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(name))
		if err != nil {
			t.Errorf("the table has a type that Envoy's API has not: %v", err)
			continue
		}
		check(d.(protoreflect.MessageDescriptor), m)
	}
}

// Every message that can stand in an Any and leads to something must be among the types.
func TestTableHasEveryTransportSocketAndFilter(t *testing.T) {
	inside := map[protoreflect.FullName]bool{} // messages that are fields of others: they do not stand in an Any
	protoregistry.GlobalFiles.RangeFiles(func(f protoreflect.FileDescriptor) bool {
		for i := range f.Messages().Len() {
			m := f.Messages().Get(i)
			for j := range m.Fields().Len() {
				if d := m.Fields().Get(j).Message(); d != nil && d.ParentFile() == f {
					inside[d.FullName()] = true
				}
			}
		}
		return true
	})
	protoregistry.GlobalFiles.RangeFiles(func(f protoreflect.FileDescriptor) bool {
		if !strings.HasPrefix(string(f.Package()), "envoy.extensions.") {
			return true
		}
		for i := range f.Messages().Len() {
			m := f.Messages().Get(i)
			name := string(m.FullName())
			if _, meant := passedOver[name]; meant || inside[m.FullName()] || types[name] != nil {
				continue
			}
			for j := range m.Fields().Len() {
				if why, leads := interesting(m.Fields().Get(j), map[protoreflect.FullName]bool{}); leads {
					t.Errorf("%s is not among the types and leads by %s to %s", name, m.Fields().Get(j).Name(), why)
				}
			}
		}
		return true
	})
}

// mismatch says how a field of the API differs from what s takes it for.
func mismatch(s slot, fd protoreflect.FieldDescriptor) string {
	is := func(ok bool, want string) string {
		if ok {
			return ""
		}
		return "is not " + want
	}
	holdsAny := fd.Message() != nil && fd.Message().FullName() == "google.protobuf.Any"
	switch s.do {
	case pass:
		return is(s.note != 0, "noted")
	case nest:
		return is(fd.Message() != nil && !holdsAny, "a message")
	case extension, optional:
		return is(holdsAny && !fd.IsList(), "one Any")
	case filter, httpRequest:
		return is(fd.IsList() && fd.Message() != nil || fd.IsMap(), "a list of messages")
	case typeURLs:
		return is(fd.Name() == "type_urls" && fd.IsList(), "type_urls")
	case alpn:
		return is(fd.Name() == "alpn_protocols" && fd.IsList() && fd.Kind() == protoreflect.StringKind, "a list of protocols")
	case factory:
		return is(fd.Name() == "factory_key" && fd.Kind() == protoreflect.StringKind, "a factory's name")
	case override:
		return is(fd.Message() != nil && fd.Message().FullName() == "envoy.config.core.v3.Metadata", "Metadata")
	}
	return "unknown action"
}

// wanted are messages that Istio's extensions stand in.
var wanted = map[protoreflect.FullName]bool{
	"envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter": true,
	"envoy.config.listener.v3.Filter":                                        true,
	"envoy.config.listener.v3.ListenerFilter":                                true,
	"envoy.config.cluster.v3.Filter":                                         true,
	"envoy.config.accesslog.v3.AccessLog":                                    true,
	"envoy.config.core.v3.TransportSocket":                                   true,
}

func interesting(fd protoreflect.FieldDescriptor, on map[protoreflect.FullName]bool) (why string, yes bool) {
	if fd.Name() == "alpn_protocols" || fd.Name() == "typed_per_filter_config" {
		return string(fd.FullName()), true
	}
	d := fd.Message()
	if d == nil {
		return "", false
	}
	if wanted[d.FullName()] {
		return string(d.FullName()), true
	}
	if on[d.FullName()] {
		return "", false
	}
	on[d.FullName()] = true
	for i := range d.Fields().Len() {
		if why, yes := interesting(d.Fields().Get(i), on); yes {
			return why, true
		}
	}
	return "", false
}
