package identity

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestPlanCopy(t *testing.T) {
	want := TokenWant{Audience: "istio-ca", Namespace: "forum-services", ServiceAccount: "forum-sa"}
	good := offer{token: hide(token(testNow.Add(time.Hour), nil))}
	newer := offer{token: hide(token(testNow.Add(2*time.Hour), nil))}
	expired := offer{token: hide(token(testNow.Add(-time.Second), nil))}
	others := offer{token: hide(token(testNow.Add(time.Hour), func(j *jwt) { j.who = "other" }))}
	vaults := offer{token: hide(token(testNow.Add(time.Hour), func(j *jwt) { j.audience = "vault" }))}
	endless := offer{token: hide(token(time.Time{}, nil))}
	none := offer{err: ErrNoToken}
	garbage := offer{err: ErrNotJWT}
	tests := []struct {
		name       string
		file, kept offer
		lasts      bool // the file outlives a reboot
		want       copyStep
	}{
		{"a first token", good, none, false, copyWritten},
		{"the same token", good, good, false, copyStays},
		{"a newer one", newer, good, false, copyWritten},
		{"an older one that is good: the operator put it there", good, newer, false, copyWritten},
		{"garbage in the copy", good, garbage, false, copyWritten},
		{"nothing at all", none, none, false, copyStays},
		{"after a reboot", none, good, false, copyStays},
		{"after a reboot, too late", none, expired, false, copyDropped},
		{"after a reboot, garbage", none, garbage, false, copyDropped},
		{"the file's token expired, the copy is good", expired, good, false, copyStays},
		{"both expired", expired, expired, false, copyDropped},
		{"an expired token is not copied", expired, none, false, copyStays},
		{"half a file", garbage, good, false, copyStays},
		{"another account's is not copied", others, none, false, copyStays},
		{"another audience's is not copied", vaults, none, false, copyStays},
		{"the settings name another account now", none, others, false, copyDropped},
		{"a token without an end is not copied", endless, none, false, copyStays},
		{"a file that lasts needs no copy", good, none, true, copyStays},
		{"a file that lasts, and a copy of before", newer, good, true, copyDropped},
		{"a folder that lasts, without the file", none, good, true, copyStays},
	}
	for _, tt := range tests {
		if got := planCopy(tt.file, tt.kept, !tt.lasts, want, testNow); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
	}
}

// TestATokenOutlivesAReboot is a machine that gets its token while istiod is away, reboots, and joins by the copy when istiod is back.
func TestATokenOutlivesAReboot(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		l.disk.volatile = func(string) bool { return true }
		kept := filepath.Join(l.vm.state, storeName, copyFile)
		l.down.Store(true)
		l.start()
		l.pass(time.Second)
		info, err := os.Stat(kept)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Fatalf("the copy: %v, %v", info, err)
		}
		if n := l.log.count("token found"); n != 1 {
			t.Errorf("%d tokens found, want one: our own copy is no news", n)
		}
		l.stop()
		os.RemoveAll(filepath.Dir(l.vm.token)) // the tmpfs is new
		l.down.Store(false)
		l.start()
		l.pass(time.Second)
		l.mustBe(Valid)
		if s := l.m.State(); s.Source != SourceCopy || s.Token.Present {
			t.Errorf("joined by %q, token file %+v", s.Source, s.Token)
		}
		l.pass(time.Hour + longestSleep)
		if _, err := os.Stat(kept); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the copy outlives the token: %v", err)
		}
		if left, _ := filepath.Glob(filepath.Join(l.vm.state, storeName, copyFile+"*")); len(left) > 0 {
			t.Errorf("leftovers: %v", left)
		}
	})
}

func TestANewFileWinsOverTheCopy(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		l.disk.volatile = func(string) bool { return true }
		l.down.Store(true)
		l.start()
		l.pass(time.Second)
		fresh := token(time.Now().Add(3*time.Hour), nil)
		putFile(t, l.vm.token, fresh)
		l.poke()
		l.pass(time.Second)
		if content, err := os.ReadFile(filepath.Join(l.vm.state, storeName, copyFile)); strings.TrimSpace(string(content)) != fresh {
			t.Errorf("the copy is not the new token: %v", err)
		}
		l.down.Store(false)
		l.pass(time.Minute)
		l.mustBe(Valid)
		if s := l.m.State(); s.Source != SourceFile {
			t.Errorf("joined by %q", s.Source)
		}
	})
}

// A copy that cannot be written costs the copy.
func TestACopyThatCannotBeWrittenIsSaidOnce(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		l.disk.volatile = func(string) bool { return true }
		create := l.disk.create
		l.disk.create = func(path string, data []byte) error {
			if strings.HasPrefix(filepath.Base(path), copyFile) {
				return &os.PathError{Op: "write", Path: path, Err: syscall.ENOSPC}
			}
			return create(path, data)
		}
		l.start()
		l.pass(10 * time.Minute)
		l.mustBe(Valid)
		if n := l.log.count("WARN", "token is not kept for the next boot", "no space left on device"); n != 1 {
			t.Errorf("said %d times\n%s", n, l.log)
		}
	})
}

func TestATmpfsIsVolatile(t *testing.T) {
	if volatile("/proc/self/nothing") || volatile("/nowhere") {
		t.Error("what cannot be told is called volatile")
	}
	if _, err := os.Stat("/dev/shm"); err != nil {
		t.Skip("no /dev/shm here")
	}
	f, err := os.CreateTemp("/dev/shm", "wingman-test-")
	if err != nil {
		t.Skip("no writable /dev/shm here")
	}
	defer os.Remove(f.Name())
	f.Close()
	if !volatile(f.Name()) {
		t.Error("a file of /dev/shm outlives a reboot")
	}
}
