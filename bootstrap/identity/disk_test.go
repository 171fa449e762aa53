package identity

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

var errCrash = errors.New("the machine stopped here")

// unsyncedDisk is the real one without the wait for the medium, for what only prepares a test.
var unsyncedDisk = func() disk {
	d := systemDisk
	d.sync = func(path string) error { _, err := os.Stat(path); return err }
	return d
}()

// A faultyDisk is the real disk up to a step, at which it fails once or for good. It remembers what was not synced, so that a
// power cut can take that away: names whose folder was not synced, and bytes of files that were not.
type faultyDisk struct {
	t       testing.TB
	failAt  int   // number of the step that fails, from 0
	failure error // what it says
	once    bool  // later steps work again: a full disk, not a crash
	torn    bool  // the failing step, if it writes a file, writes half of it
	after   func(step string)

	steps    int
	unsynced []lost
}

// A lost is what a power cut undoes.
type lost struct {
	path  string // the sync of this path makes it safe
	bytes bool   // of a file; else a name in a folder
	name  string // what appeared there
	undo  func(name string) error
}

func (d *faultyDisk) disk() disk {
	return disk{
		mkdir: func(path string) error {
			_, err := os.Stat(path)
			return d.step("mkdir "+path, func() error { return systemDisk.mkdir(path) }, func() {
				if err != nil {
					d.remember(filepath.Dir(path), false, path, os.RemoveAll)
				}
			})
		},
		create: func(path string, data []byte) error {
			if d.torn && d.steps == d.failAt {
				systemDisk.create(path, data[:len(data)/2])
			}
			return d.step("create "+path, func() error { return systemDisk.create(path, data) }, func() {
				d.remember(filepath.Dir(path), false, path, os.RemoveAll)
				d.remember(path, true, path, nil)
			})
		},
		sync: func(path string) error {
			return d.step("sync "+path, func() error { return unsyncedDisk.sync(path) }, func() {
				d.unsynced = slices.DeleteFunc(d.unsynced, func(l lost) bool { return l.path == path })
			})
		},
		rename: func(from, to string) error {
			before, _ := os.Readlink(to)
			return d.step("rename "+to, func() error { return systemDisk.rename(from, to) }, func() {
				for i, l := range d.unsynced { // what is inside a renamed folder, and the file itself, moved along
					if rest, err := filepath.Rel(from, l.path); err == nil && filepath.IsLocal(rest) {
						d.unsynced[i].path = filepath.Join(to, rest)
					}
					if rest, err := filepath.Rel(from, l.name); err == nil && filepath.IsLocal(rest) && rest != "." {
						d.unsynced[i].name = filepath.Join(to, rest)
					}
				}
				d.remember(filepath.Dir(to), false, to, func(string) error {
					err := os.Rename(to, from)
					if errors.Is(err, os.ErrNotExist) { // it was removed since, and a journal keeps the order
						return nil
					}
					if before != "" {
						err = errors.Join(err, os.Symlink(before, to))
					}
					return err
				})
			})
		},
		exchange: func(a, b string) error {
			return d.step("exchange "+b, func() error { return systemDisk.exchange(a, b) }, func() {
				d.remember(filepath.Dir(b), false, b, func(string) error { return systemDisk.exchange(a, b) })
			})
		},
		symlink: func(target, path string) error {
			return d.step("symlink "+path, func() error { return systemDisk.symlink(target, path) }, func() {
				d.remember(filepath.Dir(path), false, path, os.Remove)
			})
		},
		share: func(path string, gid int, mode fs.FileMode) error {
			return d.step("share "+path, func() error { return systemDisk.share(path, gid, mode) }, func() {})
		},
		removeAll: func(path string) error {
			return d.step("remove "+path, func() error { return systemDisk.removeAll(path) }, func() {})
		},
	}
}

// step does one change of the disk, or fails.
func (d *faultyDisk) step(name string, do func() error, done func()) error {
	n := d.steps
	d.steps++
	if n == d.failAt || n > d.failAt && !d.once {
		return fmt.Errorf("%s: %w", name, d.failure)
	}
	if err := do(); err != nil {
		return err
	}
	done()
	if d.after != nil {
		d.after(name)
	}
	return nil
}

func (d *faultyDisk) remember(path string, bytes bool, name string, undo func(name string) error) {
	d.unsynced = append(d.unsynced, lost{path, bytes, name, undo})
}

// cutBytes empties the files that were not synced: their names are there, their content is not.
func (d *faultyDisk) cutBytes() {
	for _, l := range d.unsynced {
		if l.bytes {
			if err := os.Truncate(l.path, 0); err != nil && !errors.Is(err, os.ErrNotExist) {
				d.t.Fatal(err)
			}
		}
	}
}

// cutNames undoes what was done to folders that were not synced.
func (d *faultyDisk) cutNames() {
	for _, l := range slices.Backward(d.unsynced) {
		if !l.bytes {
			if err := l.undo(l.name); err != nil && !errors.Is(err, os.ErrNotExist) {
				d.t.Fatal(err)
			}
		}
	}
}
