package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"wingman/agent/xds/nds"
	"wingman/dnsproxy"
)

// written is a NameTable as istiod writes it: in the order of its hosts. Each entry is "host address".
func written(t testing.TB, list ...string) []byte {
	t.Helper()
	m := &nds.NameTable{Table: map[string]*nds.NameInfo{}}
	for _, e := range list {
		host, ip, _ := strings.Cut(e, " ")
		m.Table[host] = &nds.NameInfo{Ips: strings.Fields(ip), Registry: "External"}
	}
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestDifferenceOfTwoTables(t *testing.T) {
	for _, tc := range []struct {
		name          string
		former, later []string
		gone, changed string // hosts
	}{
		{"nothing", []string{"a 10.0.0.1", "b 10.0.0.2"}, []string{"a 10.0.0.1", "b 10.0.0.2"}, "", ""},
		{"the first table", nil, []string{"a 10.0.0.1", "b 10.0.0.2"}, "", "a b"},
		{"an empty one", []string{"a 10.0.0.1", "b 10.0.0.2"}, nil, "a b", ""},
		{"an address", []string{"a 10.0.0.1", "b 10.0.0.2", "c 10.0.0.3"}, []string{"a 10.0.0.1", "b 10.0.0.9", "c 10.0.0.3"}, "", "b"},
		{"one more at the front", []string{"b 10.0.0.2"}, []string{"a 10.0.0.1", "b 10.0.0.2"}, "", "a"},
		{"one more at the end", []string{"a 10.0.0.1"}, []string{"a 10.0.0.1", "b 10.0.0.2"}, "", "b"},
		{"one less in the middle", []string{"a 10.0.0.1", "b 10.0.0.2", "c 10.0.0.3"}, []string{"a 10.0.0.1", "c 10.0.0.3"}, "b", ""},
		{"one for another", []string{"a 10.0.0.1", "b 10.0.0.2", "d 10.0.0.4"}, []string{"a 10.0.0.1", "c 10.0.0.3", "d 10.0.0.4"}, "b", "c"},
		{"all", []string{"a 10.0.0.1", "c 10.0.0.3"}, []string{"b 10.0.0.2", "d 10.0.0.4"}, "a c", "b d"},
		{"a name that is the beginning of another", []string{"a 10.0.0.1", "aa 10.0.0.2"}, []string{"a 10.0.0.3", "aa 10.0.0.2"}, "", "a"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d, err := diffTables(written(t, tc.former...), written(t, tc.later...))
			if err != nil {
				t.Fatal(err)
			}
			var m nds.NameTable
			if err := proto.Unmarshal(d.changed, &m); err != nil {
				t.Fatal(err)
			}
			changed := strings.Join(slices.Sorted(maps.Keys(m.Table)), " ")
			if gone := strings.Join(d.gone, " "); gone != tc.gone || changed != tc.changed {
				t.Errorf("gone %q, changed %q; want %q, %q", gone, changed, tc.gone, tc.changed)
			}
		})
	}
}

func TestTablesInAnotherFormAreNotCompared(t *testing.T) {
	a, b := written(t, "a 10.0.0.1"), written(t, "b 10.0.0.2")
	for name, raw := range map[string][]byte{
		"out of order":               append(slices.Clone(b), a...),
		"a host twice":               append(slices.Clone(a), a...),
		"cut short":                  append(slices.Clone(a), b[:len(b)-1]...),
		"a field that nobody knows":  append(slices.Clone(a), 0x12, 0x00),
		"an entry without its value": {0x0a, 0x03, 0x0a, 0x01, 'a'},
		"a value before its key":     {0x0a, 0x05, 0x12, 0x00, 0x0a, 0x01, 'a'},
		"no bytes of protobuf":       {0xff, 0xff},
	} {
		t.Run(name, func(t *testing.T) {
			if d, err := diffTables(a, raw); !errors.Is(err, errNoDiff) {
				t.Errorf("to it: %+v, %v; want %v", d, err, errNoDiff)
			}
			if d, err := diffTables(raw, a); !errors.Is(err, errNoDiff) {
				t.Errorf("from it: %+v, %v; want %v", d, err, errNoDiff)
			}
		})
	}
}

// Whatever two tables are, taking one in after the other ends as if the other had been the first: refused or not, and with the same answers.
func FuzzTableAfterTable(f *testing.F) {
	f.Add(written(f, "a.corp 10.0.0.1", "b.corp 10.0.0.2", "c.corp 10.0.0.3"), written(f, "a.corp 10.0.0.1", "b.corp", "d.corp 10.0.0.4"))
	f.Add(written(f, "*.corp 10.0.0.1", "b.corp 10.0.0.2"), written(f, "*.corp 10.0.0.9 2001:db8::1", "A.corp 10.0.0.1", "a.corp 10.0.0.2"))
	f.Add(append(written(f, "b.corp 10.0.0.2"), written(f, "a.corp 10.0.0.1")...), written(f, "a.corp nonsense"))
	f.Add(written(f, "a.corp 10.0.0.1"), append(written(f, "a.corp 10.0.0.1"), written(f, "a.corp")...))
	f.Add(written(f, "a..corp 10.0.0.1", "b.corp 10.0.0.2 x", "c.corp 10.0.0.3"), written(f, "b.corp 10.0.0.2", "c.corp y", "d.corp 10.0.0.4 z"))
	f.Fuzz(func(t *testing.T, former, later []byte) {
		take := func(list ...[]byte) (answers []string, n int, err error) {
			var table *dnsproxy.Table
			ts := newTables(filepath.Join(t.TempDir(), tableName), slog.New(slog.DiscardHandler), func(n *dnsproxy.Table) { table = n })
			ts.configure(dnsproxy.TableConfig{Namespace: "istioinaction", Domain: "svc.cluster.local"})
			for i, raw := range list {
				if err = ts.take(rawPush(t, "1", raw)); err != nil && i < len(list)-1 {
					t.Skip("the one before is refused")
				}
			}
			names, _ := table.Names("")
			for _, name := range names {
				answers = append(answers, fmt.Sprint(name))
			}
			answers = append(answers, fmt.Sprint(table.LeftOut("")))
			_, _, n, _ = ts.snapshot()
			return answers, n, err
		}
		want, wantN, wantErr := take(later)
		got, gotN, gotErr := take(former, later)
		if fmt.Sprint(gotErr) != fmt.Sprint(wantErr) {
			t.Fatalf("after another table: %v, as the first: %v", gotErr, wantErr)
		}
		if wantErr == nil && (!slices.Equal(got, want) || gotN != wantN) {
			t.Errorf("after another table %d names:\n%q\nas the first %d:\n%q", gotN, got, wantN, want)
		}
	})
}

// BenchmarkOneChangedOfTenThousand is a push of istiod's after a change of one service.
func BenchmarkOneChangedOfTenThousand(b *testing.B) {
	var list []string
	for n := range 10_000 {
		list = append(list, fmt.Sprintf("service-%05d.many.example 240.240.%d.%d", n, n>>8, n&0xff))
	}
	tables := [2][]byte{written(b, list...)}
	list[4711] = "service-04711.many.example 10.0.0.1"
	tables[1] = written(b, list...)
	ts := newTables(filepath.Join(b.TempDir(), tableName), slog.New(slog.DiscardHandler), func(*dnsproxy.Table) {})
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if err := ts.take(rawPush(b, "1", tables[i%2])); err != nil {
			b.Fatal(err)
		}
	}
}
