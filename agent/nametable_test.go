package agent

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

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

func TestAPushIsTakenInWholeOrNotAtAll(t *testing.T) {
	good := map[string][]string{"a.corp.internal": {"10.0.0.1"}}
	long := strings.Repeat("a", 60) + "." + strings.Repeat("b", 60) + "." + strings.Repeat("c", 60) + "." + strings.Repeat("d", 60) + "." + strings.Repeat("e", 60)
	for _, tc := range []struct {
		name string
		push func(t *testing.T) xds.Push
		want string // part of the refusal
	}{
		{"an address that is none", func(t *testing.T) xds.Push {
			return push(t, "2", map[string][]string{"ok.corp.internal": {"10.0.0.2"}, "bad.corp.internal": {"300.1.1.1"}})
		}, `"bad.corp.internal" has the address "300.1.1.1"`},
		{"an address with a zone", func(t *testing.T) xds.Push {
			return push(t, "2", map[string][]string{"bad.corp.internal": {"fe80::1%eth0"}})
		}, "bad.corp.internal"},
		{"a name of 300 bytes", func(t *testing.T) xds.Push { return push(t, "2", map[string][]string{long: {"10.0.0.2"}}) }, "255"},
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

func TestRefusalNamesAFewEntriesAndCountsTheRest(t *testing.T) {
	hosts := map[string][]string{}
	for _, c := range "abcdefgh" {
		hosts[string(c)+".corp.internal"] = []string{"nonsense"}
	}
	err := newTestTables(t, func(*dnsproxy.Table) {}).take(push(t, "1", hosts))
	if err == nil || strings.Count(err.Error(), "nonsense") != mostNamed || !strings.Contains(err.Error(), "and 3 more") {
		t.Errorf("take = %v, want %d entries named and 3 counted", err, mostNamed)
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
