package identity

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"wingman/internal/filewatch"
	"wingman/internal/plainfile"
)

// A rootInput is what is known of the root file.
type rootInput struct {
	seen  string    // hash of the content that was judged last, or the error that reading it gave
	taken []byte    // its content, if that is in the trust bundle
	sayAt time.Time // when a problem with it will be said; zero: there is none, or it was said
}

// readRootFile takes a changed root file into the trust bundle, and reports whether it did. Content that cannot be used is said
// once it has stayed so for settleTime, and changes nothing. Content that is our own (the file is our link into the store) is no news.
func (r *runner) readRootFile(now time.Time) (news bool) {
	data, _, err := plainfile.Read(r.cfg.RootFile, maxPEMSize)
	if errors.Is(err, fs.ErrNotExist) && len(r.roots.of(fromFile)) == 0 {
		// The store was wiped and our link leads nowhere: what stood there before the link is beside it.
		if kept, _, keptErr := plainfile.Read(KeptRoot(r.cfg.RootFile), maxPEMSize); keptErr == nil {
			data, err = kept, nil
		}
	}
	seen := hash(data)
	switch {
	case err != nil:
		seen = err.Error()
		err = fmt.Errorf("root file: %w", whose(err, r.cfg.RootFile))
	case seen == r.root.seen && r.root.taken != nil:
		return false
	case seen == r.store.rootsHash || r.clear != nil && seen == r.clear.rootsHash:
		r.root, r.said.RootProblem = rootInput{seen: seen, taken: data}, ""
		return false
	default:
		if err = CheckRoots(data, now); err != nil {
			err = fmt.Errorf("root file %s: %w", r.cfg.RootFile, err)
		}
	}
	if err != nil {
		if r.cfg.WorkloadSocket != "" && errors.Is(err, fs.ErrNotExist) {
			return false // the bundle of the Workload API does
		}
		r.rootTrouble(err, seen, now)
		return false
	}
	certs, err := parseRoots(data)
	if err != nil {
		return false // cannot be: CheckRoots has parsed them
	}
	r.root, r.said.RootProblem = rootInput{seen: seen, taken: data}, ""
	r.keepWritten(data)
	roots := r.roots.withFile(certs)
	if roots.equal(r.roots) {
		r.follow(now)
		return false
	}
	r.cfg.Log.Info("root file taken in", "file", r.cfg.RootFile, "roots", names(roots.of(fromFile)))
	r.use(r.Current(), roots, now)
	return true
}

// freeRootFile makes way at the root file's path when the generation that our link leads to is gone: what stood there before returns, and who is told to put a
// root there can.
func (r *runner) freeRootFile() {
	path := r.cfg.RootFile
	if _, err := os.Stat(path); !OutputLink(path) || !errors.Is(err, fs.ErrNotExist) {
		return
	}
	if _, err := removeLink(path); err != nil {
		r.cfg.Log.Warn("link to a root that is gone cannot be removed", "file", path, "cause", err)
	}
}

// throughOurLink reports whether the root file is our own link, so that its content was written into the store.
func (r *runner) throughOurLink() bool {
	link := filepath.Join(r.cfg.OutputDir, rootFile)
	return r.cfg.OutputDir != "" && sameFile(link, r.cfg.RootFile) && resolved(link) == resolved(filepath.Join(r.output.store, currentLink, rootFile))
}

// keepWritten keeps a root that was written through our link where a wiped store does not take it along, and lets the link lead
// to our own bundle again.
func (r *runner) keepWritten(data []byte) {
	if !r.throughOurLink() {
		return
	}
	r.unsaved = true
	if err := r.output.keep(filepath.Join(r.cfg.OutputDir, rootFile), data); err != nil {
		r.cfg.Log.Warn("copy of the root file not kept", "cause", err)
	}
}

// rootTrouble says what is wrong with the root file, when it is still so after settleTime: a file is empty while it is copied.
// What was written through our link is then replaced by our own bundle again, because applications read it there.
func (r *runner) rootTrouble(err error, seen string, now time.Time) {
	switch {
	case seen != r.root.seen:
		r.root = rootInput{seen: seen, sayAt: now.Add(settleTime)}
	case !r.root.sayAt.IsZero() && !now.Before(r.root.sayAt):
		r.root.sayAt = time.Time{}
		r.cfg.Log.Warn("root file cannot be used, earlier roots stay", "cause", err, "roots", len(r.roots))
		r.unsaved = r.unsaved || r.throughOurLink()
		r.followAt = now // if the file is gone, our link can stand there
	}
	r.said.RootProblem = err.Error()
}

// A watch tells when something happened to one of the inputs; see package filewatch.
type watch interface {
	Arm(files []string)
	Changed() <-chan struct{}
	Stop()
}

func newWatch(log *slog.Logger) watch { return filewatch.New(log, longestSleep) }
