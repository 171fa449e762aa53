package identity

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Pilot-agent gets the living pair of the agent, not its own of before, which may have expired.
func TestALivingPairIsGivenBack(t *testing.T) {
	for _, tc := range []struct {
		name      string
		now       time.Time
		otherRoot bool // what was kept is no root of the chain
		given     bool
	}{
		{"alive", testNow.Add(time.Minute), false, true},
		{"alive, of another root than the one kept", testNow.Add(time.Minute), true, true},
		{"expired", testNow.Add(2 * time.Hour), false, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir, store := filepath.Join(t.TempDir(), "certs"), filepath.Join(t.TempDir(), storeName)
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			k := newKeyring(t)
			old, ours, root := k.issue(), k.issue(), k.root.pem()
			if tc.otherRoot {
				root = newKeyring(t).root.pem()
			}
			past := time.Now().Add(-time.Hour)
			for name, content := range map[string]string{keyFile: string(old.KeyPEM()), chainFile: string(old.ChainPEM()), rootFile: root} {
				putFile(t, filepath.Join(dir, name), content)
				if err := os.Chtimes(filepath.Join(dir, name), past, past); err != nil {
					t.Fatal(err)
				}
			}
			s := newStore(store, systemDisk)
			mustSave(t, s, ours.withRoots([]byte(k.root.pem())), k.roots())
			if err := (output{dir: dir, store: store, disk: systemDisk}).ensure(filepath.Join(dir, rootFile), []byte(root), time.Now()); err != nil {
				t.Fatal(err)
			}
			living := ReadLiving(dir, tc.now)
			if err := os.RemoveAll(store); err != nil { // as systemd removes a run folder
				t.Fatal(err)
			}
			for range 2 {
				if err := GiveBack(dir, living, tc.now); err != nil {
					t.Fatal(err)
				}
			}
			want := old
			if tc.given {
				want = ours
			}
			if got := pairOnDisk(t, dir); got != want.Serial {
				t.Errorf("the pair is %s, want %s", got, want.Serial)
			}
			wantRoot := root
			if tc.otherRoot {
				wantRoot = k.root.pem()
			}
			if got, _ := os.ReadFile(filepath.Join(dir, rootFile)); string(got) != wantRoot {
				t.Errorf("the root is\n%s\nwant\n%s", got, wantRoot)
			}
			for _, name := range []string{keyFile, chainFile, rootFile} {
				info, err := os.Lstat(filepath.Join(dir, name))
				if err != nil || !info.Mode().IsRegular() || name == keyFile && info.Mode().Perm() != 0o600 {
					t.Errorf("%s: %v, %v; want a plain file", name, info, err)
				}
				if _, err := os.Lstat(filepath.Join(dir, name+keptSuffix)); err == nil {
					t.Errorf("%s%s is left", name, keptSuffix)
				}
			}
		})
	}
}

// The agent's user owns outputDir and the store, and may have links there lead anywhere; who undoes an adopt is root.
func TestNothingOfRootsIsGivenToTheAgentsUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to have files that are root's")
	}
	for _, tc := range []struct {
		name  string
		roots string // whose file is root's; empty: none
		given bool
	}{
		{"a pair of the agent's", "", true},
		{"a key of root's", keyFile, false},
		{"a chain of root's", chainFile, false},
		{"a file of root's in the place of the roots", rootFile, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "certs")
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			k := newKeyring(t)
			c := k.issue()
			for name, content := range map[string]string{keyFile: string(c.KeyPEM()), chainFile: string(c.ChainPEM()), rootFile: k.root.pem()} {
				owner, real := agentID, filepath.Join(t.TempDir(), name)
				if name == tc.roots {
					owner = 0
				}
				putFile(t, real, content)
				if err := os.Chown(real, owner, owner); err != nil {
					t.Fatal(err)
				}
				current := filepath.Join(t.TempDir(), storeName, currentLink, name)
				for link, to := range map[string]string{current: real, filepath.Join(dir, name): current} {
					if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
						t.Fatal(err)
					}
					if err := os.Symlink(to, link); err != nil {
						t.Fatal(err)
					}
					if err := os.Lchown(link, agentID, agentID); err != nil {
						t.Fatal(err)
					}
				}
			}
			if living := ReadLiving(dir, testNow); (living != nil) != tc.given {
				t.Errorf("read a pair: %t, want %t", living != nil, tc.given)
			}
		})
	}
}
