package iptables

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"wingman/test/netns"
)

// world is a VM with something to capture: the test runs in its namespace, the rest of the network is in another one, and a
// container hangs on a bridge of the VM in a third.
type world struct {
	vm, net, container *netns.NS
	proxy              []io.Closer // the sockets of Envoy and the agent
}

// Addresses in the world. Everything that is not the VM's is served by the network's namespace.
const (
	vmAddr, vmAddr6     = "10.99.0.2", "2001:db8:99::2"
	hostAddr, hostAddr6 = "10.99.0.1", "2001:db8:99::1"
	bridgeAddr          = "172.31.0.1"
	containerAddr       = "172.31.0.2"
)

var netAddrs = []string{
	"10.0.0.2/32", "127.0.0.53/32", "10.96.0.7/32", "240.240.0.7/32", "192.168.3.4/32", "203.0.113.9/32", "169.254.169.254/32", "8.8.8.8/32",
	"2001:db8::53/128", "2001:db8:1::9/128", "fd00:ec2::254/128",
}

// Ports that are served in both namespaces, and those of the proxy.
var (
	appPorts   = []uint16{22, 53, 80, 443, 2222, 3306, 8080, 9090, 15008, 15020, 15090}
	proxyPorts = []uint16{15001, 15006, 15053}
)

// newWorld makes the world. The VM's applications leave the given ports to others.
func newWorld(t *testing.T, but ...uint16) *world {
	t.Helper()
	w := &world{vm: netns.New(t), net: netns.Create(t), container: netns.Create(t)}
	cable := func(name, peer string, to *netns.NS) {
		t.Helper()
		link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: peer, PeerNamespace: netlink.NsFd(to.Fd())}
		if err := netlink.LinkAdd(link); err != nil {
			netns.Skip(t, fmt.Sprintf("no veth pair: %v", err))
		}
	}
	cable("eth0", "eth0", w.net)
	cable("virbr0", "eth0", w.container)
	sysctl(t, "net/ipv4/ip_forward", "1")
	ip(t, "link set eth0 up", "link set virbr0 up",
		"addr add "+vmAddr+"/24 dev eth0", "addr add "+vmAddr6+"/64 dev eth0 nodad", "addr add "+bridgeAddr+"/24 dev virbr0",
		"route add default via "+hostAddr, "route add default via "+hostAddr6)
	w.in(t, w.net, func() error {
		setup := []string{"link set eth0 up", "addr add " + hostAddr + "/24 dev eth0", "addr add " + hostAddr6 + "/64 dev eth0 nodad", "route add " + containerAddr + " via " + vmAddr}
		for _, a := range netAddrs {
			setup = append(setup, "addr add "+a+" dev lo"+map[bool]string{true: " nodad"}[strings.Contains(a, "::")])
		}
		ip(t, setup...)
		var addrs []string
		for _, a := range netAddrs {
			addr, _, _ := strings.Cut(a, "/")
			addrs = append(addrs, addr)
		}
		_, err := serve(t, "net", addrs, appPorts, false)
		return err
	})
	w.in(t, w.container, func() error {
		ip(t, "link set eth0 up", "addr add "+containerAddr+"/24 dev eth0", "route add default via "+bridgeAddr)
		return nil
	})
	served := slices.DeleteFunc(slices.Clone(appPorts), func(p uint16) bool { return slices.Contains(but, p) })
	if _, err := serve(t, "vm", []string{vmAddr, vmAddr6, bridgeAddr, "127.0.0.1", "127.0.0.53"}, served, false); err != nil {
		t.Fatal(err)
	}
	if err := as(proxyID, proxyID, func() (err error) {
		w.proxy, err = serve(t, "vm", []string{"127.0.0.1", "::1", bridgeAddr}, proxyPorts, true)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	w.await(t)
	return w
}

// await returns once packets of both families pass the cables, which takes the kernel a moment.
func (w *world) await(t *testing.T) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for _, path := range []struct {
		from *netns.NS
		to   string
	}{{w.vm, "10.96.0.7:80"}, {w.vm, "[2001:db8:1::9]:80"}, {w.container, "10.96.0.7:80"}, {w.net, vmAddr + ":80"}, {w.net, "[" + vmAddr6 + "]:80"}} {
		for arrived := false; !arrived; {
			w.in(t, path.from, func() error {
				arrived = strings.Contains(ask("tcp", "", path.to, impatience), ":80 ")
				return nil
			})
			if !arrived && time.Now().After(deadline) {
				t.Fatalf("no packet reaches %s", path.to)
			}
		}
	}
}

// in runs f in another namespace and fails the test if it fails.
func (w *world) in(t *testing.T, ns *netns.NS, f func() error) {
	t.Helper()
	if err := ns.Do(f); err != nil {
		t.Fatal(err)
	}
}

// ip runs commands of ip(8), all in one process.
func ip(t *testing.T, commands ...string) {
	t.Helper()
	cmd := exec.Command(netns.Tool(t, "ip"), "-batch", "-")
	cmd.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("ip -batch: %v: %s\n%s", err, out, strings.Join(commands, "\n"))
	}
}

// sysctl sets a variable of the calling thread's network namespace.
func sysctl(t *testing.T, key, value string) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/"+key, []byte(value), 0); err != nil {
		t.Fatal(err)
	}
}

// as runs f with the file-system uid and gid of somebody else: it is what sockets are owned by.
func as(uid, gid int, f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	setfs := func(call uintptr, id int) { _, _, _ = syscall.RawSyscall(call, uintptr(id), 0, 0) }
	setfs(syscall.SYS_SETFSGID, gid)
	setfs(syscall.SYS_SETFSUID, uid)
	defer func() {
		setfs(syscall.SYS_SETFSUID, 0)
		setfs(syscall.SYS_SETFSGID, 0)
	}()
	return f()
}

// serve answers on ports, TCP on every address and UDP on the given ones (an answer to a datagram must come from where it was
// sent to), with "name:port local remote". It must be called in the namespace, by the thread that shall own the sockets.
func serve(t *testing.T, name string, udpAddrs []string, ports []uint16, transparent bool) (sockets []io.Closer, err error) {
	lc := net.ListenConfig{}
	if transparent {
		lc.Control = makeTransparent
	}
	for _, p := range ports {
		for _, network := range []string{"tcp4", "tcp6"} {
			l, err := lc.Listen(t.Context(), network, fmt.Sprintf(":%d", p))
			if err != nil {
				return sockets, fmt.Errorf("serve port %d: %w", p, err)
			}
			sockets = append(sockets, l)
			t.Cleanup(func() { l.Close() })
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					fmt.Fprintf(c, "%s:%d %s %s", name, p, c.LocalAddr(), c.RemoteAddr())
					c.Close()
				}
			}()
		}
		for _, a := range udpAddrs {
			u, err := lc.ListenPacket(t.Context(), "udp", net.JoinHostPort(a, fmt.Sprint(p)))
			if err != nil {
				return sockets, fmt.Errorf("serve port %d: %w", p, err)
			}
			sockets = append(sockets, u)
			t.Cleanup(func() { u.Close() })
			go func() {
				buf := make([]byte, 64)
				for {
					_, from, err := u.ReadFrom(buf)
					if err != nil {
						return
					}
					_, _ = u.WriteTo(fmt.Appendf(nil, "%s:%d %s %s", name, p, u.LocalAddr(), from), from)
				}
			}()
		}
	}
	return sockets, nil
}

// stopProxy closes the sockets of Envoy and the agent.
func (w *world) stopProxy() {
	for _, c := range w.proxy {
		c.Close()
	}
}

// makeTransparent lets a socket take what TPROXY sends it. The option needs a capability that goes away with root's
// file-system uid, so that comes back for a moment.
func makeTransparent(network, _ string, c syscall.RawConn) error {
	uid, _, _ := syscall.RawSyscall(syscall.SYS_SETFSUID, 0, 0, 0)
	defer func() { _, _, _ = syscall.RawSyscall(syscall.SYS_SETFSUID, uid, 0, 0) }()
	var err error
	cerr := c.Control(func(fd uintptr) {
		level, option := unix.SOL_IP, unix.IP_TRANSPARENT
		if strings.HasSuffix(network, "6") {
			level, option = unix.SOL_IPV6, unix.IPV6_TRANSPARENT
		}
		err = unix.SetsockoptInt(int(fd), level, option, 1)
	})
	return errors.Join(err, cerr)
}

// Silence of this length counts as a dropped packet: long where an answer is expected, so that a busy machine is no failure.
const (
	patience   = 30 * time.Second
	impatience = 500 * time.Millisecond
)

// ask connects, or sends a datagram, and returns the answer: "dropped" for silence, "refused" for a refusal.
func ask(proto, from, to string, wait time.Duration) string {
	d := net.Dialer{Timeout: wait}
	if from != "" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
		if strings.HasPrefix(proto, "udp") {
			d.LocalAddr = &net.UDPAddr{IP: net.ParseIP(from)}
		}
	}
	c, err := d.Dial(proto, to)
	if err != nil {
		return failure(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(wait))
	if proto == "udp" {
		if _, err := c.Write([]byte("?")); err != nil {
			return failure(err)
		}
	}
	buf := make([]byte, 256)
	n, err := c.Read(buf)
	if err != nil {
		return failure(err)
	}
	return string(buf[:n])
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

func failure(err error) string {
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case isTimeout(err):
		return "dropped"
	}
	return err.Error()
}
