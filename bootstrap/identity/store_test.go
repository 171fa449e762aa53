package identity

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func newStore(dir string, d disk) *store {
	return &store{dir: dir, disk: d, log: slog.New(slog.DiscardHandler)}
}

// A keyring makes certificates of one CA, and knows them again.
type keyring struct {
	t    testing.TB
	root *authority
}

func newKeyring(t testing.TB) *keyring {
	return &keyring{t: t, root: newAuthority(t, "cluster.local", testNow, 1000*time.Hour, nil)}
}

func (k *keyring) issue() *Certificate { return certificateBy(k.t, k.root, testID, testNow, time.Hour) }

func (k *keyring) roots() anchors {
	return anchors{}.withFile([]*x509.Certificate{k.root.cert}).withAnswer([]*x509.Certificate{k.root.cert}, time.Time{})
}

// mustSave and mustLoad fail the test when the store does.
func mustSave(t *testing.T, s *store, c *Certificate, roots anchors) {
	t.Helper()
	if err := s.save(c, roots); err != nil {
		t.Fatal(err)
	}
}

func mustLoad(t *testing.T, dir string) *generation {
	t.Helper()
	g, err := newStore(dir, systemDisk).load(testID, testNow)
	if err != nil && !errors.Is(err, errCorrupt) { // that one is put aside, and said
		t.Fatalf("the store does not open: %v", err)
	}
	return g
}

// pairOnDisk reads key and chain as an application would, and fails the test unless they belong together. "" when one is missing.
func pairOnDisk(t *testing.T, dir string) (serial string) {
	t.Helper()
	keyPEM, keyErr := os.ReadFile(filepath.Join(dir, keyFile))
	chainPEM, chainErr := os.ReadFile(filepath.Join(dir, chainFile))
	if errors.Is(keyErr, os.ErrNotExist) || errors.Is(chainErr, os.ErrNotExist) {
		return ""
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		t.Fatalf("%s: key: %v, %v", dir, keyErr, err)
	}
	chain, err := parseCertificates(chainPEM)
	if err != nil {
		t.Fatalf("%s: chain: %v, %v", dir, chainErr, err)
	}
	if !sameKey(chain[0], key) {
		t.Fatalf("%s: key and chain do not belong together", dir)
	}
	return serialOf(chain[0])
}

func TestStoreGivesBackWhatWasSaved(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "lib", storeName)
	k := newKeyring(t)
	retired := newAuthority(t, "retired", testNow, time.Hour, nil)
	roots := append(k.roots(), anchor{cert: retired.cert, source: fromCA, until: testNow.Add(time.Minute)})
	c := k.issue().withRoots(encodeCertificates(roots.certs()))
	s := newStore(dir, systemDisk)
	if g, err := s.load(testID, testNow); g != nil || err != nil {
		t.Fatalf("an empty store gave %v, %v", g, err)
	}
	mustSave(t, s, c, roots)
	g := mustLoad(t, dir)
	if !g.roots.equal(roots) || g.rootsHash != hash(c.RootsPEM()) || g.number != 1 {
		t.Errorf("roots %v, hash %s, number %d", g.roots, g.rootsHash, g.number)
	}
	type shown struct {
		ID, Serial       string
		From, To, At     time.Time
		Key, Chain, Root string
	}
	show := func(c *Certificate) shown {
		return shown{c.SPIFFEID, c.Serial, c.NotBefore, c.NotAfter, c.ReceivedAt, string(c.KeyPEM()), string(c.ChainPEM()), string(c.RootsPEM())}
	}
	if diff := cmp.Diff(show(c), show(g.cert)); diff != "" {
		t.Errorf("certificate (-saved +loaded):\n%s", diff)
	}
	// Modes: nobody else may even list what is there.
	filepath.WalkDir(dir, func(path string, e os.DirEntry, _ error) error {
		info, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if want := map[bool]os.FileMode{true: 0o700, false: 0o600}[e.IsDir()]; info.Mode().Type() != os.ModeSymlink && info.Mode().Perm() != want {
			t.Errorf("%s has mode %v, want %v", path, info.Mode().Perm(), want)
		}
		return nil
	})
}

func TestStoreKeepsTheCurrentGenerationAndOneToFallBackTo(t *testing.T) {
	dir := filepath.Join(t.TempDir(), storeName)
	k := newKeyring(t)
	s := newStore(dir, systemDisk)
	for range 5 {
		mustSave(t, s, k.issue(), k.roots())
	}
	entries, err := os.ReadDir(filepath.Join(dir, generationsDir))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if got := strings.Join(names, " "); got != "4 5" {
		t.Errorf("generations %q, want the last two", got)
	}
	if target, _ := os.Readlink(filepath.Join(dir, currentLink)); target != "generations/5" {
		t.Errorf("current leads to %q", target)
	}
}

func TestDamagedGenerations(t *testing.T) {
	const newest = generationsDir + "/2/"
	k := newKeyring(t)
	foreign := newKeyring(t).issue()
	otherID := certificateBy(t, k.root, "spiffe://cluster.local/ns/forum-services/sa/other", testNow, time.Hour)
	put := func(name string, data []byte) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	swap := func(a, b string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			if err := systemDisk.exchange(filepath.Join(dir, a), filepath.Join(dir, b)); err != nil {
				t.Fatal(err)
			}
		}
	}
	tests := []struct {
		name   string
		damage func(t *testing.T, dir string)
		want   int  // the generation that is used
		aside  bool // whether generation 2 is kept for inspection
	}{
		{"nothing is damaged", func(*testing.T, string) {}, 2, false},
		{"the key is empty", put(newest+keyFile, nil), 1, true},
		{"the key is garbage", put(newest+keyFile, []byte("garbage")), 1, true},
		{"the key is another's", put(newest+keyFile, foreign.KeyPEM()), 1, true},
		{"the key is missing", func(t *testing.T, dir string) { os.Remove(filepath.Join(dir, newest+keyFile)) }, 1, true},
		{"a folder in the place of the key", func(t *testing.T, dir string) {
			os.Remove(filepath.Join(dir, newest+keyFile))
			os.Mkdir(filepath.Join(dir, newest+keyFile), 0o700)
		}, 1, true},
		{"key and chain exchanged by hand", swap(newest+keyFile, newest+chainFile), 1, true},
		{"the chains of two generations exchanged by hand", swap(newest+chainFile, generationsDir+"/1/"+chainFile), 0, true},
		{"the chain is cut short", put(newest+chainFile, k.issue().ChainPEM()[:100]), 1, true},
		{"the chain is huge", put(newest+chainFile, bytes.Repeat([]byte("x"), maxPEMSize+1)), 1, true},
		{"key and chain of another CA", func(t *testing.T, dir string) {
			put(newest+keyFile, foreign.KeyPEM())(t, dir)
			put(newest+chainFile, foreign.ChainPEM())(t, dir)
		}, 1, true},
		{"key and chain of another identity are nobody's fault", func(t *testing.T, dir string) {
			put(newest+keyFile, otherID.KeyPEM())(t, dir)
			put(newest+chainFile, otherID.ChainPEM())(t, dir)
		}, 1, false},
		{"the meta file is garbage: its content can be replaced", put(newest+metaFile, []byte("{")), 2, false},
		{"the meta file is of another version", put(newest+metaFile, []byte(`{"roots":[]}`)), 2, false},
		{"root-cert.pem is garbage: the meta file knows", put(newest+rootFile, []byte("garbage")), 2, false},
		{"meta and root are both garbage", func(t *testing.T, dir string) {
			put(newest+metaFile, []byte("{"))(t, dir)
			put(newest+rootFile, []byte("garbage"))(t, dir)
		}, 1, true},
		{"the link is missing", func(t *testing.T, dir string) { os.Remove(filepath.Join(dir, currentLink)) }, 2, false},
		{"the link leads nowhere", func(t *testing.T, dir string) {
			os.Remove(filepath.Join(dir, currentLink))
			os.Symlink("generations/77", filepath.Join(dir, currentLink))
		}, 2, false},
		{"a folder in the place of the link", func(t *testing.T, dir string) {
			os.Remove(filepath.Join(dir, currentLink))
			os.Mkdir(filepath.Join(dir, currentLink), 0o700)
		}, 2, false},
		{"the link leads to the older one: it is believed", func(t *testing.T, dir string) {
			os.Remove(filepath.Join(dir, currentLink))
			os.Symlink("generations/1", filepath.Join(dir, currentLink))
		}, 1, false},
		{"strange names are passed over", func(t *testing.T, dir string) {
			os.Mkdir(filepath.Join(dir, generationsDir, "007"), 0o700)
			os.Mkdir(filepath.Join(dir, generationsDir, "lost+found"), 0o700)
		}, 2, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), storeName)
			for range 2 {
				c := k.issue()
				mustSave(t, newStore(dir, systemDisk), c.withRoots(encodeCertificates(k.roots().certs())), k.roots())
			}
			tt.damage(t, dir)
			g := mustLoad(t, dir)
			if n := generationNumber(g); n != tt.want {
				t.Errorf("generation %d is used, want %d", n, tt.want)
			}
			if g != nil {
				if got := pairOnDisk(t, filepath.Join(dir, currentLink)); got != g.cert.Serial {
					t.Errorf("the link leads to %s, in use is %s", got, g.cert.Serial)
				}
			}
			if _, err := os.Stat(filepath.Join(dir, corruptDir, "2")); (err == nil) != tt.aside {
				t.Errorf("kept for inspection: %v, want %v", err == nil, tt.aside)
			}
			// Whatever it was: the next certificate can be saved and is found.
			s, next := newStore(dir, systemDisk), k.issue()
			if _, err := s.load(testID, testNow); err != nil {
				t.Fatal(err)
			}
			mustSave(t, s, next, k.roots())
			if g := mustLoad(t, dir); g == nil || g.cert.Serial != next.Serial {
				t.Errorf("after the next save: %v", g)
			}
		})
	}
}

func generationNumber(g *generation) int {
	if g == nil {
		return 0
	}
	return g.number
}

func TestCorruptGenerationsAreKeptButNotForEver(t *testing.T) {
	dir := filepath.Join(t.TempDir(), storeName)
	k := newKeyring(t)
	mustSave(t, newStore(dir, systemDisk), k.issue(), k.roots())
	for i := range 6 {
		s := newStore(dir, systemDisk)
		if _, err := s.load(testID, testNow); err != nil {
			t.Fatal(err)
		}
		mustSave(t, s, k.issue(), k.roots())
		mustSave(t, s, k.issue(), k.roots()) // numbers go on
		if err := os.WriteFile(filepath.Join(dir, currentLink, keyFile), []byte{byte(i)}, 0o600); err != nil {
			t.Fatal(err)
		}
		mustLoad(t, dir)
	}
	kept, err := numbered(filepath.Join(dir, corruptDir))
	if err != nil || len(kept) != keptCorrupt {
		t.Errorf("%v are kept (%v), want %d", kept, err, keptCorrupt)
	}
}

func TestAnExpiredGenerationIsLoaded(t *testing.T) {
	dir := filepath.Join(t.TempDir(), storeName)
	k := newKeyring(t)
	mustSave(t, newStore(dir, systemDisk), k.issue(), k.roots())
	g, err := newStore(dir, systemDisk).load(testID, testNow.Add(100*24*time.Hour))
	if err != nil || g == nil {
		t.Errorf("got %v, %v: an expired certificate is not a corrupt one", g, err)
	}
}

// TestFoldersOfAnotherUserAreSaid runs itself as nobody on a store and an output folder that belong to root.
func TestFoldersOfAnotherUserAreSaid(t *testing.T) {
	if dir := os.Getenv("FOLDERS_OF_ROOT"); dir != "" {
		s := newStore(filepath.Join(dir, storeName), systemDisk)
		_, loadErr := s.load(testID, testNow)
		saveErr := s.save(newKeyring(t).issue(), nil)
		outErr := output{dir: filepath.Join(dir, "certs"), store: s.dir, disk: systemDisk}.ensure("/elsewhere", nil, testNow)
		newErr := output{dir: filepath.Join(dir, "new"), store: s.dir, disk: systemDisk}.ensure("/elsewhere", nil, testNow)
		for _, err := range []error{loadErr, saveErr, outErr, newErr} {
			fmt.Println(oneLine(err))
		}
		return
	}
	dir, said := saidOfFoldersOfRoot(t)
	const chown = "belongs to uid 0 and this process is uid 65534: chown -R 65534 "
	want := []string{chown + filepath.Join(dir, storeName), chown + filepath.Join(dir, storeName), chown + filepath.Join(dir, "certs"), "install -d -o 65534 " + filepath.Join(dir, "new")}
	for i, line := range said[:len(want)] {
		if !strings.HasSuffix(line, want[i]) {
			t.Errorf("said %q, want the end %q", line, want[i])
		}
	}
}

// saidOfFoldersOfRoot is what the process that runs as nobody says of loading, saving, and two output folders.
func saidOfFoldersOfRoot(t *testing.T) (dir string, said []string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to make folders that another user cannot write")
	}
	dir, err := os.MkdirTemp("/tmp", "wingman-folders")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	k := newKeyring(t)
	mustSave(t, newStore(filepath.Join(dir, storeName), systemDisk), k.issue(), k.roots())
	certs := filepath.Join(dir, "certs")
	if err := errors.Join(os.Mkdir(certs, 0o755), os.Chmod(certs, 0o755)); err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(dir, "test")
	text, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(binary, text, 0o755), os.Chmod(binary, 0o755)); err != nil { // whatever the umask is
		t.Fatal(err)
	}
	cmd := exec.Command(binary, "-test.run=^TestFoldersOfAnotherUserAreSaid$")
	cmd.Env, cmd.Dir = append(os.Environ(), "FOLDERS_OF_ROOT="+dir), "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return dir, strings.Split(string(out), "\n")
}
