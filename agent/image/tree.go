package image

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Bounds of a look: an image is whatever somebody put into it.
const (
	mostLinks = 40       // on one way, as in the kernel
	mostFiles = 20_000   // in one folder and below
	mostBytes = 16 << 20 // of one file, packed or not; the largest of ours has some kilobytes
)

// errTooLarge comes with the beginning of a file's content.
var errTooLarge = fmt.Errorf("more than %d MB: look at it yourself", mostBytes>>20)

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

// isMachine reports an error for a root that holds no system: a mount that failed, or a folder of another name, has nothing in it that could be found.
func (t *tree) isMachine() error {
	for _, any := range [][]string{{"/etc"}, {"/var/lib"}, {"/etc/os-release", "/usr/lib/os-release"}} {
		if !slices.ContainsFunc(any, func(name string) bool { _, err := t.resolve(name); return err == nil }) {
			return fmt.Errorf("%s is no image of a machine, or one that is not all mounted: it has no %s", t.root, strings.Join(any, " nor "))
		}
	}
	return nil
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

// read returns a regular file's content, with errTooLarge no more than the beginning of it; name has no links.
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
	b, err := io.ReadAll(io.LimitReader(f, mostBytes+1))
	if err == nil && len(b) > mostBytes {
		return b[:mostBytes], fmt.Errorf("%s: %w", name, errTooLarge)
	}
	return b, err
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
	via  string // the link that led here from the folder that is looked at; empty: it lies there
}

// An extent says how far a walk goes from a folder.
type extent struct {
	depth  int
	follow bool // also what links lead to; the links are entries all the same
	strict bool // what lies deeper, and what of a file is too large to read, is a problem, and not left out
}

var (
	whole  = extent{40, true, true}  // of a folder that is for nothing else
	flat   = extent{0, true, false}  // a folder's own files
	beside = extent{0, false, false} // files beside one of ours: what their links lead to is nobody's business
	config = extent{1, true, false}  // files and drop-ins
)

// A walk is one look at a path and below.
type walk struct {
	*tree
	extent
	top  string
	left int             // files that it may still see
	seen map[string]bool // where links led
	do   func(entry) error
}

// walk calls do for what is at name and below, as far as how says. No link leads out of the root, and none to what a reboot empties. What is not there is no
// error.
func (t *tree) walk(name string, how extent, do func(entry) error) error {
	parent, err := t.resolve(path.Dir(path.Clean("/" + name)))
	if err == nil && path.Base(name) != "/" {
		name = path.Join(parent, path.Base(name))
	}
	if nowhere(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if t.ephemeral(parent) {
		return nil
	}
	if at, err := t.resolve(name); err == nil && at != name {
		if info, err := t.dir.Lstat(local(at)); err == nil && info.IsDir() { // a link in place of the folder is the folder
			name = at
		}
	}
	w := &walk{tree: t, extent: how, top: name, left: mostFiles, seen: map[string]bool{}, do: do}
	return w.below(name, "", how.depth)
}

// nowhere reports that a path has nothing at its end.
func nowhere(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ELOOP)
}

func (w *walk) below(name, via string, depth int) error {
	if w.left--; w.left < 0 {
		return fmt.Errorf("%s: more than %d files: look at it yourself", name, mostFiles)
	}
	info, err := w.dir.Lstat(local(name))
	if nowhere(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		return errors.Join(w.do(entry{name, info, via}), w.behind(name, depth))
	}
	if !info.IsDir() {
		return w.do(entry{name, info, via})
	}
	if w.ephemeral(name) {
		return nil
	}
	if depth < 0 {
		if w.strict {
			return fmt.Errorf("%s: more than %d folders deep: look at it yourself", name, w.depth)
		}
		return nil
	}
	f, err := w.dir.Open(local(name))
	if err != nil {
		return err
	}
	names, err := f.Readdirnames(w.left + 1)
	f.Close()
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	var problems []error
	for _, n := range names {
		if err := w.below(filepath.Join(name, n), via, depth-1); err != nil {
			problems = append(problems, err)
		}
	}
	return errors.Join(problems...)
}

// behind goes on where a link leads to, once. What lies below the walk's own folder is seen on the way there, if the walk goes that deep.
func (w *walk) behind(link string, depth int) error {
	at, err := w.resolve(link)
	if !w.follow || nowhere(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if w.seen[at] || w.strict && (at == w.top || strings.HasPrefix(at, w.top+"/")) || w.ephemeral(path.Dir(at)) {
		return nil
	}
	w.seen[at] = true
	return w.below(at, link, depth)
}
