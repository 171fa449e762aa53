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
)

// queries sends 200 packets a second to a UDP port of a machine, and counts which come back.
type queries struct {
	t        *testing.T
	conn     net.Conn
	stop     chan struct{}
	finished chan struct{}

	mu       sync.Mutex // guards everything below
	sent     uint32
	answered map[uint32]bool
	errs     []error
	news     *sync.Cond // of answered
}

func startQueries(t *testing.T, m *Machine, address string) *queries {
	t.Helper()
	q := &queries{t: t, stop: make(chan struct{}), finished: make(chan struct{}), answered: map[uint32]bool{}}
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
		if _, err := q.conn.Write(binary.BigEndian.AppendUint32(nil, id)); err != nil {
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
		if n == 4 {
			q.mu.Lock()
			q.answered[binary.BigEndian.Uint32(buf)] = true
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
