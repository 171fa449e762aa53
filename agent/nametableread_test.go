package agent

import (
	"bytes"
	"fmt"
	"net/netip"
	"reflect"
	"testing"

	"google.golang.org/protobuf/proto"

	"wingman/agent/xds/nds"
	"wingman/dnsproxy"
)

// asIstiod is a table as istiod writes it.
func asIstiod(t testing.TB, table map[string]*nds.NameInfo) []byte {
	t.Helper()
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(&nds.NameTable{Table: table})
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestReadNames(t *testing.T) {
	good := asIstiod(t, map[string]*nds.NameInfo{
		"webapp.istioinaction.svc.cluster.local": {Ips: []string{"10.96.97.98", "::ffff:10.0.0.1", "2001:db8::1"}, Registry: "Kubernetes", Shortname: "webapp", Namespace: "istioinaction"},
		"Mixed.example":                          {Ips: []string{"240.240.0.1"}, Registry: "External", Shortname: "other", AltHosts: []string{"a.example", "b.example"}},
		"nobody.example":                         {},
		"odd.example":                            {Ips: []string{"10.96.97.300", "10.0.0.2", "fe80::1%eth0", ""}},
	})
	want := []dnsproxy.Name{
		{Host: "Mixed.example", Addrs: []netip.Addr{netip.MustParseAddr("240.240.0.1")}, Registry: "External", ShortName: "other", AltHosts: []string{"a.example", "b.example"}},
		{Host: "nobody.example"},
		{Host: "odd.example", Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.2")}, BadAddrs: []string{"10.96.97.300", "fe80::1%eth0", ""}},
		{Host: "webapp.istioinaction.svc.cluster.local", Addrs: []netip.Addr{netip.MustParseAddr("10.96.97.98"), netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("2001:db8::1")},
			Registry: "Kubernetes", ShortName: "webapp", Namespace: "istioinaction"},
	}
	if got, ok := readNames(good); !ok || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v, want %+v", got, ok, want)
	}
	first := asIstiod(t, map[string]*nds.NameInfo{"a.example": {}})
	for name, raw := range map[string][]byte{
		"another order of hosts": bytes.Join([][]byte{asIstiod(t, map[string]*nds.NameInfo{"b.example": {}}), first}, nil),
		"a host twice":           bytes.Join([][]byte{first, first}, nil),
		"half a table":           good[:len(good)-1],
		"a field of a later day": {0x0a, 0x09, 0x0a, 0x01, 'a', 0x12, 0x04, 0x32, 0x02, 'x', 'y'},
		"text that is none":      {0x0a, 0x08, 0x0a, 0x01, 'a', 0x12, 0x03, 0x12, 0x01, 0xff},
	} {
		if got, ok := readNames(raw); ok {
			t.Errorf("%s: got %+v, want it left to protobuf", name, got)
		}
	}
}

// FuzzReadNames: what is read off the bytes is what protobuf reads.
func FuzzReadNames(f *testing.F) {
	f.Add(asIstiod(f, map[string]*nds.NameInfo{
		"webapp.istioinaction.svc.cluster.local": {Ips: []string{"10.96.97.98", "::1"}, Registry: "Kubernetes", Shortname: "webapp", Namespace: "istioinaction", AltHosts: []string{"x"}},
		"b.example":                              {Ips: []string{"240.240.0.1"}},
	}))
	f.Add(asIstiod(f, map[string]*nds.NameInfo{"a.example": {Ips: []string{"10.96.97.300", "10.0.0.1"}}}))
	f.Add([]byte{0x0a, 0x00})
	f.Fuzz(func(t *testing.T, raw []byte) {
		got, ok := readNames(raw)
		if !ok {
			return
		}
		var m nds.NameTable
		if err := proto.Unmarshal(raw, &m); err != nil {
			t.Fatalf("%x: protobuf says %v", raw, err)
		}
		want := namesOf(&m)
		if g, w := fmt.Sprint(got), fmt.Sprint(want); g != w {
			t.Fatalf("%x: read %s, protobuf %s", raw, g, w)
		}
	})
}

func BenchmarkRestore(b *testing.B) {
	table := map[string]*nds.NameInfo{}
	for i := range 10_000 {
		short, namespace := fmt.Sprintf("service-%d", i), fmt.Sprintf("namespace-%d", i%100)
		table[short+"."+namespace+".svc.cluster.local"] = &nds.NameInfo{Ips: []string{fmt.Sprintf("10.96.%d.%d", i>>8, i&0xff)}, Registry: "Kubernetes", Shortname: short, Namespace: namespace}
	}
	saved := savedTable{raw: asIstiod(b, table)}
	for b.Loop() {
		names, err := saved.names()
		if err != nil {
			b.Fatal(err)
		}
		if _, err := dnsproxy.NewTable(dnsproxy.TableConfig{Namespace: "forum-services", Domain: "svc.cluster.local"}, names); err != nil {
			b.Fatal(err)
		}
	}
}
