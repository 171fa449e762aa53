package dnsproxy

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

func TestWhatCannotBeUsedIsLeftOutAlone(t *testing.T) {
	own := TableConfig{Namespace: "ns1", Domain: "svc.cluster.local"}
	with := func(n Name, change func(*Name)) Name { change(&n); return n }
	label, long := strings.Repeat("x", 64), strings.Repeat("abcdefghi.", 26)
	good := external("good.example", "1.1.1.1")
	tests := []struct {
		name string
		bad  []Name
		left string
		want map[string]string // name → addresses
	}{
		{"each is named, in order", []Name{external("b..example", "1.1.1.1"), external("a..example", "1.1.1.1")}, `"a..example": empty label; "b..example": empty label`, nil},
		{"a pod whose name is no label", []Name{kube(label+".jobs", "ns1", "1.1.1.1"), kube("jobs", "ns1", "1.1.1.1")},
			`"` + label + `.jobs.ns1.svc.cl"… (91 octets): label of 64 octets, at most 63`, map[string]string{"jobs": "1.1.1.1", "jobs.ns1": "1.1.1.1"}},
		{"a name over 255 octets, shown in part", []Name{external(long+"example", "1.1.1.1")}, `"` + long[:80] + `"… (267 octets): name of 269 octets, at most 255`, nil},
		{"an empty name", []Name{external("", "1.1.1.1"), external(".", "1.1.1.1")}, `"": empty name; ".": empty name`, nil},
		{"a character that no host name has", []Name{external("a b.example", "1.1.1.1")}, `"a b.example": character ' '`, nil},
		{"an address that is none, one with a zone: the others answer", []Name{
			{Host: "a.example", Addrs: []netip.Addr{netip.MustParseAddr("2.2.2.1"), {}, netip.MustParseAddr("2.2.2.2")}}, external("b.example", "fe80::1%eth0", "::ffff:2.2.2.3"),
			with(external("c.example", "2.2.2.4"), func(n *Name) { n.BadAddrs = []string{"10.0.0.0/8"} }),
		}, `"a.example": address 2 is none; "b.example": address fe80::1%eth0 has a zone; "c.example": "10.0.0.0/8" is no address`,
			map[string]string{"a.example": "2.2.2.1 2.2.2.2", "b.example": "2.2.2.3", "c.example": "2.2.2.4"}},
		{"no address that is one: the name is not the mesh's", []Name{{Host: "a.example", BadAddrs: []string{"x", "y"}}}, `"a.example": "x" is no address, "y" is no address`, map[string]string{"a.example": "-"}},
		{"an alternative host: the name and the other ones answer", []Name{{Host: "a.example", Addrs: addrs("2.2.2.2"), AltHosts: []string{"b..example", "c.example"}}},
			`"a.example": alternative host "b..example": empty label`, map[string]string{"a.example": "2.2.2.2", "c.example": "2.2.2.2"}},
		{"a short name: the name answers", []Name{{Host: "web.ns1.svc.cluster.local", Addrs: addrs("2.2.2.2"), Registry: "Kubernetes", ShortName: "a..b", Namespace: "ns1"}},
			`"web.ns1.svc.cluster.local": short name "a..b": empty label`, map[string]string{"web.ns1.svc.cluster.local": "2.2.2.2", "web.ns1": "-"}},
		{"the same host twice: it answers", []Name{external("a.example", "2.2.2.2"), external("a.example", "2.2.2.3")}, `"a.example": given twice`, map[string]string{"a.example": "2.2.2.2"}},
		{"five faults of one name are told, the rest counted", []Name{{Host: "a.example", BadAddrs: []string{"1", "2", "3", "4", "5", "6", "7"}}},
			`"a.example": "1" is no address, "2" is no address, "3" is no address, "4" is no address, "5" is no address, and 2 more`, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			table, err := NewTable(own, append([]Name{good}, tt.bad...))
			if err != nil {
				t.Fatal(err)
			}
			check := func(table *Table, left string) {
				t.Helper()
				var got []string
				for _, l := range table.LeftOut("") {
					got = append(got, l.String())
				}
				if got := strings.Join(got, "; "); got != left {
					t.Errorf("left out\ngot  %s\nwant %s", got, left)
				}
				if got := answered(table, "good.example"); got != "1.1.1.1" {
					t.Errorf("good.example: got %q", got)
				}
			}
			check(table, tt.left)
			for name, want := range tt.want {
				if got := answered(table, name); got != want {
					t.Errorf("%s: got %q, want %q", name, got, want)
				}
			}
			for host := range table.Hosts() {
				if _, err := appendKey(nil, host); err != nil {
					t.Errorf("%q is among the hosts that answer: %v", host, err)
				}
			}
			// the fault is told as long as it is there
			again, err := table.Update(own, append([]Name{good}, tt.bad...))
			if err != nil {
				t.Fatal(err)
			}
			check(again, tt.left)
			mended, err := table.Update(own, []Name{good})
			if err != nil {
				t.Fatal(err)
			}
			check(mended, "")
		})
	}
	if table, err := NewTable(own, []Name{good, external("a..b", "1.1.1.1"), external("c..d", "1.1.1.1")}); err != nil || fmt.Sprint(table.LeftOut("C*")) != `["c..d": empty label]` {
		t.Errorf("left out by glob: %v, %v", table.LeftOut("C*"), err)
	}
}

// A fault that is mended is not told any more, also when what is left of the name looks as before.
func TestMendedNamesAreWhole(t *testing.T) {
	whole := Name{Host: "web.ns1.svc.cluster.local", Addrs: addrs("1.1.1.1"), Registry: "Kubernetes", Namespace: "ns1"}
	for _, fault := range []func(*Name){
		func(n *Name) { n.AltHosts = []string{"a..b"} }, func(n *Name) { n.ShortName = "a..b" }, func(n *Name) { n.Addrs = append(addrs("fe80::1%eth0"), n.Addrs...) },
		func(n *Name) { n.BadAddrs = []string{"x"} },
	} {
		faulty := whole
		fault(&faulty)
		table, err := NewTable(TableConfig{Domain: "svc.cluster.local"}, []Name{faulty})
		if err != nil || len(table.LeftOut("")) != 1 {
			t.Fatalf("%+v: left out %v, %v; want one", faulty, table.LeftOut(""), err)
		}
		updated, err := table.Update(table.cfg, []Name{whole})
		if err != nil || len(updated.LeftOut("")) != 0 || updated.Len() != 1 {
			t.Errorf("%+v, mended by an update: %d names, left out %v, %v", faulty, updated.Len(), updated.LeftOut(""), err)
		}
		changed, err := table.Change(table.cfg, nil, []Name{whole})
		if err != nil || len(changed.LeftOut("")) != 0 || changed.Len() != 1 {
			t.Errorf("%+v, mended by a change: %d names, left out %v, %v", faulty, changed.Len(), changed.LeftOut(""), err)
		}
		if len(table.LeftOut("")) != 1 {
			t.Errorf("the table before has changed: %v", table.LeftOut(""))
		}
	}
}

func TestUnusableTableConfigs(t *testing.T) {
	for want, cfg := range map[string]TableConfig{
		`domain "svc..local": empty label`: {Domain: "svc..local"},
		`namespace "a..b": empty label`:    {Namespace: "a..b", Domain: "svc.cluster.local"},
	} {
		if _, err := NewTable(cfg, nil); err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
}
