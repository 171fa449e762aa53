package dnsproxy

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// batch holds packets for recvmmsg(2) and sendmmsg(2): system calls are what an answer costs, and these carry many packets
// each. They never wait, so the runtime is not told of them, which would cost as much again. The kernel keeps no pointer into
// it between calls. It belongs to one goroutine at a time.
type batch struct {
	in   []unix.Mmsghdr
	out  []unix.Mmsghdr // headers of the packets to send, first to last
	iovs []unix.Iovec
	from []unix.RawSockaddrInet6 // an IPv4 address fits too
	ctrl [][controlSize]byte     // nil: none wanted
	bufs []byte
	size int
	n    int // packets received
}

// controlSize takes one IP_PKTINFO or IPV6_PKTINFO.
const controlSize = 64

func newBatch(packets, size int, control bool) *batch {
	b := &batch{
		in: make([]unix.Mmsghdr, packets), out: make([]unix.Mmsghdr, 0, packets),
		iovs: make([]unix.Iovec, packets), from: make([]unix.RawSockaddrInet6, packets),
		bufs: make([]byte, packets*size), size: size,
	}
	if control {
		b.ctrl = make([][controlSize]byte, packets)
	}
	for i := range b.in {
		b.iovs[i].Base = &b.bufs[i*size]
		hdr := &b.in[i].Hdr
		hdr.Name = (*byte)(unsafe.Pointer(&b.from[i]))
		hdr.Iov = &b.iovs[i]
		hdr.SetIovlen(1)
		if control {
			hdr.Control = &b.ctrl[i][0]
		}
	}
	return b
}

// receive reads what is there, without waiting. b.n is 0 after an error.
func (b *batch) receive(fd uintptr) error {
	for i := range b.in {
		b.iovs[i].SetLen(b.size)
		hdr := &b.in[i].Hdr
		hdr.Namelen = unix.SizeofSockaddrInet6
		if b.ctrl != nil {
			hdr.SetControllen(controlSize)
		}
	}
	b.out = b.out[:0]
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&b.in[0])), uintptr(len(b.in)), unix.MSG_DONTWAIT, 0, 0)
		if errno == 0 {
			b.n = int(n)
			return nil
		}
		if errno != unix.EINTR {
			b.n = 0
			return errno
		}
	}
}

// buffer is the whole room of packet i; packet its bytes. cut reports that the packet was larger than that.
func (b *batch) buffer(i int) []byte { return b.bufs[i*b.size : (i+1)*b.size] }
func (b *batch) packet(i int) []byte { return b.buffer(i)[:b.in[i].Len] }
func (b *batch) cut(i int) bool      { return b.in[i].Hdr.Flags&unix.MSG_TRUNC != 0 }

// answer makes the first length octets of packet i's buffer the reply to its sender, from the address it was sent to.
func (b *batch) answer(i, length int) {
	b.iovs[i].SetLen(length)
	if b.ctrl != nil {
		b.in[i].Hdr.SetControllen(replyControl(b.ctrl[i][:b.in[i].Hdr.Controllen]))
	}
	b.out = append(b.out, b.in[i])
}

// send sends the answers. A packet that the kernel will not take is given up: its client asks again.
func (b *batch) send(fd uintptr) {
	_ = sendAll(fd, b.out, waitWritable)
	b.out = b.out[:0]
}

func addrOf(sa *unix.RawSockaddrInet6) netip.AddrPort {
	switch sa.Family {
	case unix.AF_INET:
		in := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
		return netip.AddrPortFrom(netip.AddrFrom4(in.Addr), networkOrder(&in.Port))
	case unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), networkOrder(&sa.Port))
	}
	return netip.AddrPort{}
}

func networkOrder(port *uint16) uint16 {
	return binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(port))[:])
}

// replyControl turns the control message that tells a packet's destination into one that sets a reply's source, in place,
// and returns its length; 0 leaves the source to the kernel. The interface is cleared: a redirected packet came in by
// another one than its answer leaves by.
func replyControl(ctrl []byte) int {
	if len(ctrl) < unix.SizeofCmsghdr {
		return 0
	}
	hdr := (*unix.Cmsghdr)(unsafe.Pointer(&ctrl[0]))
	data := ctrl[unix.CmsgLen(0):]
	switch {
	case hdr.Level == unix.IPPROTO_IP && hdr.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
		info := (*unix.Inet4Pktinfo)(unsafe.Pointer(&data[0]))
		info.Ifindex, info.Spec_dst = 0, info.Addr
		return unix.CmsgSpace(unix.SizeofInet4Pktinfo)
	case hdr.Level == unix.IPPROTO_IPV6 && hdr.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
		info := (*unix.Inet6Pktinfo)(unsafe.Pointer(&data[0]))
		if addr := netip.AddrFrom16(info.Addr); !addr.IsLinkLocalUnicast() {
			info.Ifindex = 0
		}
		return unix.CmsgSpace(unix.SizeofInet6Pktinfo)
	}
	return 0
}
