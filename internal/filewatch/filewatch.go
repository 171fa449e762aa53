// Package filewatch tells when something happened to one of a few files, by inotify.
//
// It watches folders, those of the files and of the links on the way to them: files are replaced by rename, links are switched, folders on a tmpfs appear only
// later. It says too much rather than too little; whoever listens reads the files and compares. Where inotify has nothing left to give it is silent, so
// listeners look now and then anyway. One goroutine for each Watch. To match: nothing of Istio's.
package filewatch

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
)

// A Watch tells of a few files. Make it with New; its methods are for one goroutine.
type Watch struct {
	inner  *fsnotify.Watcher // nil: inotify has no more instances to give
	events chan struct{}     // buffered 1
	done   sync.WaitGroup
	log    *slog.Logger
	every  time.Duration
	blind  sync.Once // that a folder cannot be watched is said once

	mu     sync.Mutex // guards everything below
	files  []string
	points []string // of the ways to them
}

// New starts a watch of no files yet. every is how often the listener looks without a word: the log says so where folders cannot be watched.
func New(log *slog.Logger, every time.Duration) *Watch {
	w := &Watch{events: make(chan struct{}, 1), log: log, every: every}
	inner, err := fsnotify.NewWatcher()
	if err != nil {
		log.Warn("files are not watched, only looked at now and then", "every", every, "cause", err)
		return w
	}
	w.inner = inner
	w.done.Go(func() {
		for {
			select {
			case ev, ok := <-inner.Events:
				if !ok {
					return
				}
				if w.concerns(ev.Name) {
					w.tell()
				}
			case _, ok := <-inner.Errors: // most often an overflow: something was missed
				if !ok {
					return
				}
				w.tell()
			}
		}
	})
	return w
}

func (w *Watch) tell() {
	select {
	case w.events <- struct{}{}:
	default:
	}
}

// Changed carries at most one pending word.
func (w *Watch) Changed() <-chan struct{} { return w.events }

// Stop ends the watch and waits for its goroutine.
func (w *Watch) Stop() {
	if w.inner != nil {
		w.inner.Close()
	}
	w.done.Wait()
}

// Arm sets the files that are watched from now on, by absolute paths. Only then read them: what happens after Arm is told. Arm again when a word came, as
// folders may have come and gone.
func (w *Watch) Arm(files []string) {
	if w.inner == nil {
		return
	}
	for {
		before, points := folders(files)
		w.mu.Lock()
		w.files, w.points = files, points
		w.mu.Unlock()
		for _, dir := range before {
			// Again and again: a folder that was removed and made anew is another one.
			if err := w.inner.Add(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
				w.blind.Do(func() {
					w.log.Warn("folder is not watched, only looked at now and then", "dir", dir, "every", w.every, "cause", err)
				})
			}
		}
		// A folder may have appeared below the one that was nearest a moment ago.
		if after, _ := folders(files); slices.Equal(after, before) {
			w.drop(before)
			return
		}
	}
}

// drop ends the watch of folders that matter no more.
func (w *Watch) drop(keep []string) {
	for _, dir := range w.inner.WatchList() {
		if !slices.Contains(keep, dir) {
			w.inner.Remove(dir)
		}
	}
}

// concerns reports whether an event at name can change what is read at one of the files: it is in the folder of one (a file is
// replaced, a "..data" link is switched), or it is a folder or a link on the way to one.
func (w *Watch) concerns(name string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.files {
		for _, path := range []string{f, resolved(f)} {
			if filepath.Dir(name) == filepath.Dir(path) || path == name || strings.HasPrefix(path, name+"/") {
				return true
			}
		}
	}
	return slices.Contains(w.points, name)
}

// maxLinks bounds the links on the way to a file, as the kernel does.
const maxLinks = 40

// folders lists the folders in which something can happen that changes what is read at one of the files: the one it lies in, and
// those that hold a link on the way to it. Where the way ends before, it is the last folder that exists. Sorted. The points are those links, and where the ways end.
func folders(files []string) (list, points []string) {
	for _, f := range files {
		at, rest := "/", strings.Split(f, "/")
		for links := 0; len(rest) > 0; {
			if rest[0] == "" {
				rest = rest[1:]
				continue
			}
			next := filepath.Join(at, rest[0])
			if target, err := os.Readlink(next); err == nil && links < maxLinks {
				links++
				list, points = append(list, at), append(points, next)
				if filepath.IsAbs(target) {
					at = "/"
				}
				rest = append(strings.Split(target, "/"), rest[1:]...)
				continue
			}
			if rest = rest[1:]; len(rest) == 0 || !isDir(next) {
				list, points = append(list, at), append(points, next)
				break
			}
			at = next
		}
	}
	slices.Sort(list)
	return slices.Compact(list), points
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
