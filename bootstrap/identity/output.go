package identity

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"wingman/internal/plainfile"
)

const (
	// keptSuffix is given to what stood in OutputDir before our link: the operator's root, pilot-agent's key. It is moved, never lost.
	keptSuffix = ".before-wingman"
	// settleTime is how long a file must have been left alone before it is replaced by a link: its writer may not be done.
	settleTime = 2 * time.Second
)

// KeptRoot is where the operator's root file is kept once our link stands at path. It is what there is to go by when the store was
// wiped and the link leads nowhere.
func KeptRoot(path string) string { return path + keptSuffix }

// errUnsettled means that an output file is still being written: try again after settleTime.
var errUnsettled = errors.New("a file is still being written")

// An output makes OutputDir follow the store. Its files are links into the current generation, so that one rename there changes all
// three at once, on whatever file system dir is.
type output struct {
	dir   string // OutputDir
	store string // the store's folder
	disk  disk
}

// ensure puts the three links in place. What stood there before is kept beside it under keptSuffix; a link that is somebody else's
// is left alone and said. taken is the content of rootPath (the operator's root file, which may be one of the three) that has
// been taken into the trust bundle, nil when none was: any other content of it is not replaced, it is news. Errors are joined;
// each link stands alone.
func (o output) ensure(rootPath string, taken []byte, now time.Time) error {
	if err := os.MkdirAll(o.dir, 0o755); err != nil {
		if errors.Is(err, fs.ErrPermission) {
			err = fmt.Errorf("%w: install -d -o %d %s", err, os.Geteuid(), o.dir)
		}
		if to, linkErr := os.Readlink(o.dir); linkErr == nil && !isDir(o.dir) {
			err = fmt.Errorf("it is a link to %s, where there is no folder: install -d -o %d %s", to, os.Geteuid(), resolvedTarget(o.dir, to))
		}
		return fmt.Errorf("certificates do not appear in %s: %w", o.dir, sandboxed(err, o.dir))
	}
	var problems []error
	// First both of a former pair go: for a moment an application finds no chain, but never one that is not its key's.
	for _, name := range []string{chainFile, keyFile} {
		problems = append(problems, o.moveAway(filepath.Join(o.dir, name), now))
	}
	if errors.Join(problems...) == nil {
		for _, name := range []string{keyFile, chainFile} {
			problems = append(problems, o.link(filepath.Join(o.dir, name), nil, now))
		}
	}
	root := filepath.Join(o.dir, rootFile)
	if !sameFile(root, rootPath) {
		problems = append(problems, o.moveAway(root, now), o.link(root, nil, now))
	} else if info, err := os.Lstat(root); taken != nil || err != nil || !info.Mode().IsRegular() {
		problems = append(problems, o.link(root, taken, now))
	}
	if err := errors.Join(problems...); err != nil {
		return fmt.Errorf("certificates in %s do not follow: %w", o.dir, sandboxed(whose(err, o.dir), o.dir))
	}
	return nil
}

// sandboxed adds to the error of a read-only folder what makes it one where systemd runs the agent, and what mends that.
func sandboxed(err error, dir string) error {
	if !errors.Is(err, unix.EROFS) {
		return err
	}
	return fmt.Errorf("%w: the unit may write to /etc/certs alone: systemctl edit wingman, with ReadWritePaths=%s below [Service]", err, dir)
}

// moveAway keeps a plain file at path under keptSuffix.
func (o output) moveAway(path string, now time.Time) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !info.Mode().IsRegular() {
		return nil
	}
	if err != nil {
		return err
	}
	if unsettled(info, now) {
		return fmt.Errorf("%w: %s", errUnsettled, path)
	}
	return o.disk.rename(path, path+keptSuffix)
}

// unsettled reports whether whoever writes a file may not be done. A date in the future is a clock that jumped.
func unsettled(info fs.FileInfo, now time.Time) bool {
	age := now.Sub(info.ModTime())
	return age >= 0 && age < settleTime
}

// target is what our link of that name says: the way from the folder it really lies in to the current generation. Relative, so that
// it also holds for who sees the machine's files below another root.
func (o output) target(name string) (string, error) {
	dir, err := filepath.EvalSymlinks(o.dir)
	if err != nil {
		return "", err
	}
	store, err := filepath.EvalSymlinks(o.store)
	if err != nil {
		store = o.store // it comes later
	}
	return filepath.Rel(dir, filepath.Join(store, currentLink, name))
}

// link makes path our link. A plain file that is there must have the content taken, and is kept.
func (o output) link(path string, taken []byte, now time.Time) error {
	target, err := o.target(filepath.Base(path))
	if err != nil {
		return err
	}
	tmp := filepath.Join(o.dir, "."+filepath.Base(path)+".wingman")
	if err := o.recover(tmp, path, taken); err != nil {
		return err
	}
	old, err := os.Lstat(path)
	put := o.disk.rename
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case old.Mode()&fs.ModeSymlink != 0:
		to, err := os.Readlink(path)
		if err != nil || to == target {
			return err
		}
		if !isOurs(to, filepath.Base(path)) {
			return fmt.Errorf("%s is somebody else's link to %s and is left alone", path, to)
		}
	case !old.Mode().IsRegular():
		return fmt.Errorf("%s is not a file and is left alone", path)
	case unsettled(old, now):
		return fmt.Errorf("%w: %s", errUnsettled, path)
	default:
		put = o.disk.exchange // not rename: what is moved away must be looked at before it is called old
	}
	if err := o.disk.symlink(target, tmp); err != nil {
		return err
	}
	if err := put(tmp, path); err != nil {
		return errors.Join(err, o.disk.removeAll(tmp))
	}
	if err := o.recover(tmp, path, taken); err != nil {
		return err
	}
	return o.disk.sync(o.dir)
}

// recover finishes with tmp, at the end of link or when a stop left it: a link is removed; a file that was moved away gets its name,
// or its place back when its content is not what was taken.
func (o output) recover(tmp, path string, taken []byte) error {
	info, err := os.Lstat(tmp)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return o.disk.removeAll(tmp)
	}
	if content, _, err := plainfile.Read(tmp, maxPEMSize); err != nil || !bytes.Equal(content, taken) {
		return errors.Join(fmt.Errorf("%w: %s", errUnsettled, path), o.disk.rename(tmp, path))
	}
	return o.disk.rename(tmp, path+keptSuffix)
}

// keep writes data as the file that stood at path before our link: an operator's root that was written through the link.
func (o output) keep(path string, data []byte) error {
	tmp := path + keptSuffix + ".new"
	if err := o.disk.removeAll(tmp); err != nil {
		return err
	}
	if err := o.disk.create(tmp, data); err != nil {
		return err
	}
	if err := o.disk.sync(tmp); err != nil {
		return err
	}
	if err := o.disk.rename(tmp, path+keptSuffix); err != nil {
		return err
	}
	return o.disk.sync(o.dir)
}

// resolvedTarget is what a link at path that says to leads to.
func resolvedTarget(path, to string) string {
	if filepath.IsAbs(to) {
		return to
	}
	return filepath.Join(filepath.Dir(path), to)
}

// sameFile reports whether two paths name one file, without following the last element: folders may be reached by several ways.
func sameFile(a, b string) bool {
	if a == b || filepath.Base(a) != filepath.Base(b) {
		return a == b
	}
	x, errX := os.Stat(filepath.Dir(a))
	y, errY := os.Stat(filepath.Dir(b))
	return errX == nil && errY == nil && os.SameFile(x, y)
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// resolved is path behind its links, path itself when it leads nowhere.
func resolved(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	return path
}
