package identity

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// The users of these tests: the agent is neither root nor in the group.
const (
	agentID  = 64101
	groupID  = 64102
	memberID = 64103 // of the group
	otherID  = 64104
)

func copiesOf(c *Certificate) map[string][]byte {
	return map[string][]byte{keyFile: c.KeyPEM(), chainFile: c.ChainPEM(), rootFile: c.RootsPEM()}
}

// TestAGroupReadsCopiesOfItsOwn runs itself as the agent's user, without capabilities and not in the group, and reads what that makes as a member of
// the group and as somebody else.
func TestAGroupReadsCopiesOfItsOwn(t *testing.T) {
	if dir := os.Getenv("SHARE_IN"); dir != "" {
		c := newKeyring(t).issue().withRoots([]byte("roots"))
		fmt.Println(oneLine(sharer{dir: filepath.Join(dir, groupsDir), disk: systemDisk}.ensure("myapp", groupID, copiesOf(c))))
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root to become several users")
	}
	dir, binary := folderOf(t, agentID)
	as := func(id int, groups []uint32, name string, args ...string) (string, error) {
		cmd := exec.Command(name, args...)
		cmd.Env, cmd.Dir = append(os.Environ(), "SHARE_IN="+dir), "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(id), Gid: uint32(id), Groups: groups}}
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	agent := func() string {
		t.Helper()
		out, err := as(agentID, nil, binary, "-test.run=^TestAGroupReadsCopiesOfItsOwn$")
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return strings.Split(out, "\n")[0]
	}
	// Nobody has prepared the folder: what helps is said, and no key is anywhere.
	folder := filepath.Join(dir, groupsDir, "myapp")
	want := fmt.Sprintf("this process (uid %d) may not give %s to group %d: restart the unit, which prepares it, or as root: install -d -o %d -g %d -m 2750 %s", agentID, folder, groupID, agentID, groupID, folder)
	if got := agent(); got != want {
		t.Errorf("said %q, want %q", got, want)
	}
	if found, _ := filepath.Glob(filepath.Join(folder, "*", "*.pem")); len(found) > 0 {
		t.Errorf("keys where the group is not given: %v", found)
	}

	for range 2 { // also when all of it is there
		if err := MakeGroupFolder(dir, "myapp", agentID, groupID); err != nil {
			t.Fatal(err)
		}
	}
	for round := range 4 {
		if got := agent(); got != "" {
			t.Fatalf("round %d: %s", round, got)
		}
	}
	for _, name := range []string{keyFile, chainFile, rootFile} {
		path := filepath.Join(folder, name)
		if out, err := as(memberID, []uint32{groupID}, "cat", path); err != nil || out == "" {
			t.Errorf("a member reads %s: %v, %s", name, err, out)
		}
		if out, err := as(otherID, nil, "cat", path); err == nil {
			t.Errorf("somebody else reads %s: %s", name, out)
		}
		if out, err := as(memberID, []uint32{groupID}, "sh", "-c", "echo x >> "+path); err == nil {
			t.Errorf("a member writes %s: %s", name, out)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode() != 0o640 || info.Sys().(*syscall.Stat_t).Gid != groupID || info.Sys().(*syscall.Stat_t).Uid != agentID {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	if kept, err := numbered(folder); err != nil || len(kept) != 2 {
		t.Errorf("folders %v (%v), want the current one and the one before", kept, err)
	}
	pairOnDisk(t, folder)
	if err := (sharer{dir: filepath.Join(dir, groupsDir), disk: systemDisk}).drop([]string{"other"}); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(folder); len(left) != 0 {
		t.Errorf("of a group that is not named any more there is still %v", left)
	}
}

// folderOf is a folder of its own for a user, and a copy of the test that every user can run.
func folderOf(t *testing.T, uid int) (dir, binary string) {
	t.Helper()
	top, err := os.MkdirTemp("/tmp", "wingman-share")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(top) })
	dir, binary = filepath.Join(top, "certs"), filepath.Join(top, "test")
	text, err := os.ReadFile(os.Args[0])
	if err := errors.Join(err, os.Chmod(top, 0o755), os.Mkdir(dir, 0o755), os.Chmod(dir, 0o755), os.Chown(dir, uid, uid), os.WriteFile(binary, text, 0o755), os.Chmod(binary, 0o755)); err != nil {
		t.Fatal(err)
	}
	return dir, binary
}

// What the agent's user puts into the way of the helper that runs as root leads nowhere else.
func TestPreparedFoldersStayInsideTheOutputFolder(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to give folders away")
	}
	for _, at := range []string{groupsDir, groupsDir + "/myapp"} {
		dir, outside := t.TempDir(), t.TempDir()
		if at != groupsDir {
			if err := os.Mkdir(filepath.Join(dir, groupsDir), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Symlink(outside, filepath.Join(dir, at)); err != nil {
			t.Fatal(err)
		}
		if err := MakeGroupFolder(dir, "myapp", agentID, groupID); err == nil {
			t.Errorf("a link at %s is followed", at)
		}
		info, err := os.Stat(outside)
		left, _ := os.ReadDir(outside)
		if err != nil || info.Sys().(*syscall.Stat_t).Uid == agentID || len(left) > 0 {
			t.Errorf("a link at %s: %v, %v", at, info, left)
		}
	}
	for _, bad := range []string{"", ".", "..", "../x", "a/b"} {
		if err := MakeGroupFolder(t.TempDir(), bad, 0, 0); err == nil {
			t.Errorf("group %q passed", bad)
		}
	}
}

// TestAStopAtAnyStepLeavesAGroupACopyThatMatches is TestAStopAtAnyStepLeavesAPairThatMatches for the copies.
func TestAStopAtAnyStepLeavesAGroupACopyThatMatches(t *testing.T) {
	k := newKeyring(t)
	old, next, last := k.issue().withRoots([]byte("1")), k.issue().withRoots([]byte("2")), k.issue().withRoots([]byte("3"))
	gid := os.Getegid()
	for _, end := range []struct {
		name string
		disk faultyDisk
		cut  func(*faultyDisk)
	}{
		{"killed", faultyDisk{failure: errCrash, torn: true}, func(*faultyDisk) {}},
		{"power cut, names", faultyDisk{failure: errCrash}, (*faultyDisk).cutNames},
		{"power cut, bytes", faultyDisk{failure: errCrash, torn: true}, (*faultyDisk).cutBytes},
		{"full", faultyDisk{failure: syscall.ENOSPC, torn: true}, func(*faultyDisk) {}},
	} {
		t.Run(end.name, func(t *testing.T) {
			for step := 0; ; step++ {
				dir := t.TempDir()
				folder := filepath.Join(dir, "g")
				whole := sharer{dir: dir, disk: unsyncedDisk}
				if err := whole.ensure("g", gid, copiesOf(old)); err != nil {
					t.Fatal(err)
				}
				faulty := end.disk
				faulty.t, faulty.failAt = t, step
				faulty.after = func(string) { pairOnDisk(t, folder) }
				err := sharer{dir: dir, disk: faulty.disk()}.ensure("g", gid, copiesOf(next))
				end.cut(&faulty)
				if got := pairOnDisk(t, folder); got != old.Serial && got != next.Serial {
					t.Fatalf("step %d: %q is there", step, got)
				}
				if faulty.steps <= step {
					if got := pairOnDisk(t, folder); err != nil || got != next.Serial {
						t.Errorf("nothing was stopped, but %q is there: %v", got, err)
					}
					return
				}
				if err := whole.ensure("g", gid, copiesOf(last)); err != nil || pairOnDisk(t, folder) != last.Serial {
					t.Fatalf("step %d: afterwards %v", step, err)
				}
			}
		})
	}
}

func TestRemoveOutputTakesTheCopiesOfGroupsAlong(t *testing.T) {
	dir := t.TempDir()
	s := sharer{dir: filepath.Join(dir, groupsDir), disk: unsyncedDisk}
	k := newKeyring(t)
	for _, group := range []string{"a", "b"} {
		for range 2 {
			if err := s.ensure(group, os.Getegid(), copiesOf(k.issue().withRoots([]byte("roots")))); err != nil {
				t.Fatal(err)
			}
		}
	}
	mine := filepath.Join(s.dir, "b", "notes")
	putFile(t, mine, "somebody else's")
	putFile(t, filepath.Join(s.dir, "a", "new", keyFile), "half a switch")
	outside := t.TempDir()
	putFile(t, filepath.Join(outside, keyFile), "outside")
	if err := os.Symlink(outside, filepath.Join(s.dir, "c")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := RemoveOutput(dir); err != nil {
			t.Fatal(err)
		}
	}
	var left []string
	filepath.WalkDir(s.dir, func(path string, e os.DirEntry, _ error) error {
		if !e.IsDir() {
			left = append(left, path)
		}
		return nil
	})
	if want := []string{mine, filepath.Join(s.dir, "c")}; !slices.Equal(left, want) {
		t.Errorf("left %v, want %v", left, want)
	}
	if _, err := os.Stat(filepath.Join(outside, keyFile)); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(s.dir, "a")); err == nil {
		t.Error("an empty folder stays")
	}
}

func TestCopiesFollowTheCertificate(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		var known atomic.Bool
		l.cfg.Groups = []string{"myapp"}
		l.cfg.LookupGroup = func(name string) (uint32, error) {
			if !known.Load() {
				return 0, errors.New("no group " + name)
			}
			return uint32(os.Getegid()), nil
		}
		folder := filepath.Join(l.vm.output, groupsDir, "myapp")
		l.start()
		l.mustBe(Valid)
		if g := l.m.State().Groups; len(g) != 1 || g[0].Problem != "group myapp has no copies of the certificate: no group myapp" || g[0].Dir != folder {
			t.Errorf("groups %+v", g)
		}
		l.pass(5 * time.Minute)
		if n := l.log.count("copies for a group do not follow"); n != 1 {
			t.Errorf("said %d times", n)
		}
		known.Store(true) // the application's package was installed
		l.pass(longestSleep + time.Second)
		if got, g := pairOnDisk(t, folder), l.m.State().Groups; got != l.m.Current().Serial || g[0].Problem != "" {
			t.Errorf("%s is there, groups %+v", got, g)
		}
		if err := l.m.Renew(t.Context()); err != nil {
			t.Fatal(err)
		}
		root, _ := os.ReadFile(filepath.Join(folder, rootFile))
		if got := pairOnDisk(t, folder); got != l.m.Current().Serial || !bytes.Equal(root, l.m.Current().RootsPEM()) {
			t.Errorf("%s is there after the renewal, want %s", got, l.m.Current().Serial)
		}
		before, _ := os.Readlink(filepath.Join(folder, currentLink))
		l.stop()
		l.start()
		if after, _ := os.Readlink(filepath.Join(folder, currentLink)); after != before {
			t.Errorf("a restart made another copy: %s, then %s", before, after)
		}
		l.stop()
		l.cfg.Groups = nil
		l.start()
		if left, _ := os.ReadDir(folder); len(left) != 0 {
			t.Errorf("the group is not named any more, and still has %v", left)
		}
	})
}
