package identity

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"wingman/bootstrap/identity/internal/credential"
	"wingman/internal/plainfile"
)

// copyFile is our copy of the token file, in the store: /var/run is a tmpfs, and a machine that reboots before istiod could be reached
// would have lost its only way in.
const copyFile = "token"

// A copySource is the copy.
type copySource struct {
	path   string
	sealer *sealer
}

func (copySource) Name() string    { return SourceCopy }
func (c copySource) Where() string { return c.path }
func (copySource) Local() bool     { return true }

func (c copySource) Token(context.Context) (credential.Token, error) {
	raw, _, err := plainfile.Read(c.path, 2*MaxToken)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return credential.Token{}, fmt.Errorf("%w at %s", ErrNoToken, c.path)
	case err != nil:
		return credential.Token{}, fmt.Errorf("read the copy of the token: %w", err)
	}
	if raw, err = c.sealer.open(copyFile, raw); err == nil {
		raw, err = unwrap(raw)
	}
	if err == nil {
		_, err = decodeClaims(raw)
	}
	if err != nil {
		return credential.Token{}, fmt.Errorf("%s: %w", c.path, err)
	}
	return credential.Token{JWT: credential.Hide(string(raw))}, nil
}

// A copyStep is what becomes of the copy.
type copyStep int

const (
	copyStays copyStep = iota
	copyWritten
	copyDropped
)

// planCopy decides. file is the token file's offer, kept the copy's, volatile whether a reboot loses the file. Only a token that its claims speak for and that ends some
// day is copied; a copy that is of no use any more, or not needed beside a file that lasts, is dropped. That the file is gone is no reason: after a reboot it always is.
func planCopy(file, kept offer, volatile bool, want TokenWant, now time.Time) copyStep {
	fit := func(o offer) bool {
		if o.token == nil {
			return false
		}
		raw := []byte(o.token.reveal())
		info, _ := InspectToken(raw, now)
		return CheckToken(raw, want, now) == nil && !info.Expiry.IsZero()
	}
	same := file.token != nil && kept.token != nil && file.token.reveal() == kept.token.reveal()
	switch {
	case fit(file) && volatile && !same:
		return copyWritten
	case kept.token == nil && (errors.Is(kept.err, ErrNoToken) || errors.Is(kept.err, errSealed)):
		return copyStays
	case kept.token == nil && kept.err == nil, !fit(kept), fit(file) && !volatile:
		return copyDropped
	}
	return copyStays
}

// keepToken makes the copy follow the token file.
func (r *runner) keepToken(now time.Time) {
	file, kept := r.offerOf(SourceFile), r.offerOf(SourceCopy)
	if file == nil || kept == nil {
		return
	}
	var err error
	switch planCopy(*file, *kept, r.disk.volatile(file.source.Where()), r.wantToken(), now) {
	case copyStays:
		if kept.token == nil || r.store.copySealed() == r.sealer.on {
			return
		}
		err = r.store.writeCopy([]byte(kept.token.reveal() + "\n")) // the setting has changed
	case copyWritten:
		err = r.store.writeCopy([]byte(file.token.reveal() + "\n"))
	case copyDropped:
		err = r.store.dropCopy()
	}
	kept.ask(context.Background(), now)
	if problem := oneLine(err); problem != r.copyProblem {
		r.copyProblem = problem
		if err != nil {
			r.cfg.Log.Warn("token is not kept for the next boot", "cause", err)
		}
	}
	r.sayTokens(now)
}

func (r *runner) offerOf(name string) *offer {
	for i := range r.offers {
		if r.offers[i].source.Name() == name {
			return &r.offers[i]
		}
	}
	return nil
}

// writeCopy replaces the copy in one step.
func (s *store) writeCopy(content []byte) error {
	content, err := s.sealer.seal(copyFile, content)
	if err != nil {
		return err
	}
	next := s.path(copyFile + ".new")
	if err := s.disk.removeAll(next); err != nil {
		return err
	}
	if err := s.disk.create(next, content); err != nil {
		return err
	}
	if err := s.disk.sync(next); err != nil {
		return err
	}
	if err := s.disk.rename(next, s.path(copyFile)); err != nil {
		return err
	}
	return s.disk.sync(s.dir)
}

// copySealed reports whether the copy that is there is sealed.
func (s *store) copySealed() bool {
	data, _, err := plainfile.Read(s.path(copyFile), 2*MaxToken)
	return err == nil && bytes.HasPrefix(data, []byte(sealMark))
}

func (s *store) dropCopy() error {
	if err := s.disk.removeAll(s.path(copyFile)); err != nil {
		return err
	}
	return s.disk.sync(s.dir)
}

// volatile reports whether what lies at path is lost with the power. What cannot be told is not.
func volatile(path string) bool {
	var fs unix.Statfs_t
	if unix.Statfs(resolved(filepath.Clean(path)), &fs) != nil {
		return false
	}
	return fs.Type == unix.TMPFS_MAGIC || fs.Type == unix.RAMFS_MAGIC
}
