package systemd

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestListenNames(t *testing.T) {
	const self = 4711
	for _, tt := range []struct {
		name, pid, fds, names string
		want                  []string
		err                   string
	}{
		{"nothing", "", "", "", nil, ""},
		{"two with names", "4711", "2", "tcp:udp", []string{"tcp", "udp"}, ""},
		{"two with the same name", "4711", "2", "dns:dns", []string{"dns", "dns"}, ""},
		{"none after all", "4711", "0", "", []string{}, ""},
		{"no names", "4711", "2", "", []string{"unknown", "unknown"}, ""},
		{"an empty name", "4711", "3", "a::b", []string{"a", "unknown", "b"}, ""},
		{"meant for another process", "4712", "2", "a:b", nil, ""},
		{"no process", "4711x", "2", "a:b", nil, `LISTEN_PID: found "4711x", expected a process id`},
		{"words for a count", "4711", "two", "a:b", nil, `LISTEN_FDS: found "two", expected 0 to 1024`},
		{"fewer than none", "4711", "-1", "", nil, `LISTEN_FDS: found "-1", expected 0 to 1024`},
		{"more than there can be", "4711", "1025", "", nil, `LISTEN_FDS: found "1025", expected 0 to 1024`},
		{"too few names", "4711", "3", "a:b", []string{"a", "b", "unknown"}, "LISTEN_FDNAMES: found 2 names for 3 descriptors"},
		{"too many names", "4711", "1", "a:b", []string{"a"}, "LISTEN_FDNAMES: found 2 names for 1 descriptors"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := listenNames(tt.pid, self, tt.fds, tt.names)
			if !slices.Equal(got, tt.want) {
				t.Errorf("names %q, want %q", got, tt.want)
			}
			if text := fmt.Sprint(err); text != tt.err && (err != nil || tt.err != "") {
				t.Errorf("error %v, want %s", err, tt.err)
			}
		})
	}
}

func FuzzListenNames(f *testing.F) {
	f.Add("4711", "2", "tcp:udp")
	f.Add("4711", "3", "a::b:")
	f.Add("1", "1024", "")
	f.Add("4711", "-1", ":")
	f.Fuzz(func(t *testing.T, pid, fds, names string) {
		got, err := listenNames(pid, 4711, fds, names)
		if len(got) > maxFDs {
			t.Errorf("%d names", len(got))
		}
		if n, convErr := strconv.Atoi(fds); err == nil && len(got) > 0 && (convErr != nil || n != len(got)) {
			t.Errorf("%d names for LISTEN_FDS=%q", len(got), fds)
		}
		if slices.Contains(got, "") {
			t.Errorf("an empty name in %q", got)
		}
	})
}

// TestInherited runs this test again as a child that gets descriptors from 3 on, as from systemd.
func TestInherited(t *testing.T) {
	if os.Getenv("SYSTEMD_TEST_CHILD") == "1" {
		inheritInChild()
		return
	}
	listener, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	tcp, err := listener.File()
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	udp, err := conn.File()
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()

	child := func(names string, count int) string {
		t.Helper()
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(self, "-test.run=^TestInherited$")
		cmd.ExtraFiles = []*os.File{tcp, udp, udp}
		cmd.Env = append(os.Environ(), "SYSTEMD_TEST_CHILD=1", "LISTEN_FDS="+strconv.Itoa(count), "LISTEN_FDNAMES="+names)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		said, _, _ := strings.Cut(string(out), "PASS")
		return strings.TrimSpace(said)
	}
	got := child("dns:dns:extra", 3)
	want := fmt.Sprintf("error <nil>\ndns cloexec %s\ndns cloexec %s\nextra cloexec %s\nleft in the environment: none", tcpName(listener), udpName(conn), udpName(conn))
	if got != want {
		t.Errorf("the child says\n%s\nwant\n%s", got, want)
	}

	// Descriptor 6 is not there; what is there comes all the same.
	got = child("dns:dns:extra:ghost", 4)
	want = strings.Replace(want, "error <nil>", "error LISTEN_FDS: descriptor 6 (ghost): bad file descriptor", 1)
	if got != want {
		t.Errorf("the child says\n%s\nwant\n%s", got, want)
	}
}

func tcpName(l net.Listener) string { return "tcp " + l.Addr().String() }
func udpName(c net.PacketConn) string {
	return "udp " + c.LocalAddr().String()
}

func inheritInChild() {
	os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
	// The test binary has descriptors of its own above those that it was given; systemd's child has not.
	files, err := Inherited(func(key string) string {
		if key == "LISTEN_FDS" && os.Getenv(key) == "4" {
			unix.Close(6)
		}
		return os.Getenv(key)
	}, os.Unsetenv)
	fmt.Println("error", err)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		for _, f := range files[name] {
			what := "nothing"
			if l, err := net.FileListener(f); err == nil {
				what = tcpName(l)
			} else if c, err := net.FilePacketConn(f); err == nil {
				what = udpName(c)
			}
			cloexec := ""
			raw, _ := f.SyscallConn()
			raw.Control(func(fd uintptr) {
				if flags, err := unix.FcntlInt(fd, unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC != 0 {
					cloexec = " cloexec"
				}
			})
			fmt.Printf("%s%s %s\n", name, cloexec, what)
		}
	}
	left := []string{}
	for _, kv := range os.Environ() {
		if strings.HasPrefix(kv, "LISTEN_") {
			left = append(left, kv)
		}
	}
	if len(left) == 0 {
		left = []string{"none"}
	}
	fmt.Println("left in the environment:", strings.Join(left, " "))
}

func TestAnEnvironmentThatCannotBeUnsetIsAnError(t *testing.T) {
	refused := errors.New("refused")
	if _, err := Inherited(env(), func(string) error { return refused }); !errors.Is(err, refused) {
		t.Errorf("error %v, want %v", err, refused)
	}
}
