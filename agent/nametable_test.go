package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"wingman/agent/xds"
	"wingman/agent/xds/nds"
	"wingman/dnsproxy"
)

// push makes a push of a table: host to addresses.
func push(t *testing.T, version string, hosts map[string][]string) xds.Push {
	t.Helper()
	return rawPush(t, version, encodeTable(t, hosts))
}

func encodeTable(t *testing.T, hosts map[string][]string) []byte {
	t.Helper()
	m := &nds.NameTable{Table: map[string]*nds.NameInfo{}}
	for h, ips := range hosts {
		m.Table[h] = &nds.NameInfo{Ips: ips, Registry: "External"}
	}
	raw, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func rawPush(t testing.TB, version string, raw []byte) xds.Push {
	t.Helper()
	return xds.Push{TypeURL: xds.TypeNameTable, Version: version, Nonce: "n" + version,
		Resources: []*anypb.Any{{TypeUrl: xds.TypeNameTable, Value: raw}}}
}

// newTestTables makes tables in a folder of its own; used is called with every table put to use.
func newTestTables(t *testing.T, used func(*dnsproxy.Table)) *tables {
	t.Helper()
	ts := newTables(filepath.Join(t.TempDir(), tableName), slog.New(slog.DiscardHandler), used)
	ts.configure(dnsproxy.TableConfig{Namespace: "forum-services", Domain: "svc.cluster.local"})
	return ts
}

func TestAPushOfWhichNothingCanBeUsedIsRefused(t *testing.T) {
	good := map[string][]string{"a.corp.internal": {"10.0.0.1"}}
	long := strings.Repeat("a", 60) + "." + strings.Repeat("b", 60) + "." + strings.Repeat("c", 60) + "." + strings.Repeat("d", 60) + "." + strings.Repeat("e", 60)
	for _, tc := range []struct {
		name string
		push func(t *testing.T) xds.Push
		want string // part of the refusal
	}{
		{"no entry with an address that is one", func(t *testing.T) xds.Push {
			return push(t, "2", map[string][]string{"bad.corp.internal": {"300.1.1.1"}, "other.corp.internal": {"fe80::1%eth0"}, "empty.corp.internal": {}})
		}, `"bad.corp.internal": "300.1.1.1" is no address; "other.corp.internal": "fe80::1%eth0" is no address`},
		{"nothing but a name of 300 bytes", func(t *testing.T) xds.Push { return push(t, "2", map[string][]string{long: {"10.0.0.2"}}) }, "255"},
		{"bytes that are no NameTable", func(t *testing.T) xds.Push { return rawPush(t, "2", []byte{0xff, 0xff, 0xff}) }, "name table"},
		{"two tables", func(t *testing.T) xds.Push {
			p := push(t, "2", good)
			p.Resources = append(p.Resources, p.Resources[0])
			return p
		}, "2 name tables"},
		{"a resource of another type", func(t *testing.T) xds.Push {
			p := push(t, "2", good)
			p.Resources[0].TypeUrl = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
			return p
		}, "Cluster"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var used []*dnsproxy.Table
			ts := newTestTables(t, func(table *dnsproxy.Table) { used = append(used, table) })
			if err := ts.take(push(t, "1", good)); err != nil {
				t.Fatal(err)
			}
			err := ts.take(tc.push(t))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("take = %v, want a refusal with %q", err, tc.want)
			}
			if len(used) != 1 {
				t.Errorf("%d tables were put to use, want only the good one", len(used))
			}
			if _, version, _, _ := ts.snapshot(); version != "1" {
				t.Errorf("version in use %q, want 1", version)
			}
		})
	}
}

// troubled is a table of four names with what Istio lets through: the label of a pod's name, an alternative host, addresses.
func troubled(t testing.TB, version string, addr string) xds.Push {
	t.Helper()
	return rawPush(t, version, asIstiod(t, map[string]*nds.NameInfo{
		"good.corp.internal":    {Ips: []string{addr}, Registry: "External"},
		"partial.corp.internal": {Ips: []string{"10.0.0.0/8", "10.0.0.9"}, Registry: "External"},
		strings.Repeat("x", 64) + ".jobs.batch.svc.cluster.local": {Ips: []string{"10.0.0.3"}, Registry: "Kubernetes", Shortname: strings.Repeat("x", 64) + ".jobs", Namespace: "batch"},
		"none.corp.internal": {Ips: []string{"nonsense"}, Registry: "External"},
	}))
}

func TestBadEntriesCostNothingButThemselves(t *testing.T) {
	var (
		used *dnsproxy.Table
		log  bytes.Buffer
	)
	ts := newTestTables(t, func(table *dnsproxy.Table) { used = table })
	ts.log = slog.New(slog.NewTextHandler(&log, nil))
	warnings := func() int { return strings.Count(log.String(), "level=WARN") }
	for i, addr := range []string{"10.0.0.1", "10.0.0.2"} { // the second is read by what is different
		if err := ts.take(troubled(t, fmt.Sprint(i), addr)); err != nil {
			t.Fatalf("take = %v, want the good names taken", err)
		}
		for name, want := range map[string]string{"good.corp.internal.": addr, "partial.corp.internal.": "10.0.0.9"} {
			if rrs, _ := used.Lookup(name, dns.TypeA); len(rrs) != 1 || dns.Field(rrs[0], 1) != want {
				t.Errorf("%s: %v, want %s", name, rrs, want)
			}
		}
		if _, found := used.Lookup("none.corp.internal.", dns.TypeA); found {
			t.Error("a name without an address is kept from the company's DNS")
		}
		if _, version, names, _ := ts.snapshot(); version != fmt.Sprint(i) || names != 2 {
			t.Errorf("version %s with %d names in use, want %d with 2", version, names, i)
		}
		got := strings.Join(ts.troubles(), "\n")
		for _, part := range []string{"3 of istiod's names", `"none.corp.internal": "nonsense" is no address`, `"partial.corp.internal": "10.0.0.0/8" is no address`, "label of 64 octets, at most 63"} {
			if !strings.Contains(got, part) {
				t.Errorf("troubles %q, want %q in it", got, part)
			}
		}
	}
	if warnings() != 1 {
		t.Errorf("%d warnings, want one: what is left out has not changed\n%s", warnings(), &log)
	}
	// A restart has the same from the disk.
	next := newTables(string(ts.file), slog.New(slog.DiscardHandler), func(table *dnsproxy.Table) { used = table })
	next.configure(dnsproxy.TableConfig{Namespace: "forum-services", Domain: "svc.cluster.local"})
	ts.write(ts.inUse)
	used = nil
	next.restore()
	if rrs, _ := used.Lookup("good.corp.internal.", dns.TypeA); len(rrs) != 1 || len(next.troubles()) != 1 {
		t.Errorf("restored: %v, troubles %q; want the good names and one trouble", rrs, next.troubles())
	}
	// One fault less is another warning, none is the end of it.
	if err := ts.take(push(t, "3", map[string][]string{"good.corp.internal": {"10.0.0.2"}, "none.corp.internal": {"nonsense"}})); err != nil || warnings() != 2 {
		t.Errorf("%v, %d warnings after another set, want 2\n%s", err, warnings(), &log)
	}
	if err := ts.take(push(t, "4", map[string][]string{"good.corp.internal": {"10.0.0.2"}})); err != nil || warnings() != 2 || len(ts.troubles()) != 0 {
		t.Errorf("%v, %d warnings, troubles %q; want 2 and none", err, warnings(), ts.troubles())
	}
	if !strings.Contains(log.String(), "can be used again") {
		t.Errorf("the end is not logged:\n%s", &log)
	}
}

func TestTroublesNameAFewEntriesAndCountTheRest(t *testing.T) {
	hosts := map[string][]string{"good.corp.internal": {"10.0.0.1"}}
	for _, c := range "abcdefgh" {
		hosts[string(c)+".corp.internal"] = []string{"nonsense"}
	}
	ts := newTestTables(t, func(*dnsproxy.Table) {})
	if err := ts.take(push(t, "1", hosts)); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(ts.troubles(), ""); strings.Count(got, "nonsense") != mostNamed || !strings.HasSuffix(got, "; and 3 more") {
		t.Errorf("troubles %q, want %d entries named and 3 counted", got, mostNamed)
	}
}

func TestEmptyPushKeepsTheTable(t *testing.T) {
	used := 0
	ts := newTestTables(t, func(*dnsproxy.Table) { used++ })
	if err := ts.take(push(t, "1", map[string][]string{"a.corp.internal": {"10.0.0.1"}})); err != nil {
		t.Fatal(err)
	}
	if err := ts.take(xds.Push{TypeURL: xds.TypeNameTable, Version: "2"}); err != nil {
		t.Errorf("take(empty) = %v, want nil: it wants its ACK", err)
	}
	if _, _, names, _ := ts.snapshot(); used != 1 || names != 1 {
		t.Errorf("after an empty push %d names in use, %d builds; want 1 and 1", names, used)
	}
}

func TestTableSurvivesARestart(t *testing.T) {
	ts := newTestTables(t, func(*dnsproxy.Table) {})
	if err := ts.take(push(t, "7", map[string][]string{"a.corp.internal": {"10.0.0.1"}})); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // a stop right after the push
	if err := ts.run(ctx); err != nil {
		t.Fatal(err)
	}
	var restored *dnsproxy.Table
	next := newTables(string(ts.file), slog.New(slog.DiscardHandler), func(table *dnsproxy.Table) { restored = table })
	next.configure(dnsproxy.TableConfig{Namespace: "forum-services", Domain: "svc.cluster.local"})
	next.restore()
	if restored == nil {
		t.Fatal("nothing was restored")
	}
	if source, version, names, _ := next.snapshot(); source != tableDisk || version != "7" || names != 1 {
		t.Errorf("restored %d names of version %q from %s, want 1 of 7 from disk", names, version, source)
	}
	if st, err := os.Stat(string(ts.file)); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("saved table %v, %v; want mode 0600", st.Mode(), err)
	}
}

func TestDamagedTableIsSetAside(t *testing.T) {
	whole := savedTable{version: "1", received: time.Unix(1e9, 0), raw: encodeTable(t, map[string][]string{"a.corp.internal": {"10.0.0.1"}})}.encode()
	flipped := bytes.Clone(whole)
	flipped[len(flipped)-1] ^= 1
	for name, content := range map[string][]byte{
		"truncated": whole[:len(whole)-3], "a bit flipped": flipped, "garbage": []byte("\x00\x01\x02"), "empty": {},
		"another header": bytes.Replace(whole, []byte("/1 "), []byte("/9 "), 1),
	} {
		t.Run(name, func(t *testing.T) {
			used := 0
			ts := newTestTables(t, func(*dnsproxy.Table) { used++ })
			if err := os.WriteFile(string(ts.file), content, 0o600); err != nil {
				t.Fatal(err)
			}
			ts.restore()
			if source, _, _, _ := ts.snapshot(); used != 0 || source != tableNone {
				t.Errorf("a damaged table was put to use (%d, %s)", used, source)
			}
			if _, err := os.Stat(string(ts.file)); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the damaged file is still in the way: %v", err)
			}
			if kept, err := os.ReadFile(string(ts.file) + ".bad"); err != nil || !bytes.Equal(kept, content) {
				t.Errorf("kept for inspection: %d bytes, %v; want the file as it was", len(kept), err)
			}
			// The agent goes on: the next push is used and saved.
			if err := ts.take(push(t, "2", map[string][]string{"b.corp.internal": {"10.0.0.2"}})); err != nil || used != 1 {
				t.Errorf("take after damage = %v, %d tables used; want nil, 1", err, used)
			}
		})
	}
}

func FuzzDecodeTable(f *testing.F) {
	f.Add(savedTable{version: "1", received: time.Unix(1e9, 0), raw: []byte("x")}.encode())
	f.Add([]byte(tableHeader + " \"\" 2001-09-09T01:46:40Z 00\n"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := decodeTable(b)
		if err != nil {
			if !errors.Is(err, errDamagedTable) {
				t.Errorf("error %v does not say that the table is damaged", err)
			}
			return
		}
		again, err := decodeTable(s.encode())
		if err != nil || again.version != s.version || !bytes.Equal(again.raw, s.raw) {
			t.Errorf("decode(encode(%+v)) = %+v, %v", s, again, err)
		}
	})
}

// FuzzNameTable feeds pushes: whatever the bytes are, they are taken in or refused, and what is taken in answers.
func FuzzNameTable(f *testing.F) {
	seed := func(hosts map[string][]string) []byte {
		m := &nds.NameTable{Table: map[string]*nds.NameInfo{}}
		for h, ips := range hosts {
			m.Table[h] = &nds.NameInfo{Ips: ips, Shortname: "webapp", Namespace: "istioinaction", Registry: "Kubernetes", AltHosts: []string{"alt." + h}}
		}
		raw, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		return raw
	}
	f.Add(seed(map[string][]string{"webapp.istioinaction.svc.cluster.local": {"10.96.97.98", "2001:db8::1"}}))
	f.Add(seed(map[string][]string{"*.wild.corp.internal": {"240.240.0.20"}, "Mixed.Case": {"::ffff:10.0.0.1"}}))
	f.Add([]byte{0x0a, 0x03, 0x0a, 0x01, 0x61})
	f.Fuzz(func(t *testing.T, raw []byte) {
		var table *dnsproxy.Table
		ts := newTables(filepath.Join(t.TempDir(), tableName), slog.New(slog.DiscardHandler), func(n *dnsproxy.Table) { table = n })
		ts.configure(dnsproxy.TableConfig{Namespace: "istioinaction", Domain: "svc.cluster.local"})
		err := ts.take(xds.Push{TypeURL: xds.TypeNameTable, Resources: []*anypb.Any{{TypeUrl: xds.TypeNameTable, Value: raw}}})
		if (err == nil) != (table != nil) {
			t.Errorf("take = %v, table in use: %v", err, table != nil)
		}
		if table != nil {
			table.Lookup("webapp.", 1)
		}
	})
}
