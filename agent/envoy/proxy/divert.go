package proxy

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// divert has connections to ports that an Envoy serves wait from now on, as a hold does, while those that are on their way into Envoy get there: a
// listener that closes resets what it has not accepted yet. It takes one more socket of Envoy's group of each port, and a program for the group that
// picks this one (socket(7), SO_ATTACH_REUSEPORT_CBPF), which needs no privilege. Once Envoy has closed its sockets the hold that stands by takes over,
// and this one is to be released: its sockets would have their share of the next Envoy's connections.
func divert(ports []netip.AddrPort, owner *User) (*hold, error) {
	sockets, err := listeningSockets()
	if err != nil {
		return nil, err
	}
	h := &hold{}
	for _, p := range ports {
		group := uint32(0) // the kernel numbers sockets of a group as they begin to listen
		for _, s := range sockets {
			if s.addr == p {
				group++
			}
		}
		fd, err := placeholder(p, owner)
		if err == nil {
			h.sockets = append(h.sockets, fd)
			err = deaf(fd, p)
		}
		if err == nil {
			pick := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: group}}
			err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF, &unix.SockFprog{Len: uint16(len(pick)), Filter: &pick[0]})
		}
		if err != nil {
			h.release()
			return nil, fmt.Errorf("divert port %d: %w", p.Port(), err)
		}
	}
	return h, nil
}

// Numbers of a diversion.
const (
	divertMost = 500 * time.Millisecond // a round trip of a client that is far away, and a worker that is busy
	divertPoll = 10 * time.Millisecond
)

// awaitAccepted waits until nobody is on the way into the ports' listeners any more, or as long as is worth it.
func awaitAccepted(ctx context.Context, ports []netip.AddrPort) {
	ctx, cancel := context.WithTimeout(ctx, divertMost)
	defer cancel()
	tick := time.NewTicker(divertPoll)
	defer tick.Stop()
	for empty := 0; empty < drainEmpty; {
		if empty++; onTheWay(ports) > 0 {
			empty = 0
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// onTheWay counts connections to ports that are being made, or made and not accepted.
func onTheWay(ports []netip.AddrPort) (n int) {
	for _, name := range socketTables {
		f, err := os.Open(name)
		if err != nil {
			continue // what cannot be known is not waited for
		}
		n += countOnTheWay(f, ports)
		f.Close()
	}
	return n
}

// countOnTheWay reads a table of proc_net(5) as parseSockets does: a listener's second queue is of connections to accept.
func countOnTheWay(r io.Reader, ports []netip.AddrPort) (n int) {
	for lines := bufio.NewScanner(r); lines.Scan(); {
		f := strings.Fields(lines.Text())
		if len(f) < 10 {
			continue
		}
		addr, ok := parseAddr(f[1])
		if !ok || !slices.ContainsFunc(ports, func(p netip.AddrPort) bool { return p.Port() == addr.Port() }) {
			continue
		}
		switch f[3] {
		case "03": // TCP_SYN_RECV
			n++
		case "0A": // TCP_LISTEN
			_, queue, _ := strings.Cut(f[4], ":")
			waiting, err := strconv.ParseUint(queue, 16, 31)
			if err == nil {
				n += int(waiting)
			}
		}
	}
	return n
}
