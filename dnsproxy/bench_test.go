package dnsproxy

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	"github.com/miekg/dns"
)

// bigTable is 10,000 services over 100 namespaces, as a large cluster has them.
func bigTable() []Name {
	names := make([]Name, 10_000)
	for i := range names {
		names[i] = kube(fmt.Sprintf("service-%d", i), fmt.Sprintf("namespace-%d", i%100), netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}).String())
	}
	return names
}

var bigConfig = TableConfig{Namespace: "namespace-1", Domain: "svc.cluster.local"}

// BenchmarkTableHit is the work for one packet but for the system calls: parse, find, write.
func BenchmarkTableHit(b *testing.B) {
	table, err := NewTable(bigConfig, bigTable())
	if err != nil {
		b.Fatal(err)
	}
	for _, name := range []string{"service-4711.namespace-11.svc.cluster.local", "service-4711.namespace-11", "service-4701"} {
		b.Run(name, func(b *testing.B) {
			msg, err := question(name, dns.TypeA).SetEdns0(1232, false).Pack()
			if err != nil {
				b.Fatal(err)
			}
			buf := make([]byte, udpPacket)
			var q query
			b.ReportAllocs()
			for b.Loop() {
				copy(buf, msg)
				if !q.parse(buf[:len(msg)]) || table.fast(buf, &q, q.size, rotation()) == 0 {
					b.Fatal("no answer")
				}
			}
		})
	}
}

// BenchmarkCacheHit is the same for an answer of an upstream.
func BenchmarkCacheHit(b *testing.B) {
	table, err := NewTable(bigConfig, bigTable())
	if err != nil {
		b.Fatal(err)
	}
	req := question("www.example.com", dns.TypeA).SetEdns0(1232, false)
	msg, err := req.Pack()
	if err != nil {
		b.Fatal(err)
	}
	c := newCache(defaultCacheBytes, defaultMaxStale)
	c.put(cacheKeyOf(b, req), replyTo(b, req, 0, example), now())
	buf := make([]byte, udpPacket)
	var q query
	b.ReportAllocs()
	for b.Loop() {
		copy(buf, msg)
		if !q.parse(buf[:len(msg)]) || table.fast(buf, &q, q.size, 0) != 0 {
			b.Fatal("the table has it")
		}
		e, fresh := c.get(q.cacheKey(buf), now())
		if !fresh || e.write(buf, &q, now(), q.size, rotation()) == 0 {
			b.Fatal("no answer")
		}
	}
}

// BenchmarkTable is what a push of 10,000 services costs: the first, and one in which a single service has changed.
func BenchmarkTable(b *testing.B) {
	names := bigTable()
	b.Run("first", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := NewTable(bigConfig, names); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(heapOfTable(b, names), "heap-bytes")
	})
	table, err := NewTable(bigConfig, names)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("one changed", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			names[4711].Addrs = []netip.Addr{netip.AddrFrom4([4]byte{10, 97, byte(i >> 8), byte(i)})}
			if table, err = table.Update(bigConfig, names); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// heapOfTable is the memory that a table holds, its names' strings included.
func heapOfTable(tb testing.TB, names []Name) float64 {
	tb.Helper()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	table, err := NewTable(bigConfig, names)
	if err != nil {
		tb.Fatal(err)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	strings := 0
	for _, s := range table.services {
		strings += len(s.Host) + len(s.ShortName) + len(s.Namespace) + len(s.Registry)
	}
	return float64(int(after.HeapAlloc)-int(before.HeapAlloc)) + float64(strings)
}
