package image

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Bounds of a look: an image is whatever somebody put into it.
const (
	mostLinks = 40      // on one way, as in the kernel
	mostFiles = 20_000  // in one folder and below
	mostBytes = 4 << 20 // of one file; the largest of ours has some kilobytes
)

// A tree is the files below a root. Paths are absolute and mean what they will once the root is "/"; no link leads out.
type tree struct {
	dir  *os.Root
	root string
	dev  uint64
}

func openTree(root string) (*tree, error) {
	dir, err := os.OpenRoot(root)
	if err != nil {
		return nil, err
	}
	info, err := dir.Stat(".")
	if err != nil {
		dir.Close()
		return nil, err
	}
	t := &tree{dir: dir, root: root}
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		t.dev = s.Dev
	}
	return t, nil
}

// local is a path for os.Root.
func local(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

// resolve follows the links of a path, those of its last name too. What does not exist is fs.ErrNotExist, a link to it too.
func (t *tree) resolve(name string) (string, error) {
	done, rest := "/", strings.Split(local(name), "/")
	for links := 0; len(rest) > 0; {
		next := path.Join(done, rest[0]) // ".." of "/" is "/"
		rest = rest[1:]
		if next == "/" {
			done = next
			continue
		}
		info, err := t.dir.Lstat(local(next))
		if err != nil {
			return "", err
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			done = next
			continue
		}
		if links++; links > mostLinks {
			return "", fmt.Errorf("%s: %w", name, syscall.ELOOP)
		}
		to, err := t.dir.Readlink(local(next))
		if err != nil {
			return "", err
		}
		if path.IsAbs(to) {
			done = "/"
		}
		rest = append(strings.Split(strings.Trim(to, "/"), "/"), rest...)
	}
	return done, nil
}

// ephemeral reports a folder that a reboot empties, and no image holds: a file system of its own in memory.
func (t *tree) ephemeral(name string) bool {
	f, err := t.dir.Open(local(name))
	if err != nil {
		return false
	}
	defer f.Close()
	var where unix.Stat_t
	var what unix.Statfs_t
	if unix.Fstat(int(f.Fd()), &where) != nil || unix.Fstatfs(int(f.Fd()), &what) != nil {
		return false
	}
	return where.Dev != t.dev && (what.Type == unix.TMPFS_MAGIC || what.Type == unix.RAMFS_MAGIC)
}

// read returns a regular file's content, its first mostBytes at least; name has no links.
func (t *tree) read(name string) ([]byte, error) {
	f, err := t.dir.OpenFile(local(name), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(f, mostBytes))
}

// content is read by a path with links; a file that is not there is nil.
func (t *tree) content(name string) ([]byte, error) {
	at, err := t.resolve(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return t.read(at)
}

// An entry is a file, link, pipe or socket, and no folder.
type entry struct {
	path string // without links but the last
	info fs.FileInfo
}

// walk calls do for what is at name and, to a depth, below. Links below are entries, not ways. A folder that lies on a file system that a reboot empties is
// left out. What is not there is no error.
func (t *tree) walk(name string, depth int, do func(entry) error) error {
	parent, err := t.resolve(path.Dir(path.Clean("/" + name)))
	if err == nil && path.Base(name) != "/" {
		name = path.Join(parent, path.Base(name))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if t.ephemeral(parent) {
		return nil
	}
	left := mostFiles
	return t.below(name, depth, true, &left, do)
}

func (t *tree) below(name string, depth int, top bool, left *int, do func(entry) error) error {
	if *left--; *left < 0 {
		return fmt.Errorf("%s: more than %d files: look at it yourself", name, mostFiles)
	}
	info, err := t.dir.Lstat(local(name))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	if top && info.Mode()&fs.ModeSymlink != 0 {
		if at, err := t.resolve(name); err == nil && at != name {
			if target, err := t.dir.Lstat(local(at)); err == nil && target.IsDir() {
				return t.below(at, depth, false, left, do)
			}
		}
	}
	if !info.IsDir() {
		return do(entry{name, info})
	}
	if t.ephemeral(name) || depth < 0 {
		return nil
	}
	f, err := t.dir.Open(local(name))
	if err != nil {
		return err
	}
	names, err := f.Readdirnames(*left + 1)
	f.Close()
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	var problems []error
	for _, n := range names {
		if err := t.below(filepath.Join(name, n), depth-1, false, left, do); err != nil {
			problems = append(problems, err)
		}
	}
	return errors.Join(problems...)
}
