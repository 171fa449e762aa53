package identity

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"wingman/internal/plainfile"
)

// groupsDir holds the copies of groups, below OutputDir.
const groupsDir = "groups"

// A GroupState is what became of a group's copies.
type GroupState struct {
	Group   string `json:"group"`
	Dir     string `json:"dir"`
	Problem string `json:"problem,omitempty"` // the copies there are not of the certificate in use
}

// A sharer keeps copies of key, chain and roots for groups that may read them: the store is open to nobody. Each group has a folder below dir,
//
//	GROUP/                       0750, of the group
//	    key.pem … -> current/…
//	    current -> 7             switched by one rename
//	    7/ 6/                    0750, files 0640
//
// A process that is not root gives files to a group that it is in, or makes them in a folder with the setgid bit, where they are the group's from
// the beginning (MakeGroupFolder). Nothing is readable by anybody else at any moment: a file gets its mode last.
type sharer struct {
	dir  string
	disk disk
}

// ensure makes the copies of group those that files says, by name.
func (s sharer) ensure(group string, gid int, files map[string][]byte) error {
	folder := filepath.Join(s.dir, group)
	if err := s.folder(folder, gid); err != nil {
		return err
	}
	if !s.current(folder, files) {
		if err := s.write(folder, gid, files); err != nil {
			return err
		}
	}
	for name := range files {
		link, target := filepath.Join(folder, name), filepath.Join(currentLink, name)
		if to, err := os.Readlink(link); err == nil && to == target {
			continue
		}
		if err := s.link(target, link); err != nil {
			return err
		}
	}
	return s.disk.sync(folder)
}

// folder has the group's folder be there and be the group's.
func (s sharer) folder(folder string, gid int) error {
	err := os.Mkdir(s.dir, 0o755)
	if err == nil {
		err = os.Chmod(s.dir, 0o755) // whatever the umask
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if info, err := os.Lstat(folder); err == nil && !info.IsDir() {
		return fmt.Errorf("%s is not a folder and is left alone", folder)
	} else if errors.Is(err, fs.ErrNotExist) {
		if err := s.disk.mkdir(folder); err != nil {
			return err
		}
	}
	if err := s.disk.share(folder, gid, 0o750); err != nil {
		return fmt.Errorf("this process (uid %d) may not give %s to group %d: restart the unit, which prepares it, or as root: install -d -o %d -g %d -m 2750 %s",
			os.Geteuid(), folder, gid, os.Geteuid(), gid, folder)
	}
	return nil
}

// current reports whether the folder holds files already.
func (s sharer) current(folder string, files map[string][]byte) bool {
	for name, want := range files {
		got, _, err := plainfile.Read(filepath.Join(folder, currentLink, name), maxPEMSize)
		if err != nil || !bytes.Equal(got, want) {
			return false
		}
	}
	return true
}

// write puts files into a new folder and switches to it in one step.
func (s sharer) write(folder string, gid int, files map[string][]byte) error {
	numbers, err := numbered(folder)
	if err != nil {
		return err
	}
	n := 1 + slices.Max(append(numbers, 0))
	fresh, done := filepath.Join(folder, "new"), filepath.Join(folder, strconv.Itoa(n))
	if err := s.disk.removeAll(fresh); err != nil {
		return err
	}
	if err := s.disk.mkdir(fresh); err != nil {
		return err
	}
	for name, data := range files {
		path := filepath.Join(fresh, name)
		if err := s.disk.create(path, data); err != nil {
			return err
		}
		if err := s.disk.share(path, gid, 0o640); err != nil {
			return err
		}
		if err := s.disk.sync(path); err != nil {
			return err
		}
	}
	if err := s.disk.share(fresh, gid, 0o750); err != nil {
		return err
	}
	if err := s.disk.sync(fresh); err != nil {
		return err
	}
	if err := s.disk.rename(fresh, done); err != nil {
		return err
	}
	if err := s.disk.sync(folder); err != nil {
		return err
	}
	if err := s.link(strconv.Itoa(n), filepath.Join(folder, currentLink)); err != nil {
		return err
	}
	if err := s.disk.sync(folder); err != nil {
		return err
	}
	slices.Sort(numbers)
	for _, old := range numbers[:max(0, len(numbers)-1)] { // who has opened the one before may read on
		if err := s.disk.removeAll(filepath.Join(folder, strconv.Itoa(old))); err != nil {
			return err
		}
	}
	return nil
}

// link puts a link at path in one step.
func (s sharer) link(target, path string) error {
	tmp := path + ".new"
	if err := s.disk.removeAll(tmp); err != nil {
		return err
	}
	if err := s.disk.symlink(target, tmp); err != nil {
		return err
	}
	return s.disk.rename(tmp, path)
}

// drop takes the copies of groups away that are not named any more; the folders that were prepared for them stay.
func (s sharer) drop(keep []string) error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil // there are none
	}
	var problems []error
	for _, e := range entries {
		folder := filepath.Join(s.dir, e.Name())
		if _, err := os.Readlink(filepath.Join(folder, currentLink)); err != nil || !e.IsDir() || slices.Contains(keep, e.Name()) {
			continue
		}
		numbers, err := numbered(folder)
		problems = append(problems, err)
		for _, name := range []string{currentLink, keyFile, chainFile, rootFile, "new"} {
			problems = append(problems, s.disk.removeAll(filepath.Join(folder, name)))
		}
		for _, n := range numbers {
			problems = append(problems, s.disk.removeAll(filepath.Join(folder, strconv.Itoa(n))))
		}
	}
	return errors.Join(problems...)
}

// share gives path to a group, and then its mode. What is so already is not touched: the call may be forbidden.
func share(path string, gid int, mode fs.FileMode) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || int(st.Gid) != gid {
		if err := os.Lchown(path, -1, gid); err != nil {
			return err
		}
	}
	if info.Mode().Perm() == mode {
		return nil
	}
	return os.Chmod(path, mode)
}

// MakeGroupFolder prepares the folder that copies for a group will lie in, as root: owner's, with the setgid bit, so that what owner makes there is the
// group's. outputDir is Config.OutputDir and must exist. Whatever owner has put there in the way of links, nothing outside outputDir is touched.
func MakeGroupFolder(outputDir, group string, owner, gid int) error {
	if group == "" || group == "." || group == ".." || strings.ContainsAny(group, "/\x00") {
		return fmt.Errorf("group %q: expected a name", group)
	}
	root, err := os.OpenRoot(outputDir)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, f := range []struct {
		path string
		gid  int
		mode fs.FileMode
	}{{groupsDir, -1, 0o755}, {filepath.Join(groupsDir, group), gid, 0o750 | fs.ModeSetgid}} {
		if err := root.Mkdir(f.path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		info, err := root.Lstat(f.path)
		if err != nil {
			return err
		}
		if !info.IsDir() {
			return fmt.Errorf("%s is not a folder and is left alone", filepath.Join(outputDir, f.path))
		}
		if err := root.Lchown(f.path, owner, f.gid); err != nil {
			return err
		}
		if err := root.Chmod(f.path, f.mode); err != nil {
			return err
		}
	}
	return nil
}

// share has the copies of all groups follow the certificate in use; what fails is tried again with the turns that come.
func (r *runner) share(now time.Time) {
	r.shareAt = time.Time{}
	c := r.Current()
	if c == nil || r.cfg.OutputDir == "" || len(r.cfg.Groups) == 0 {
		return
	}
	s := sharer{dir: filepath.Join(r.cfg.OutputDir, groupsDir), disk: r.disk}
	files := map[string][]byte{keyFile: c.KeyPEM(), chainFile: c.ChainPEM(), rootFile: c.RootsPEM()}
	before := r.said.Groups
	r.said.Groups = nil
	for _, group := range r.cfg.Groups {
		state := GroupState{Group: group, Dir: filepath.Join(s.dir, group)}
		gid, err := r.cfg.LookupGroup(group)
		switch {
		case err != nil:
		case r.sealer.on && !r.disk.volatile(r.cfg.OutputDir):
			err = errors.Join(fmt.Errorf("identity.seal is on, and %s, where they would lie in the clear, is no tmpfs", r.cfg.OutputDir), s.clear(group))
		default:
			err = s.ensure(group, int(gid), files)
		}
		if err != nil {
			r.shareAt = now.Add(longestSleep)
			state.Problem = fmt.Sprintf("group %s has no copies of the certificate: %s", group, oneLine(err))
			if !slices.Contains(before, state) {
				r.cfg.Log.Warn("copies for a group do not follow", "group", group, "cause", oneLine(err))
			}
		}
		r.said.Groups = append(r.said.Groups, state)
	}
}

// dropGroups takes away what groups had that are not named any more.
func (r *runner) dropGroups() {
	if r.cfg.OutputDir == "" {
		return
	}
	if err := (sharer{dir: filepath.Join(r.cfg.OutputDir, groupsDir), disk: r.disk}).drop(r.cfg.Groups); err != nil {
		r.cfg.Log.Warn("copies of groups that are not named any more are still there", "cause", oneLine(err))
	}
}

// clear takes a group's copies away and leaves its folder, which root may have made.
func (s sharer) clear(group string) error {
	entries, err := os.ReadDir(filepath.Join(s.dir, group))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		err = errors.Join(err, s.disk.removeAll(filepath.Join(s.dir, group, e.Name())))
	}
	return err
}
