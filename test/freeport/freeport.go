// Package freeport gives tests ports of loopback that stay free until they are used, and between two uses.
//
// A port that the kernel chose (":0") and that was closed again is anybody's: the kernel gives it to the next connection that
// goes out, and a peer that is to come back on it cannot listen. Ports from here lie below those that the kernel chooses
// (ip_local_port_range, from 32768 unless the machine says otherwise) and above what Envoy and the agent have (15000 to
// 15090), and no other process that asks this package gets them: each is held by the name of a unix socket (abstract, so it
// goes with the process) in the network namespace of whoever asks.
package freeport

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

const lowest, highest = 16_000, 31_999

// Addr is 127.0.0.1 with a port where nobody listens, by TCP or UDP. It stays the caller's until the process ends. It panics
// when all 16,000 ports are taken. Safe for concurrent use.
func Addr() netip.AddrPort {
	const ports = highest - lowest + 1
	first := rand.IntN(ports)
	for i := range ports {
		port := uint16(lowest + (first+i)%ports)
		at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)
		if hold(port) && unused(at) {
			return at
		}
	}
	panic("no port of 127.0.0.1 is free")
}

// Port is Addr's port.
func Port() uint16 { return Addr().Port() }

// hold takes a port's name. The socket is never closed: the kernel does that when the process ends.
func hold(port uint16) bool {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: fmt.Sprintf("@wingman test port %d", port)}); err != nil {
		unix.Close(fd)
		return false
	}
	return true
}

func unused(at netip.AddrPort) bool {
	udp, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		return false
	}
	defer udp.Close()
	tcp, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
	if err != nil {
		return false
	}
	defer tcp.Close()
	return true
}
