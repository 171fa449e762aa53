package sds

import (
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/fsnotify/fsnotify"
)

// watch tells that something happened in the folders of some files. It says too much rather than too little: whoever listens compares
// contents. Folders, not files, because files are replaced by rename and links are switched.
type watch struct {
	inner  *fsnotify.Watcher // nil: inotify has nothing left to give, files are only looked at now and then
	events chan struct{}
	done   chan struct{}
}

func newWatch(log *slog.Logger) watch {
	w := watch{events: make(chan struct{}, 1), done: make(chan struct{})}
	inner, err := fsnotify.NewWatcher()
	if err != nil {
		log.Warn("files of secrets are not watched, only looked at now and then", "every", recheck, "cause", err)
		close(w.done)
		return w
	}
	w.inner = inner
	go func() { // ends with inner, stop waits for it
		defer close(w.done)
		for {
			select {
			case _, ok := <-inner.Events:
				if !ok {
					return
				}
			case _, ok := <-inner.Errors: // most often an overflow: something was missed
				if !ok {
					return
				}
			}
			poke(w.events)
		}
	}()
	return w
}

func (w watch) changed() <-chan struct{} { return w.events }

func (w watch) stop() {
	if w.inner != nil {
		w.inner.Close()
	}
	<-w.done
}

// arm watches the folders of files, or of those that exist the nearest above. Only then read the files.
func (w watch) arm(files []string) {
	if w.inner == nil {
		return
	}
	var wanted []string
	for {
		wanted = folders(files)
		for _, dir := range wanted {
			w.inner.Add(dir) // a folder that vanished meanwhile: folders finds the one above next
		}
		if slices.Equal(folders(files), wanted) {
			break
		}
	}
	for _, dir := range w.inner.WatchList() {
		if !slices.Contains(wanted, dir) {
			w.inner.Remove(dir)
		}
	}
}

// maxLinks bounds the links on the way to a file, as the kernel does.
const maxLinks = 40

// folders lists the folders in which something can happen that changes what is read at one of the files: the one it lies in, and
// those that hold a link on the way to it. Where the way ends before, it is the last folder that exists. Sorted.
func folders(files []string) []string {
	var list []string
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
				list = append(list, at)
				if filepath.IsAbs(target) {
					at = "/"
				}
				rest = append(strings.Split(target, "/"), rest[1:]...)
				continue
			}
			if rest = rest[1:]; len(rest) == 0 || !isDir(next) {
				list = append(list, at)
				break
			}
			at = next
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}
