package iptables

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// socket is one TCP socket of this network namespace.
type socket struct {
	listening bool
	local     netip.AddrPort
	peer      netip.AddrPort
	uid       uint32
	inode     uint32
	cgroup    uint64 // in which it was made; zero where the kernel does not tell (before 5.7)
}

// States of TCP sockets (include/net/tcp_states.h), as bits of a request.
const (
	tcpEstablished = 1
	tcpListen      = 10
)

// Of include/uapi/linux/inet_diag.h.
const (
	diagRequestSize = 56 // struct inet_diag_req_v2
	diagMessageSize = 72 // struct inet_diag_msg
	diagCgroupID    = 21 // INET_DIAG_CGROUP_ID
)

// tcpSockets lists the TCP sockets of this network namespace that are in one of the states (sock_diag(7)); no privilege needed.
// The kernel leaves the others out, so a list of what listens is cheap however many connections there are.
func tcpSockets(states ...uint) ([]socket, error) {
	conn, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, nil)
	if err != nil {
		return nil, fmt.Errorf("list TCP sockets: %w", err)
	}
	defer conn.Close()
	var out []socket
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		request := make([]byte, diagRequestSize)
		request[0], request[1] = family, unix.IPPROTO_TCP
		for _, s := range states {
			binary.NativeEndian.PutUint32(request[4:], binary.NativeEndian.Uint32(request[4:])|1<<s)
		}
		messages, err := conn.Execute(netlink.Message{
			Header: netlink.Header{Type: unix.SOCK_DIAG_BY_FAMILY, Flags: netlink.Request | netlink.Dump}, Data: request,
		})
		if err != nil && !errors.Is(err, unix.ENOENT) { // a kernel without that family
			return nil, fmt.Errorf("list TCP sockets: %w", err)
		}
		for _, m := range messages {
			if s, ok := parseSocket(m.Data); ok {
				out = append(out, s)
			}
		}
	}
	return out, nil
}

// parseSocket reads one struct inet_diag_msg and its attributes; ok is false for what is too short for one.
func parseSocket(data []byte) (s socket, ok bool) {
	if len(data) < diagMessageSize {
		return socket{}, false
	}
	addr := func(b []byte) netip.Addr {
		if data[0] == unix.AF_INET {
			b = b[:4]
		}
		a, _ := netip.AddrFromSlice(b)
		return a.Unmap()
	}
	s = socket{
		listening: data[1] == tcpListen,
		local:     netip.AddrPortFrom(addr(data[8:24]), binary.BigEndian.Uint16(data[4:])),
		peer:      netip.AddrPortFrom(addr(data[24:40]), binary.BigEndian.Uint16(data[6:])),
		uid:       binary.NativeEndian.Uint32(data[64:]),
		inode:     binary.NativeEndian.Uint32(data[68:]),
	}
	attributes, err := netlink.NewAttributeDecoder(data[diagMessageSize:])
	if err != nil {
		return s, true
	}
	for attributes.Next() {
		if attributes.Type() == diagCgroupID && len(attributes.Bytes()) == 8 {
			s.cgroup = attributes.Uint64()
		}
	}
	return s, true
}
