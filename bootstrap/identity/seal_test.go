package identity

import (
	"bytes"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// sealed has the lab's store sealed, with a key, on a machine whose run folder is a tmpfs.
func (l *lab) sealed() {
	l.disk.volatile = func(path string) bool {
		return strings.HasPrefix(path, filepath.Join(l.vm.root, "run")) || path == l.vm.token
	}
	l.cfg.Seal, l.cfg.RunDir = true, filepath.Join(l.vm.root, "run/wingman")
	l.newSealKey(1)
}

func (l *lab) newSealKey(n byte) {
	l.cfg.SealKey = filepath.Join(l.vm.root, "run/credentials", SealKey)
	putFile(l.t, l.cfg.SealKey, hex.EncodeToString(bytes.Repeat([]byte{n}, 32))+"\n")
}

// inTheClear lists the files of the state folder that hold a key or a token as it is.
func (l *lab) inTheClear() (list []string) {
	filepath.WalkDir(l.vm.state, func(path string, e os.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			if data, err := os.ReadFile(path); err == nil && (bytes.Contains(data, []byte("PRIVATE KEY")) || bytes.Contains(data, []byte("eyJ"))) {
				list = append(list, strings.TrimPrefix(path, l.vm.state+"/"))
			}
		}
		return nil
	})
	return list
}

func (l *lab) sealedFiles() int {
	list, err := Sealed(l.vm.state)
	if err != nil {
		l.t.Fatal(err)
	}
	return len(list)
}

func TestASealedStore(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		l.sealed()
		l.start()
		l.pass(time.Second)
		l.mustBe(Valid)
		serial := l.m.Current().Serial
		if clear := l.inTheClear(); len(clear) > 0 {
			t.Errorf("in the clear at rest: %v", clear)
		}
		if n := l.sealedFiles(); n != 2 {
			t.Errorf("%d sealed files, want the key and the copy of the token", n)
		}
		if got := l.onDisk(); got != serial {
			t.Errorf("applications find %q, want %s", got, serial)
		}
		if to := resolved(filepath.Join(l.vm.output, keyFile)); !strings.HasPrefix(to, l.cfg.RunDir) {
			t.Errorf("the key that applications find is %s", to)
		}
		l.pass(13 * time.Hour)
		if got := l.onDisk(); got != l.m.Current().Serial || got == serial {
			t.Errorf("after a renewal applications find %q", got)
		}
		l.stop()
		os.RemoveAll(l.cfg.RunDir) // a reboot
		serial = l.m.Current().Serial
		l.start()
		l.pass(time.Second)
		if got := l.onDisk(); l.m.Current().Serial != serial || got != serial {
			t.Errorf("after a reboot %s is in use and %q found, want %s", l.m.Current().Serial, got, serial)
		}
		if s := l.m.State(); s.StoreProblem != "" || s.OutputProblem != "" || !s.Sealed {
			t.Errorf("%+v", s)
		}
	})
}

// TestTheSettingRewritesTheStore turns sealing on and off again: the certificate stays the same one.
func TestTheSettingRewritesTheStore(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		l.disk.volatile = func(path string) bool { return path == l.vm.token }
		l.start()
		l.pass(13 * time.Hour) // two generations in the clear
		l.putToken(time.Hour)
		l.poke() // its copy is in the clear
		l.stop()
		os.Remove(l.vm.token)
		serial := l.m.Current().Serial
		if clear := l.inTheClear(); len(clear) != 3 {
			t.Errorf("at first in the clear: %v, want two keys and a token", clear)
		}
		check := func(what string) {
			t.Helper()
			l.start()
			l.pass(time.Second)
			defer l.stop()
			if got := l.onDisk(); l.m.Current().Serial != serial || got != serial {
				t.Errorf("%s: %s in use, %q found, want %s", what, l.m.Current().Serial, got, serial)
			}
			if s := l.m.State(); s.StoreProblem != "" || s.OutputProblem != "" {
				t.Errorf("%s: %q, %q", what, s.StoreProblem, s.OutputProblem)
			}
		}
		l.sealed()
		check("on")
		if clear := l.inTheClear(); len(clear) > 0 || l.sealedFiles() != 2 {
			t.Errorf("on: in the clear at rest: %v, %d files are sealed", clear, l.sealedFiles())
		}
		l.cfg.Seal = false
		check("off")
		if n := l.sealedFiles(); n != 0 {
			t.Errorf("off: %d sealed files", n)
		}
		if _, err := os.Lstat(filepath.Join(l.cfg.RunDir, storeName)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("off: a key is left in the run folder: %v", err)
		}
		l.cfg.SealKey = ""
		l.start()
		l.pass(13 * time.Hour)
		l.mustBe(Valid)
	})
}

// TestAStoreWhoseKeyIsMissing loses nothing: the sealed generation stays for the day that its key is back, and credentials do what they can until then.
func TestAStoreWhoseKeyIsMissing(t *testing.T) {
	tests := []struct {
		name string
		lose func(l *lab)
		want string
	}{
		{"the key is missing", func(l *lab) { l.cfg.SealKey = "" }, "key.pem: it is sealed and the unit has no key (credential wingman-seal-key, which is missing or not this machine's): bring back /etc/credstore.encrypted/wingman-seal-key and the unit's drop-in, or a fresh token"},
		{"its file is", func(l *lab) { os.Remove(l.cfg.SealKey) }, "key.pem: it is sealed and the unit has no key (credential wingman-seal-key, which is missing or not this machine's): bring back"},
		{"another machine's", func(l *lab) { l.newSealKey(2) }, "key.pem: it is sealed with another key: the store is a copy of another machine's, or the key was made anew; a fresh token is needed"},
		{"no key at all", func(l *lab) { putFile(l.t, l.cfg.SealKey, "secret") }, "key.pem: it is sealed and credential wingman-seal-key: it is no key: expected 64 hexadecimal digits"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inLab(t, func(t *testing.T, l *lab) {
				l.sealed()
				l.start()
				l.pass(time.Second)
				first := l.m.Current().Serial
				l.stop()
				os.Remove(l.vm.token)
				os.RemoveAll(l.cfg.RunDir)
				os.Remove(filepath.Join(l.vm.state, storeName, copyFile))
				key := l.cfg.SealKey
				tt.lose(l)

				l.start()
				l.pass(time.Minute)
				l.mustBe(None)
				if s := l.m.State(); !strings.Contains(s.StoreProblem, tt.want) {
					t.Errorf("store: %q\nwant  %q", s.StoreProblem, tt.want)
				}
				l.putToken(time.Hour)
				l.poke()
				l.pass(time.Minute)
				l.mustBe(Valid) // by the token
				if clear := l.inTheClear(); len(clear) > 0 {
					t.Errorf("in the clear at rest: %v", clear)
				}
				l.stop()
				os.Remove(l.vm.token)
				if strings.Contains(tt.name, "another") {
					return // that key sealed a generation of its own
				}
				l.cfg.SealKey = key
				l.newSealKey(1)
				l.start()
				l.pass(time.Second)
				if c := l.m.Current(); c == nil || c.Serial != first {
					t.Errorf("with its key back the store holds %v, want %s", c, first)
				}
			})
		})
	}
}

// Where the run folder lasts, a key in the clear would too.
func TestASealedKeyIsNotShownOnADisk(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		l.sealed()
		l.disk.volatile = func(string) bool { return false }
		l.start()
		l.pass(time.Second)
		l.mustBe(Valid)
		if s := l.m.State(); !strings.Contains(s.OutputProblem, "run/wingman, where they would lie in the clear, is no tmpfs") {
			t.Errorf("output: %q", s.OutputProblem)
		}
		if _, err := os.Stat(filepath.Join(l.vm.output, keyFile)); err == nil {
			t.Error("a key is there")
		}
	})
}

func TestASealIsBoundToItsFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), SealKey)
	putFile(t, path, strings.Repeat("0a", 32))
	s := &sealer{on: true, file: path}
	one, err := s.seal(keyFile, []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	two, _ := s.seal(keyFile, []byte("secret"))
	if bytes.Equal(one, two) || bytes.Contains(one, []byte("secret")) {
		t.Error("the same nonce twice, or no seal at all")
	}
	if got, err := s.open(keyFile, one); err != nil || string(got) != "secret" {
		t.Errorf("opened: %q, %v", got, err)
	}
	if _, err := s.open(copyFile, one); !errors.Is(err, errSealed) {
		t.Errorf("opened as another file: %v", err)
	}
	for i := len(sealMark); i < len(one); i++ {
		spoilt := bytes.Clone(one)
		spoilt[i] ^= 1
		if _, err := s.open(keyFile, spoilt); !errors.Is(err, errSealed) {
			t.Fatalf("byte %d changed: %v", i, err)
		}
	}
	if _, err := s.open(keyFile, []byte(sealMark)); !errors.Is(err, errSealed) {
		t.Errorf("the mark alone: %v", err)
	}
}

// A group's copies are for a tmpfs, as all that is in the clear; those of before sealing go.
func TestASealedKeyIsNotCopiedForGroupsOnADisk(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		l.cfg.Groups = []string{"app"}
		l.cfg.LookupGroup = func(string) (uint32, error) { return uint32(os.Getegid()), nil }
		copied := filepath.Join(l.vm.output, groupsDir, "app", keyFile)
		l.start()
		l.pass(time.Second)
		if _, err := os.Stat(copied); err != nil {
			t.Fatal(err)
		}
		l.stop()
		l.sealed()
		l.start()
		l.pass(time.Second)
		l.mustBe(Valid)
		if _, err := os.Lstat(copied); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("a copy in the clear is left: %v", err)
		}
		filepath.WalkDir(l.vm.output, func(path string, e os.DirEntry, err error) error {
			if data, err := os.ReadFile(path); err == nil && e.Type().IsRegular() && bytes.Contains(data, []byte("PRIVATE KEY")) {
				t.Errorf("%s is in the clear", path)
			}
			return nil
		})
		if s := l.m.State(); len(s.Groups) != 1 || !strings.Contains(s.Groups[0].Problem, "identity.seal is on, and "+l.vm.output+", where they would lie in the clear, is no tmpfs") {
			t.Errorf("groups: %+v", s.Groups)
		}
	})
}

// What a key that is at hand opens is not given up.
func TestDiscard(t *testing.T) {
	state, keys := t.TempDir(), [][]byte{bytes.Repeat([]byte("0a"), 32), bytes.Repeat([]byte("0b"), 32)}
	for i, key := range keys {
		s := sealerOf(key)
		s.on = true
		sealed, err := s.seal(keyFile, []byte("secret"))
		if err != nil {
			t.Fatal(err)
		}
		putFile(t, filepath.Join(state, storeName, generationsDir, string(rune('1'+i)), keyFile), string(sealed))
	}
	outside := t.TempDir()
	putFile(t, filepath.Join(outside, "9", keyFile), sealMark)
	if err := os.Symlink(outside, filepath.Join(state, storeName, corruptDir)); err != nil {
		t.Fatal(err)
	}
	gone, err := Discard(state, keys[0])
	if err == nil || len(gone) != 1 || !strings.HasSuffix(gone[0], "generations/2") {
		t.Errorf("gone %q, %v: want the generation of the other key, and a refusal to leave the folder", gone, err)
	}
	if _, err := os.Stat(filepath.Join(outside, "9", keyFile)); err != nil {
		t.Error(err)
	}
	if list, _ := Sealed(state); len(list) != 2 {
		t.Errorf("left: %q", list)
	}
}

// TestKeysOfTheOtherFormGo also when the disk refuses at first, after a restart, and when they were put aside.
func TestKeysOfTheOtherFormGo(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		l.disk.volatile = func(path string) bool { return path == l.vm.token }
		l.start()
		l.pass(13 * time.Hour) // two generations in the clear
		l.stop()
		os.Remove(l.vm.token)
		removeAll := l.disk.removeAll
		l.sealed()
		l.disk.removeAll = func(path string) error {
			if filepath.Base(filepath.Dir(path)) == generationsDir && !strings.Contains(filepath.Base(path), "-") {
				return errors.New("the disk refuses")
			}
			return removeAll(path)
		}
		l.start()
		l.pass(time.Minute)
		if s := l.m.State(); !strings.Contains(s.StoreProblem, "the disk refuses") || len(l.inTheClear()) == 0 {
			t.Errorf("store: %q, in the clear %v", s.StoreProblem, l.inTheClear())
		}
		l.stop()
		l.start() // what is in use has the right form now
		l.pass(time.Second)
		if s := l.m.State(); !strings.Contains(s.StoreProblem, "the disk refuses") {
			t.Errorf("after a restart: %q", s.StoreProblem)
		}
		l.disk.removeAll = removeAll
		l.stop()
		l.start()
		l.pass(time.Second)
		if s := l.m.State(); s.StoreProblem != "" || len(l.inTheClear()) > 0 {
			t.Errorf("the disk works: %q, in the clear %v", s.StoreProblem, l.inTheClear())
		}
		l.stop()

		l.cfg.Seal = false
		l.start()
		l.pass(time.Second)
		l.stop()
		for _, n := range []string{"90", currentLink} {
			putFile(t, filepath.Join(l.vm.state, storeName, corruptDir, n, keyFile), sealMark+"x")
		}
		if err := os.RemoveAll(filepath.Join(l.vm.state, storeName, generationsDir)); err != nil {
			t.Fatal(err)
		}
		l.start()
		l.pass(time.Second)
		if n := l.sealedFiles(); n != 0 {
			t.Errorf("%d sealed files were put aside and stay", n)
		}
	})
}
