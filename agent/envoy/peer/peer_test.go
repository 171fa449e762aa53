package peer

import (
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"wingman/test/netns"
	"wingman/test/syncbuffer"
)

// dialVar makes the test binary a client: it dials the socket that the variable names and prints what it is sent.
const dialVar = "WINGMAN_PEER_TEST_DIAL"

func TestMain(m *testing.M) {
	if path := os.Getenv(dialVar); path != "" {
		c, err := net.Dial("unix", path)
		if err != nil {
			os.Exit(3)
		}
		b := make([]byte, 5)
		n, _ := c.Read(b)
		os.Stdout.Write(b[:n])
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// greet serves "hello" to whoever is let in.
func greet(t *testing.T, c Config) net.Listener {
	t.Helper()
	l, err := Listen(c)
	if err != nil {
		t.Fatal(err)
	}
	var done sync.WaitGroup
	done.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Write([]byte("hello"))
			c.Close()
		}
	})
	t.Cleanup(func() {
		if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		done.Wait()
	})
	return l
}

// as runs a client as another user and returns what it was sent.
func as(t *testing.T, uid uint32, path string) string {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), dialVar+"="+path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("client as uid %d: %v", uid, err)
	}
	return string(out)
}

func needsRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		netns.Skip(t, "other users' processes take root")
	}
}

// folder is one that everybody may enter, with a short path.
func folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "wm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestWhoMayConnect(t *testing.T) {
	needsRoot(t)
	const envoy, stranger = 4001, 4002
	var logs syncbuffer.Buffer
	path := filepath.Join(folder(t), "s")
	greet(t, Config{Path: path, Owner: envoy, Log: slog.New(slog.NewTextHandler(&logs, nil))})
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if owner := info.Sys().(*syscall.Stat_t).Uid; info.Mode().Perm() != 0o600 || owner != envoy {
		t.Errorf("the socket has mode %v and owner %d, want 0600 and %d", info.Mode(), owner, envoy)
	}
	// Whoever widens the mode changes nothing.
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		who  string
		uid  uint32
		want string
	}{{"root", 0, "hello"}, {"the owner", envoy, "hello"}, {"a stranger", stranger, ""}, {"the stranger again", stranger, ""}} {
		if got := as(t, tt.uid, path); got != tt.want {
			t.Errorf("%s is sent %q, want %q", tt.who, got, tt.want)
		}
	}
	if said := logs.String(); strings.Count(said, "refused") != 1 || !strings.Contains(said, "uid=4002") {
		t.Errorf("the stranger is to be named once:\n%s", said)
	}
}

func TestWithoutOwnerOnlyRootAndSelf(t *testing.T) {
	needsRoot(t)
	path := filepath.Join(folder(t), "s")
	greet(t, Config{Path: path})
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	if got := as(t, 4001, path); got != "" {
		t.Errorf("uid 4001 is sent %q", got)
	}
	if got := as(t, 0, path); got != "hello" {
		t.Errorf("root is sent %q", got)
	}
}

// hello dials as this process's own user.
func hello(path string) error {
	c, err := net.Dial("unix", path)
	if err != nil {
		return err
	}
	defer c.Close()
	b := make([]byte, 5)
	if n, err := c.Read(b); string(b[:n]) != "hello" {
		return errors.Join(errors.New("no hello"), err)
	}
	return nil
}

func TestALeftoverIsReplaced(t *testing.T) {
	path := filepath.Join(folder(t), "s")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	if err := dead.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(filepath.Dir(path), ".s"), nil, 0o600); err != nil { // of a start that was cut short
		t.Fatal(err)
	}
	greet(t, Config{Path: path})
	if err := hello(path); err != nil {
		t.Error(err)
	}
}

// The next one is in place before the former has gone, and survives its end.
func TestTheNextSocketSurvivesTheFormersEnd(t *testing.T) {
	path := filepath.Join(folder(t), "s")
	former := greet(t, Config{Path: path})
	next := greet(t, Config{Path: path})
	if err := former.Close(); err != nil {
		t.Fatal(err)
	}
	if err := hello(path); err != nil {
		t.Errorf("after the former's end: %v", err)
	}
	if err := next.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after its own end the socket is still there: %v", err)
	}
}

func TestPathsThatCannotBeSockets(t *testing.T) {
	dir := folder(t)
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, path, part string }{
		{"none", "", "expected a path of 1 to 107 bytes"},
		{"too long", "/" + strings.Repeat("x", 107), "expected a path of 1 to 107 bytes"},
		{"below a file", filepath.Join(file, "s"), "folder of the socket"},
	} {
		if _, err := Listen(Config{Path: tt.path}); err == nil || !strings.Contains(err.Error(), tt.part) {
			t.Errorf("%s: %v, want an error with %q", tt.name, err, tt.part)
		}
	}
	// The longest there is, although the name used meanwhile would be longer.
	long := filepath.Join(dir, strings.Repeat("x", 107-len(dir)-1))
	greet(t, Config{Path: long})
	if err := hello(long); err != nil {
		t.Errorf("path of %d bytes: %v", len(long), err)
	}
}
