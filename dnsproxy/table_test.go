package dnsproxy

import (
	"encoding/json"
	"net/netip"
	"os"
	"testing"
)

// nameTable reads a NameTable in protojson, as `wingman dns serve` does.
func nameTable(t testing.TB, file string) []Name {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var pushed struct {
		Table map[string]struct {
			IPs       []netip.Addr
			Registry  string
			ShortName string
			Namespace string
			AltHosts  []string
		}
	}
	if err := json.Unmarshal(text, &pushed); err != nil {
		t.Fatal(err)
	}
	var names []Name
	for host, n := range pushed.Table {
		names = append(names, Name{Host: host, Addrs: n.IPs, Registry: n.Registry, ShortName: n.ShortName, Namespace: n.Namespace, AltHosts: n.AltHosts})
	}
	return names
}

// forum is the table of a VM in namespace forum-services.
func forum(t testing.TB) *Table {
	t.Helper()
	table, err := NewTable(TableConfig{Namespace: "forum-services", Domain: "svc.cluster.local", Version: "v1"}, nameTable(t, "testdata/nametable.json"))
	if err != nil {
		t.Fatal(err)
	}
	return table
}
