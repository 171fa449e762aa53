package systemd

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// manager is the socket that systemd listens on.
type manager struct {
	t    *testing.T
	conn *net.UnixConn
}

// message is what came in one datagram.
type message struct {
	text  string
	files []*os.File
}

func listenAs(t *testing.T, name string) *manager {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &manager{t, conn}
}

func newManager(t *testing.T) *manager { return listenAs(t, filepath.Join(t.TempDir(), "notify")) }

func (m *manager) next() message {
	m.t.Helper()
	m.conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	text, control := make([]byte, 8192), make([]byte, 4096)
	n, cn, _, _, err := m.conn.ReadMsgUnix(text, control)
	if err != nil {
		m.t.Fatalf("nothing was sent: %v", err)
	}
	got := message{text: string(text[:n])}
	parts, err := unix.ParseSocketControlMessage(control[:cn])
	if err != nil {
		m.t.Fatal(err)
	}
	for _, part := range parts {
		fds, err := unix.ParseUnixRights(&part)
		if err != nil {
			m.t.Fatal(err)
		}
		for _, fd := range fds {
			f := os.NewFile(uintptr(fd), "received")
			m.t.Cleanup(func() { f.Close() })
			got.files = append(got.files, f)
		}
	}
	return got
}

// env is a getenv over a fixed environment.
func env(pairs ...string) func(string) string {
	return func(key string) string {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == key {
				return pairs[i+1]
			}
		}
		return ""
	}
}

func newNotifier(t *testing.T, m *manager) *Notifier {
	t.Helper()
	n, err := NewNotifier(env("NOTIFY_SOCKET", m.conn.LocalAddr().String()))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestMessages(t *testing.T) {
	m := newManager(t)
	n := newNotifier(t, m)
	for _, tt := range []struct {
		name string
		send func() error
		want string
	}{
		{"ready", n.Ready, "READY=1"},
		{"status", func() error { return n.Status("joined as forum-vm") }, "STATUS=joined as forum-vm"},
		{"a status cannot smuggle in a second message", func() error { return n.Status("a\nMAINPID=1\r\nb") }, "STATUS=a MAINPID=1  b"},
		{"stopping", n.Stopping, "STOPPING=1"},
		{"watchdog", n.Watchdog, "WATCHDOG=1"},
		{"remove", func() error { return n.RemoveFDs("dns") }, "FDSTOREREMOVE=1\nFDNAME=dns"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := tt.send(); err != nil {
				t.Fatal(err)
			}
			if got := m.next(); got.text != tt.want || len(got.files) != 0 {
				t.Errorf("sent %q with %d files, want %q with none", got.text, len(got.files), tt.want)
			}
		})
	}
}

func TestReloadingCarriesTheMonotonicTime(t *testing.T) {
	m := newManager(t)
	usec := func() int64 {
		var now unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
			t.Fatal(err)
		}
		return now.Nano() / 1000
	}
	before := usec()
	if err := newNotifier(t, m).Reloading(); err != nil {
		t.Fatal(err)
	}
	after := usec()
	got := m.next().text
	text, found := strings.CutPrefix(got, "RELOADING=1\nMONOTONIC_USEC=")
	at, err := strconv.ParseInt(text, 10, 64)
	if !found || err != nil || at < before || at > after {
		t.Errorf("sent %q, want a time from %d to %d", got, before, after)
	}
}

func TestAnAbstractSocket(t *testing.T) {
	m := listenAs(t, fmt.Sprintf("@wingman-test-%d", os.Getpid()))
	if err := newNotifier(t, m).Ready(); err != nil {
		t.Fatal(err)
	}
	if got := m.next().text; got != "READY=1" {
		t.Errorf("sent %q, want READY=1", got)
	}
}

func TestWithoutAManagerNothingIsSentAndNothingFails(t *testing.T) {
	none, err := NewNotifier(env("WATCHDOG_USEC", "1000"))
	if err != nil {
		t.Fatal(err)
	}
	if none.WatchdogInterval() != 0 {
		t.Errorf("watchdog every %s without anybody to tell", none.WatchdogInterval())
	}
	for _, n := range []*Notifier{none, {}} {
		if err := errors.Join(n.Ready(), n.Status("x"), n.Reloading(), n.Stopping(), n.Watchdog(), n.StoreFDs("dns", os.Stdin), n.RemoveFDs("dns")); err != nil {
			t.Error(err)
		}
	}
}

func TestAManagerThatIsGoneIsAnError(t *testing.T) {
	m := newManager(t)
	n := newNotifier(t, m)
	m.conn.Close()
	if err := n.Ready(); err == nil || !strings.HasPrefix(err.Error(), "notify systemd of READY: ") {
		t.Errorf("error %v, want one that says what was not sent", err)
	}
}

func TestAManagerThatComesBackIsFound(t *testing.T) {
	m := newManager(t)
	n := newNotifier(t, m)
	name := m.conn.LocalAddr().String()
	m.conn.Close()
	os.Remove(name)
	again := listenAs(t, name)
	if err := n.Ready(); err != nil {
		t.Fatal(err)
	}
	if got := again.next().text; got != "READY=1" {
		t.Errorf("sent %q, want READY=1", got)
	}
}

func TestTheEnvironmentIsChecked(t *testing.T) {
	for _, tt := range []struct {
		name, socket, usec, pid string
		watchdog                time.Duration // what WatchdogInterval says
		err                     string
	}{
		{"no watchdog", "/run/n", "", "", 0, ""},
		{"a watchdog", "/run/n", "30000000", "", 15 * time.Second, ""},
		{"a watchdog for this process", "/run/n", "30000000", strconv.Itoa(os.Getpid()), 15 * time.Second, ""},
		{"a watchdog for another process", "/run/n", "30000000", "1", 0, ""},
		{"a relative path", "run/n", "", "", 0, `NOTIFY_SOCKET: found "run/n", expected an absolute path or an abstract socket that begins with @`},
		{"a socket of another kind", "vsock:2:1234", "", "", 0, `NOTIFY_SOCKET: found "vsock:2:1234", expected an absolute path or an abstract socket that begins with @`},
		{"a path too long for a socket", "/" + strings.Repeat("n", 107), "", "", 0, "NOTIFY_SOCKET: found a path of 108 bytes, expected fewer than 108"},
		{"words for a watchdog", "/run/n", "30s", "", 0, `WATCHDOG_USEC: found "30s", expected microseconds above zero`},
		{"zero", "/run/n", "0", "", 0, `WATCHDOG_USEC: found "0", expected microseconds above zero`},
		{"more than there is time", "/run/n", "9223372036854775807", "", 0, `WATCHDOG_USEC: found "9223372036854775807", expected microseconds above zero`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n, err := NewNotifier(env("NOTIFY_SOCKET", tt.socket, "WATCHDOG_USEC", tt.usec, "WATCHDOG_PID", tt.pid))
			if tt.err != "" {
				if err == nil || err.Error() != tt.err {
					t.Errorf("error %v, want %s", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := n.WatchdogInterval(); got != tt.watchdog {
				t.Errorf("watchdog every %s, want %s", got, tt.watchdog)
			}
		})
	}
}

func TestStoredFilesArriveTogetherAndStayAsTheyAre(t *testing.T) {
	m := newManager(t)
	n := newNotifier(t, m)
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	listener, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	udp, err := conn.File()
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	tcp, err := listener.File()
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()

	if err := n.StoreFDs("dns0", udp, tcp); err != nil {
		t.Fatal(err)
	}
	got := m.next()
	if want := "FDSTORE=1\nFDNAME=dns0\nFDPOLL=0"; got.text != want {
		t.Errorf("sent %q, want %q", got.text, want)
	}
	if len(got.files) != 2 {
		t.Fatalf("%d files arrived, want 2", len(got.files))
	}
	stored, err := net.FilePacketConn(got.files[0])
	if err != nil {
		t.Fatal(err)
	}
	defer stored.Close()
	if stored.LocalAddr().String() != conn.LocalAddr().String() {
		t.Errorf("the first file is %s, want the UDP socket %s", stored.LocalAddr(), conn.LocalAddr())
	}
	storedListener, err := net.FileListener(got.files[1])
	if err != nil {
		t.Fatal(err)
	}
	defer storedListener.Close()
	if storedListener.Addr().String() != listener.Addr().String() {
		t.Errorf("the second file is %s, want the listener %s", storedListener.Addr(), listener.Addr())
	}
	// A blocking descriptor would take a thread for each read, and deadlines would not work any more.
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0)
		if err != nil || flags&unix.O_NONBLOCK == 0 {
			t.Errorf("the socket became blocking (flags %#x, error %v)", flags, err)
		}
	})
}

func TestFilesThatCannotBeStored(t *testing.T) {
	n := newNotifier(t, newManager(t))
	for _, name := range []string{"", "a:b", "a\nb", "ä", strings.Repeat("n", 256)} {
		if err := n.StoreFDs(name, os.Stdin); err == nil || !strings.Contains(err.Error(), "descriptor name") {
			t.Errorf("store as %q: error %v, want one about the name", name, err)
		}
		if err := n.RemoveFDs(name); err == nil {
			t.Errorf("remove %q: no error", name)
		}
	}
	closed, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	if err := n.StoreFDs("dns", os.Stdin, closed); err == nil || !strings.HasPrefix(err.Error(), "store dns: ") {
		t.Errorf("store a closed file: error %v, want one that names it", err)
	}
}

func TestANotifierIsSafeForConcurrentUse(t *testing.T) {
	m := newManager(t)
	n := newNotifier(t, m)
	var sending sync.WaitGroup
	for range 8 {
		sending.Go(func() {
			if err := errors.Join(n.Watchdog(), n.StoreFDs("dns", os.Stdin)); err != nil {
				t.Error(err)
			}
		})
	}
	var got []string
	for range 16 {
		got = append(got, m.next().text)
	}
	sending.Wait()
	slices.Sort(got)
	if slices.Index(got, "WATCHDOG=1") != 8 {
		t.Errorf("got %q, want eight of each", got)
	}
}
