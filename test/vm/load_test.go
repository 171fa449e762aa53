package vm

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// queries sends 200 packets a second to a UDP port of a machine, and counts which are answered.
type queries struct {
	t        *testing.T
	conn     net.Conn
	exchange exchange
	stop     chan struct{}
	finished chan struct{}

	mu       sync.Mutex // guards everything below
	sent     uint16
	answered map[uint16]bool
	errs     []error
	news     *sync.Cond // of answered
}

// exchange makes the packet with a number, and finds the number in its answer; false means that this is not an answer.
type exchange struct {
	ask    func(id uint16) []byte
	answer func(packet []byte) (id uint16, ok bool)
}

// bounce is the exchange with a server that sends back what it gets.
var bounce = exchange{
	ask:    func(id uint16) []byte { return binary.BigEndian.AppendUint16(nil, id) },
	answer: func(packet []byte) (uint16, bool) { return binary.BigEndian.Uint16(packet), len(packet) == 2 },
}

// lookUp is the exchange with a DNS server that knows an address of name.
func lookUp(name string) exchange {
	return exchange{
		ask: func(id uint16) []byte {
			q := new(dns.Msg)
			q.SetQuestion(name, dns.TypeA)
			q.Id = id
			packet, err := q.Pack()
			if err != nil {
				panic(err) // of a name in this test
			}
			return packet
		},
		answer: func(packet []byte) (uint16, bool) {
			a := new(dns.Msg)
			err := a.Unpack(packet)
			return a.Id, err == nil && a.Rcode == dns.RcodeSuccess && len(a.Answer) > 0
		},
	}
}

func startQueries(t *testing.T, m *Machine, address string, x exchange) *queries {
	t.Helper()
	q := &queries{t: t, exchange: x, stop: make(chan struct{}), finished: make(chan struct{}), answered: map[uint16]bool{}}
	q.news = sync.NewCond(&q.mu)
	if err := m.Do(func() (err error) { q.conn, err = net.Dial("udp", address); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { q.conn.Close() })
	go q.receive()
	go q.send()
	return q
}

func (q *queries) send() {
	defer close(q.finished)
	ticks := time.NewTicker(5 * time.Millisecond)
	defer ticks.Stop()
	for {
		select {
		case <-q.stop:
			return
		case <-ticks.C:
		}
		q.mu.Lock()
		id := q.sent
		q.sent++
		q.mu.Unlock()
		if _, err := q.conn.Write(q.exchange.ask(id)); err != nil {
			q.fail(fmt.Errorf("send %d: %w", id, err))
		}
	}
}

func (q *queries) receive() {
	for buf := make([]byte, 512); ; {
		n, err := q.conn.Read(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // ECONNREFUSED: nobody had the port when an earlier packet came
			q.fail(fmt.Errorf("receive: %w", err))
			continue
		}
		if id, ok := q.exchange.answer(buf[:n]); ok {
			q.mu.Lock()
			q.answered[id] = true
			q.news.Broadcast()
			q.mu.Unlock()
		}
	}
}

func (q *queries) fail(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.errs) < 10 {
		q.errs = append(q.errs, err)
	}
}

// end stops sending, gives the last packets time, and returns how many were sent and lost.
func (q *queries) end() (sent, lost int) {
	q.t.Helper()
	close(q.stop)
	<-q.finished
	q.mu.Lock()
	defer q.mu.Unlock()
	late := false
	patience := time.AfterFunc(5*time.Second, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		late = true
		q.news.Broadcast()
	})
	defer patience.Stop()
	for len(q.answered) < int(q.sent) && !late {
		q.news.Wait()
	}
	for _, err := range q.errs {
		q.t.Log(err)
	}
	return int(q.sent), int(q.sent) - len(q.answered)
}

func scan(from io.Reader, lines chan<- string) {
	defer close(lines)
	for s := bufio.NewScanner(from); s.Scan(); {
		lines <- s.Text()
	}
}
