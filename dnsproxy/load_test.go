package dnsproxy

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

const (
	loadServices = 1000
	loadTurns    = 10 // a tenth of the services changes with every version
)

// loadTable is version v of a table in which service i last changed at the version that its address tells.
func loadTable(from *Table, v uint32) (*Table, error) {
	names := make([]Name, loadServices)
	for i := range names {
		last := v - (v+loadTurns-uint32(i)%loadTurns)%loadTurns
		names[i] = Name{
			Host: fmt.Sprintf("s%d.load.svc.cluster.local", i), Registry: "Kubernetes", ShortName: fmt.Sprintf("s%d", i), Namespace: "load",
			Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(last >> 16), byte(last >> 8), byte(last)})},
		}
	}
	return from.Update(TableConfig{Namespace: "load", Domain: "svc.cluster.local", Version: strconv.Itoa(int(v))}, names)
}

// TestMixedLoadWhileTheTableChanges asks for names of the mesh, of the cache and of upstream, by UDP and TCP, while the table changes ten times a
// second. Every question is answered, and by a table that was valid between its sending and its answer. It runs for 3 s, or
// for as many as DNS_LOAD_SECONDS says.
func TestMixedLoadWhileTheTableChanges(t *testing.T) {
	length := 3 * time.Second
	if s, err := strconv.Atoi(os.Getenv("DNS_LOAD_SECONDS")); err == nil {
		length = time.Duration(s) * time.Second
	}
	up := newUpstream(t, func(query []byte, _ transport) [][]byte {
		// any name has the address 192.0.2.1
		end := skipName(query, headerSize) + 4
		reply := append(query[:end:end], appendAddress(nil, dns.TypeA, netip.MustParseAddr("192.0.2.1"))...)
		reply[2], reply[3] = flagQR|flagRD, flagRA
		binary.BigEndian.PutUint16(reply[6:], 1)
		return [][]byte{reply}
	})
	const first = 100
	table, err := loadTable(nil, first)
	if err != nil {
		t.Fatal(err)
	}
	s := serve(t, Config{Upstreams: []netip.AddrPort{up.addr}}, table)
	var current, next atomic.Uint32 // versions that are certainly, and perhaps, in use
	current.Store(first)
	next.Store(first)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for v := uint32(first + 1); ; v++ {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			changed, err := loadTable(table, v)
			if err != nil {
				t.Error(err)
				return
			}
			table = changed
			next.Store(v)
			s.Replace(table)
			current.Store(v)
		}
	})
	var asked, wrong atomic.Uint64
	for _, via := range []transport{overUDP, overUDP, overUDP, overTCP} {
		wg.Go(func() {
			if err := loadClient(s.addr, via, stop, &current, &next, &asked, &wrong, t.Logf); err != nil {
				t.Errorf("after %d questions: %v", asked.Load(), err)
			}
		})
	}
	time.AfterFunc(length, func() { close(stop) })
	wg.Wait()
	t.Logf("%d questions, %d versions", asked.Load(), current.Load()-first)
	if wrong.Load() > 0 || asked.Load() < 1000 {
		t.Errorf("%d wrong answers to %d questions", wrong.Load(), asked.Load())
	}
}

// loadClient asks in windows of questions, each with an id of its own, until stop is closed.
func loadClient(addr netip.AddrPort, via transport, stop chan struct{}, current, next *atomic.Uint32, asked, wrong *atomic.Uint64, logf func(string, ...any)) error {
	conn, err := net.Dial(via.String(), addr.String())
	if err != nil {
		return err
	}
	defer conn.Close()
	buf := make([]byte, 1500)
	write := func(msg []byte) error { _, err := conn.Write(msg); return err }
	read := func() ([]byte, error) { n, err := conn.Read(buf); return buf[:n], err }
	if via == overTCP {
		write = func(msg []byte) error { return writeFrame(conn, msg) }
		read = func() ([]byte, error) { return readFrame(conn) }
	}
	const window = 50
	type sent struct {
		service int // -1 for a name of others
		version uint32
	}
	for serial := uint16(0); ; {
		select {
		case <-stop:
			return nil
		default:
		}
		waiting := map[uint16]sent{}
		for range window {
			q := sent{service: rand.IntN(loadServices), version: current.Load()}
			name := fmt.Sprintf("s%d.load", q.service)
			switch kind := rand.IntN(10); {
			case kind < 2:
				q.service, name = -1, fmt.Sprintf("cached%d.example", rand.IntN(50))
			case kind < 3:
				q.service, name = -1, fmt.Sprintf("fresh%d.example", rand.Uint64())
			case kind < 6:
				name += ".svc.cluster.local"
			}
			serial++
			req := question(name, dns.TypeA)
			req.Id = serial
			msg, err := req.Pack()
			if err != nil {
				return err
			}
			waiting[serial] = q
			if err := write(msg); err != nil {
				return err
			}
		}
		for len(waiting) > 0 {
			if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
				return err
			}
			msg, err := read()
			if err != nil {
				return fmt.Errorf("%d answers are missing: %w", len(waiting), err)
			}
			until := next.Load()
			id := binary.BigEndian.Uint16(msg)
			q, ok := waiting[id]
			delete(waiting, id)
			asked.Add(1)
			if !ok || !valid(msg, q.service, q.version, until) {
				wrong.Add(1)
				logf("question about service %d at versions %d to %d: wrong answer %x", q.service, q.version, until, msg)
			}
		}
	}
}

// valid reports whether an answer has the one address that the service had in some version between the two.
func valid(msg []byte, service int, from, until uint32) bool {
	if msg[3]&rcodeMask != 0 || binary.BigEndian.Uint16(msg[6:]) != 1 {
		return false
	}
	addr := msg[len(msg)-4:]
	if service < 0 {
		return netip.AddrFrom4([4]byte(addr)) == netip.MustParseAddr("192.0.2.1")
	}
	last := binary.BigEndian.Uint32(addr) & 0xffffff
	return addr[0] == 10 && last <= until && last+loadTurns > from && last%loadTurns == uint32(service)%loadTurns
}
