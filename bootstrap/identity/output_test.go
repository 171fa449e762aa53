package identity

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

func TestTheOutputFolder(t *testing.T) {
	const content = "an operator's file\n"
	now := time.Now()
	write := func(t *testing.T, path, text string, age time.Duration) {
		t.Helper()
		putFile(t, path, text)
		if err := os.Chtimes(path, now.Add(-age), now.Add(-age)); err != nil {
			t.Fatal(err)
		}
	}
	link := func(t *testing.T, target, path string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, path); err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct {
		name    string
		arrange func(t *testing.T, dir string)
		taken   string // of root-cert.pem, which is the root file; "" nothing
		links   string // names that are our links in the end
		kept    string // names with a file kept beside
		want    string // the error
	}{
		{"it does not exist", func(*testing.T, string) {}, content, "key cert-chain root-cert", "", ""},
		{"it is empty", func(t *testing.T, dir string) { os.MkdirAll(dir, 0o755) }, content, "key cert-chain root-cert", "", ""},
		{"the links are there already", func(t *testing.T, dir string) {
			for _, name := range []string{keyFile, chainFile, rootFile} {
				link(t, filepath.Join("/var/lib/wingman/identity/current", name), filepath.Join(dir, name))
			}
		}, content, "key cert-chain root-cert", "", ""},
		{"our links into a state folder that has moved", func(t *testing.T, dir string) {
			link(t, "/old/lib/wingman/identity/current/key.pem", filepath.Join(dir, keyFile))
		}, content, "key cert-chain root-cert", "", ""},
		{"the operator's root", func(t *testing.T, dir string) { write(t, filepath.Join(dir, rootFile), content, time.Hour) }, content, "key cert-chain root-cert", "root-cert", ""},
		{"an operator's root with a date in the future", func(t *testing.T, dir string) { write(t, filepath.Join(dir, rootFile), content, -time.Hour) }, content, "key cert-chain root-cert", "root-cert", ""},
		{"a root that is news", func(t *testing.T, dir string) { write(t, filepath.Join(dir, rootFile), "news\n", time.Hour) }, content, "key cert-chain", "", "a file is still being written: DIR/root-cert.pem"},
		{"a root that could not be used", func(t *testing.T, dir string) { write(t, filepath.Join(dir, rootFile), "garbage", time.Hour) }, "", "key cert-chain", "", ""},
		{"a root that is still being written", func(t *testing.T, dir string) { write(t, filepath.Join(dir, rootFile), content, time.Second) }, content, "key cert-chain", "", "a file is still being written: DIR/root-cert.pem"},
		{"the files of pilot-agent", func(t *testing.T, dir string) {
			for _, name := range []string{keyFile, chainFile, rootFile} {
				write(t, filepath.Join(dir, name), content, time.Hour)
			}
		}, content, "key cert-chain root-cert", "key cert-chain root-cert", ""},
		{"a key that pilot-agent is writing", func(t *testing.T, dir string) {
			write(t, filepath.Join(dir, keyFile), content, time.Second)
		}, content, "root-cert", "", "a file is still being written: DIR/key.pem"},
		{"somebody else's link to a root", func(t *testing.T, dir string) { link(t, "/etc/pki/mesh.pem", filepath.Join(dir, rootFile)) }, content, "key cert-chain", "",
			"DIR/root-cert.pem is somebody else's link to /etc/pki/mesh.pem and is left alone"},
		{"somebody else's link to a key", func(t *testing.T, dir string) { link(t, "/etc/pki/key.pem", filepath.Join(dir, keyFile)) }, content, "cert-chain root-cert", "",
			"DIR/key.pem is somebody else's link to /etc/pki/key.pem and is left alone"},
		{"a folder in the place of a file", func(t *testing.T, dir string) { os.MkdirAll(filepath.Join(dir, chainFile), 0o755) }, content, "key root-cert", "",
			"DIR/cert-chain.pem is not a file and is left alone"},
		{"a file in its place", func(t *testing.T, dir string) { write(t, dir, "x", time.Hour) }, content, "", "", "mkdir DIR: not a directory"},
		{"a link to a folder elsewhere", func(t *testing.T, dir string) {
			elsewhere := t.TempDir()
			link(t, elsewhere, dir)
			write(t, filepath.Join(elsewhere, rootFile), content, time.Hour)
		}, content, "key cert-chain root-cert", "root-cert", ""},
		{"a link to another file system", func(t *testing.T, dir string) {
			elsewhere, err := os.MkdirTemp("/dev/shm", "wingman-test")
			if err != nil {
				t.Skip("needs /dev/shm as another file system: ", err)
			}
			t.Cleanup(func() { os.RemoveAll(elsewhere) })
			link(t, elsewhere, dir)
			write(t, filepath.Join(elsewhere, rootFile), content, time.Hour)
		}, content, "key cert-chain root-cert", "root-cert", ""},
		{"a stop left a link half made", func(t *testing.T, dir string) { link(t, "anywhere", filepath.Join(dir, ".key.pem.wingman")) }, content, "key cert-chain root-cert", "", ""},
		{"a stop left the operator's root without its name", func(t *testing.T, dir string) {
			link(t, "/var/lib/wingman/identity/current/root-cert.pem", filepath.Join(dir, rootFile))
			write(t, filepath.Join(dir, ".root-cert.pem.wingman"), content, time.Hour)
		}, content, "key cert-chain root-cert", "root-cert", ""},
		{"a stop left a root that nobody has looked at", func(t *testing.T, dir string) {
			link(t, "/var/lib/wingman/identity/current/root-cert.pem", filepath.Join(dir, rootFile))
			write(t, filepath.Join(dir, ".root-cert.pem.wingman"), "news\n", time.Hour)
		}, content, "key cert-chain", "", "a file is still being written: DIR/root-cert.pem"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "certs")
			tt.arrange(t, dir)
			var taken []byte
			if tt.taken != "" {
				taken = []byte(tt.taken)
			}
			o := output{dir: dir, store: "/var/lib/wingman/identity", disk: systemDisk}
			err := o.ensure(filepath.Join(dir, rootFile), taken, now)
			got := strings.TrimPrefix(oneLine(err), "certificates in "+dir+" do not follow: ")
			got = strings.TrimPrefix(got, "certificates do not appear in "+dir+": ")
			if want := strings.ReplaceAll(tt.want, "DIR", dir); got != want {
				t.Errorf("said %q, want %q", got, want)
			}
			var links, kept []string
			real, err := filepath.EvalSymlinks(dir)
			if err != nil {
				real = dir
			}
			for _, name := range []string{keyFile, chainFile, rootFile} {
				short := strings.TrimSuffix(name, ".pem")
				// Relative links: they hold below another root too.
				if to, err := os.Readlink(filepath.Join(dir, name)); err == nil && !filepath.IsAbs(to) && filepath.Join(real, to) == filepath.Join("/var/lib/wingman/identity/current", name) {
					links = append(links, short)
				}
				if text, err := os.ReadFile(filepath.Join(dir, name+keptSuffix)); err == nil && string(text) == content {
					kept = append(kept, short)
				}
			}
			if a, b := strings.Join(links, " "), strings.Join(kept, " "); a != tt.links || b != tt.kept {
				t.Errorf("links %q, kept %q; want %q and %q", a, b, tt.links, tt.kept)
			}
			if left, _ := filepath.Glob(filepath.Join(dir, ".*.wingman")); len(left) > 0 {
				t.Errorf("leftovers %v", left)
			}
		})
	}
}

func TestAReadOnlyOutputFolderSaysWhatMendsIt(t *testing.T) {
	dir, readOnly := t.TempDir(), systemDisk
	readOnly.symlink = func(target, path string) error {
		return &os.LinkError{Op: "symlink", Old: target, New: path, Err: unix.EROFS}
	}
	err := output{dir: dir, store: "/var/lib/wingman/identity", disk: readOnly}.ensure(filepath.Join(dir, rootFile), nil, time.Now())
	if want := "systemctl edit wingman, with ReadWritePaths=" + dir + " below [Service]"; err == nil || !strings.HasSuffix(err.Error(), want) {
		t.Errorf("said %v, want %q at its end", err, want)
	}
}

// TestARootThatIsDroppedInTheVeryMomentIsNotLost puts a new file where the link is about to go.
func TestARootThatIsDroppedInTheVeryMomentIsNotLost(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, rootFile)
	putFile(t, path, "old")
	d := systemDisk
	d.symlink = func(target, link string) error {
		putFile(t, path, "news") // between the look and the change
		return os.Symlink(target, link)
	}
	err := output{dir: dir, store: "/s", disk: d}.ensure(path, []byte("old"), time.Now().Add(time.Hour))
	if got, _ := os.ReadFile(path); !errors.Is(err, errUnsettled) || string(got) != "news" {
		t.Errorf("the file holds %q, the error is %v; want the news in place", got, err)
	}
}

func TestIdentityWorksWithoutAnOutputFolder(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		root := filepath.Join(l.vm.root, "root.pem")
		putFile(t, root, l.ca.root.pem())
		l.cfg.RootFile, l.cfg.OutputDir = root, filepath.Join(root, "not", "a", "folder")
		l.start()
		l.mustBe(Valid)
		if s := l.m.State(); !strings.HasPrefix(s.OutputProblem, "certificates do not appear in") || s.StoreProblem != "" {
			t.Errorf("output %q, store %q", s.OutputProblem, s.StoreProblem)
		}
		l.pass(25 * time.Hour) // two renewals
		l.mustBe(Valid)
		if n := l.log.count("output folder does not follow"); n != 1 {
			t.Errorf("said %d times, want once", n)
		}
	})
}

func TestADiskThatFailsCostsPersistenceOnly(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		var full atomic.Bool
		l.disk.create = func(path string, data []byte) error {
			if !full.Load() {
				return systemDisk.create(path, data)
			}
			systemDisk.create(path, data[:len(data)/2])
			return syscall.ENOSPC
		}
		l.disk.removeAll = func(path string) error { // a disk that is that broken cannot be tidied either
			if full.Load() {
				return syscall.EIO
			}
			return systemDisk.removeAll(path)
		}
		l.start()
		first := l.m.Current().Serial
		full.Store(true)
		l.pass(13 * time.Hour)
		second := l.m.Current().Serial
		if s := l.m.State(); second == first || l.onDisk() != first || s.StoreProblem == "" || s.Phase != Valid {
			t.Errorf("in use %s, on disk %s, problem %q, %s; want the new one in use, the old one on disk", second, l.onDisk(), s.StoreProblem, s.Phase)
		}
		if n := l.log.count("ERROR", "identity store cannot be used"); n != 1 {
			t.Errorf("a disk that has been full for an hour has %d lines", n)
		}
		full.Store(false)
		l.pass(longestSleep)
		if s := l.m.State(); l.onDisk() != second || s.StoreProblem != "" {
			t.Errorf("on disk %s, problem %q; want what is in use once there is room", l.onDisk(), s.StoreProblem)
		}
	})
}

// A generation that cannot be removed is said, and is no reason to write another one each turn, nor to keep the others.
func TestAStoreThatCannotPruneDoesNotGrow(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		var broken atomic.Bool
		l.disk.rename = func(from, to string) error {
			if broken.Load() && filepath.Base(to) == "old-1" {
				return syscall.EIO
			}
			return systemDisk.rename(from, to)
		}
		generations := filepath.Join(l.vm.state, storeName, generationsDir)
		check := func(want ...string) {
			t.Helper()
			var got []string
			entries, err := os.ReadDir(generations)
			for _, e := range entries {
				got = append(got, e.Name())
			}
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("generations %q, %v; want %q", got, err, want)
			}
		}
		renew := func() {
			t.Helper()
			if err := l.m.Renew(t.Context()); err != nil {
				t.Fatal(err)
			}
			l.pass(3 * longestSleep)
		}
		l.start()
		broken.Store(true)
		renew()
		renew()
		check("1", "2", "3")
		renew()
		check("1", "3", "4")
		s := l.m.State()
		if !strings.Contains(s.StoreProblem, "old generations stay: ") || l.onDisk() != s.Serial {
			t.Errorf("problem %q, on disk %s, in use %s", s.StoreProblem, l.onDisk(), s.Serial)
		}
		broken.Store(false)
		renew()
		check("4", "5")
		if s := l.m.State(); s.StoreProblem != "" {
			t.Errorf("still %q", s.StoreProblem)
		}
	})
}

func TestAStoreThatCannotBeMadeIsNoReasonToStayOut(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		putFile(t, l.vm.state, "a file where the folder should be")
		l.start()
		l.mustBe(Valid)
		within(t, time.Second, l.m.Ready(), "ready")
		if s := l.m.State(); !strings.Contains(s.StoreProblem, "not a directory") {
			t.Errorf("store %q", s.StoreProblem)
		}
		if got, err := os.ReadFile(l.vm.rootCert); err != nil || string(got) != l.ca.root.pem() {
			t.Error("the operator's root was replaced by a link that leads nowhere")
		}
	})
}

func TestACorruptStoreFallsBackToTheGenerationBefore(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		l.start()
		first := l.m.Current().Serial
		if err := l.m.Renew(t.Context()); err != nil {
			t.Fatal(err)
		}
		l.stop()
		if err := os.WriteFile(filepath.Join(l.vm.output, keyFile), []byte("garbage"), 0o600); err != nil {
			t.Fatal(err)
		}
		l.down.Store(true)
		l.start()
		if got := l.m.Current(); got == nil || got.Serial != first || l.onDisk() != first {
			t.Errorf("in use %v, want the generation before, %s", got, first)
		}
		if n := l.log.count("generation put aside", "key.pem: no PEM block"); n != 1 {
			t.Errorf("the log:\n%s", l.log)
		}
		if s := l.m.State(); !strings.Contains(s.StoreProblem, "generations/2: corrupt generation: key.pem: no PEM block") {
			t.Errorf("the status: %q", s.StoreProblem)
		}
	})
}

func TestThePairOfPilotAgentIsTakenOver(t *testing.T) {
	tests := []struct {
		name  string
		id    string
		age   time.Duration // since it was issued, of 24 h
		taken bool
	}{
		{"ours and alive", testID, 10 * time.Hour, true},
		{"of another identity", "spiffe://cluster.local/ns/forum-services/sa/other", time.Hour, false},
		{"expired", testID, 30 * time.Hour, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inLab(t, func(t *testing.T, l *lab) {
				l.putToken(-100 * time.Hour)
				pilot := certificateBy(t, l.ca.root, tt.id, time.Now().Add(-tt.age), 24*time.Hour)
				putFile(t, filepath.Join(l.vm.output, keyFile), string(pilot.KeyPEM()))
				putFile(t, filepath.Join(l.vm.output, chainFile), string(pilot.ChainPEM())+l.ca.root.pem()) // pilot-agent appends the root
				l.start()
				if !tt.taken {
					l.mustBe(None)
					if got := pairOnDisk(t, l.vm.output); got != pilot.Serial {
						t.Errorf("the other agent's files were touched: %s", got)
					}
					return
				}
				l.mustBe(Valid)
				if l.m.Current().Serial != pilot.Serial || l.onDisk() != pilot.Serial {
					t.Errorf("in use %v, want pilot-agent's %s", l.m.Current(), pilot.Serial)
				}
				if kept, _ := os.ReadFile(filepath.Join(l.vm.output, keyFile+keptSuffix)); string(kept) != string(pilot.KeyPEM()) {
					t.Error("pilot-agent's key was not kept")
				}
				l.pass(3 * time.Hour) // half of its life is over
				synctest.Wait()
				if calls := l.ca.seen(); len(calls) == 0 || calls[len(calls)-1].credential != "certificate" || l.m.Current().Serial == pilot.Serial {
					t.Errorf("not renewed by it: %+v, %q", calls, l.m.State().LastError)
				}
			})
		})
	}
}

// With OtherDir the pair there is used and left as it is.
func TestThePairOfAnotherFolder(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		l.putToken(-100 * time.Hour)
		other := filepath.Join(t.TempDir(), "other")
		pilot := certificateBy(t, l.ca.root, testID, time.Now().Add(-time.Hour), 24*time.Hour)
		putFile(t, filepath.Join(other, keyFile), string(pilot.KeyPEM()))
		putFile(t, filepath.Join(other, chainFile), string(pilot.ChainPEM()))
		l.cfg.OtherDir, l.cfg.OutputDir = other, ""
		l.start()
		l.mustBe(Valid)
		if got := l.m.Current().Serial; got != pilot.Serial {
			t.Errorf("in use %s, want %s", got, pilot.Serial)
		}
		if info, err := os.Lstat(filepath.Join(other, keyFile)); err != nil || !info.Mode().IsRegular() {
			t.Errorf("the other folder was touched: %v, %v", info, err)
		}
	})
}
