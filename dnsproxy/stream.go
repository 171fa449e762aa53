package dnsproxy

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"

	"github.com/miekg/dns"
)

// streamLocked asks server over TCP, in a goroutine of its own: rare, since few answers need it.
func (f *forwarder) streamLocked(fl *flight, server *server) {
	const maxStreams = 256
	a := fl.attemptLocked(server, nil)
	fl.overTCP = true
	if f.tcp >= maxStreams {
		return // its time-out answers
	}
	f.tcp++
	ctx, cancel := context.WithDeadline(context.Background(), fl.deadline)
	a.cancel = cancel
	query := fl.query
	f.readers.Go(func() {
		defer cancel()
		msg, err := exchangeTCP(ctx, server.addr, query)
		f.mu.Lock()
		f.tcp--
		f.mu.Unlock()
		if err != nil {
			f.lost(a, reasonStream, err)
			return
		}
		f.answered(a, msg)
	})
}

// exchangeTCP is one question over a stream of its own, given up when ctx ends.
func exchangeTCP(ctx context.Context, addr netip.AddrPort, query []byte) ([]byte, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	framed := binary.BigEndian.AppendUint16(nil, uint16(len(query)))
	framed = append(framed, query...)
	id := randomID()
	binary.BigEndian.PutUint16(framed[2:], id)
	if _, err := conn.Write(framed); err != nil {
		return nil, err
	}
	var length [2]byte
	if _, err := io.ReadFull(conn, length[:]); err != nil {
		return nil, fmt.Errorf("read answer: %w", err)
	}
	msg := make([]byte, binary.BigEndian.Uint16(length[:]))
	if _, err := io.ReadFull(conn, msg); err != nil {
		return nil, fmt.Errorf("read answer: %w", err)
	}
	if !answers(msg, query, id) {
		return nil, errors.New("answer to another question")
	}
	return msg, nil
}

// answers reports whether msg is a well-formed response to query, sent with the given id: same opcode, same question in any
// letter case (RFC 5452 section 9.1). Errors may come without the question (RFC 8906 section 3.1).
func answers(msg, query []byte, id uint16) bool {
	if len(msg) < headerSize || binary.BigEndian.Uint16(msg) != id || msg[2]&flagQR == 0 || (msg[2]^query[2])&opcodeMask != 0 {
		return false
	}
	if _, ok := walk(msg); !ok {
		return false
	}
	if binary.BigEndian.Uint16(msg[4:]) == 0 {
		rcode := msg[3] & rcodeMask
		return rcode != dns.RcodeSuccess && rcode != dns.RcodeNameError
	}
	end := skipName(query, headerSize)
	if end == 0 || end+4 > len(query) || end+4 > len(msg) || binary.BigEndian.Uint16(msg[4:]) != 1 {
		return false
	}
	return bytes.Equal(msg[end:end+4], query[end:end+4]) && bytes.Equal(lowered(msg[headerSize:end]), lowered(query[headerSize:end]))
}
