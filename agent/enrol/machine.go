package enrol

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"wingman/bootstrap"
	"wingman/bootstrap/identity"
)

// recordFile is below the state folder.
const recordFile = "placed.json"

// A machine is the files that join and leave change.
type machine struct {
	cfg      *bootstrap.Config
	places   []place
	uid, gid int // the user of agent and Envoy; -1: leave owners as they come
}

func machineOf(cfg *bootstrap.Config) *machine {
	m := &machine{cfg: cfg, places: placesOf(cfg), uid: -1, gid: -1}
	for i, p := range m.places {
		// A link of the operator's stays one: the file behind it is meant. Below another root links have been followed.
		if to, err := filepath.EvalSymlinks(p.path); err == nil && cfg.Root == "/" && !identity.OutputLink(p.path) {
			m.places[i].path = to
		}
	}
	if os.Geteuid() == 0 && cfg.Capture.UserKnown {
		m.uid, m.gid = int(cfg.Capture.ProxyUID), int(cfg.Capture.ProxyGID)
	}
	return m
}

func (m *machine) recordPath() string { return filepath.Join(m.cfg.Paths.StateDir, recordFile) }

// record reads what earlier joins noted; an empty one when there is none.
func (m *machine) record() (record, error) {
	r := record{Files: map[string]placed{}}
	b, err := os.ReadFile(m.recordPath())
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if err != nil {
		return record{Files: map[string]placed{}}, fmt.Errorf("what an earlier join noted: %w", err)
	}
	if r.Files == nil {
		r.Files = map[string]placed{}
	}
	return r, nil
}

func (m *machine) save(r record) error {
	b, err := json.Marshal(r)
	if err == nil {
		err = m.mkdir(m.cfg.Paths.StateDir, 0o700, true, nil)
	}
	if err == nil {
		err = m.write(m.recordPath(), append(b, '\n'), 0o600, false)
	}
	if err != nil {
		return fmt.Errorf("note what is put in place: %w", err)
	}
	return nil
}

// put puts a bundle in place; it returns the files that it changed, and those that it kept a backup of. Each file changes in one step, and is noted
// before, so that a leave after a crash knows of it.
func (m *machine) put(b bundle) (changed, backups []string, err error) {
	r, err := m.record()
	if err != nil {
		return nil, nil, err
	}
	for _, p := range m.places {
		want, ok := b[p.name]
		if !ok {
			continue
		}
		now, err := current(p.path)
		if err != nil {
			return changed, backups, err
		}
		was := r.Files[p.name]
		act := decideJoin(p, now, want, was)
		if act == leaveIt {
			continue
		}
		if act == keepAndWriteIt {
			n, err := m.backup(p, now)
			if err != nil {
				return changed, backups, fmt.Errorf("keep what is at %s: %w", p.path, err)
			}
			backups = append(backups, backupName(p.path, n))
			if was.SHA256 == "" {
				was.Backup = n
			}
		}
		was.SHA256 = digest(want)
		r.Files[p.name] = was
		dirMode := fs.FileMode(0o755)
		if p.owned {
			dirMode = 0o700
		}
		if err := m.mkdir(filepath.Dir(p.path), dirMode, p.owned || p.name == rootCert, &r.Dirs); err != nil {
			return changed, backups, err
		}
		if err := m.save(r); err != nil {
			return changed, backups, err
		}
		if err := m.write(p.path, want, p.mode, p.owned); err != nil {
			return changed, backups, err
		}
		changed = append(changed, p.path)
	}
	return changed, backups, nil
}

// current returns a file's content, nil when there is none. Behind a link of the agent's it is the file that stood there before.
func current(path string) ([]byte, error) {
	if identity.OutputLink(path) {
		path = identity.KeptRoot(path)
	}
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a file: move it away", path)
	case info.Size() > maxFile:
		return nil, fmt.Errorf("%s has more than %d bytes: move it away", path, maxFile)
	}
	content, err := os.ReadFile(path)
	if content == nil && err == nil {
		content = []byte{}
	}
	return content, err
}

// backup keeps content beside p under the first free name, with mode and owner of the file.
func (m *machine) backup(p place, content []byte) (n int, err error) {
	from := p.path
	if identity.OutputLink(from) {
		from = identity.KeptRoot(from)
	}
	info, err := os.Stat(from)
	if err != nil {
		return 0, err
	}
	for n = 1; ; n++ {
		if _, err := os.Lstat(backupName(p.path, n)); errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	to := backupName(p.path, n)
	if err := m.write(to, content, info.Mode().Perm(), false); err != nil {
		return 0, err
	}
	if s, ok := info.Sys().(*syscall.Stat_t); ok && os.Geteuid() == 0 {
		if err := os.Chown(to, int(s.Uid), int(s.Gid)); err != nil {
			return 0, err
		}
	}
	return n, nil
}

// undo puts the files back as they were before the first join. problems do not stop it.
func (m *machine) undo() (removed, restored, changed []string, err error) {
	r, err := m.record()
	problems := []error{err}
	for _, p := range m.places {
		was, ok := r.Files[p.name]
		if !ok {
			continue
		}
		now, err := current(p.path)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		switch decideLeave(now, was) {
		case undoRemove:
			err, removed = os.Remove(p.path), append(removed, p.path)
		case undoRestore:
			err, restored = os.Rename(backupName(p.path, was.Backup), p.path), append(restored, p.path)
			if errors.Is(err, fs.ErrNotExist) && now == nil {
				err = nil // somebody took both away
			}
		case undoChanged:
			changed = append(changed, p.path)
		}
		problems = append(problems, err)
	}
	ways := append(slices.Clone(m.places), placesOf(m.cfg)...) // by links and without: a folder was noted before its file was there to follow
	for _, dir := range slices.Backward(r.Dirs) {
		if slices.ContainsFunc(ways, func(p place) bool { return inside(p.path, dir) }) {
			_ = os.Remove(dir) // only if it is empty
		}
	}
	return removed, restored, changed, errors.Join(problems...)
}

// write replaces path in one step: a temporary file in the same folder, synced, renamed, and the folder synced. A link at path gives way.
func (m *machine) write(path string, content []byte, mode fs.FileMode, owned bool) (err error) {
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			tmp.Close()
			os.Remove(tmp.Name())
		}
	}()
	if owned && m.uid >= 0 {
		if err = tmp.Chown(m.uid, m.gid); err != nil {
			return err
		}
	}
	if _, err = tmp.Write(content); err != nil {
		return err
	}
	for _, do := range []func() error{func() error { return tmp.Chmod(mode) }, tmp.Sync, tmp.Close, func() error { return os.Rename(tmp.Name(), path) }} {
		if err = do(); err != nil {
			return err
		}
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// mkdir makes a folder and what lacks above it; those that it made are added to made. Only the last can have the user and a mode of its own.
func (m *machine) mkdir(dir string, mode fs.FileMode, owned bool, made *[]string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if parent := filepath.Dir(dir); parent != dir {
		if err := m.mkdir(parent, 0o755, false, made); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, mode); err != nil {
		return err
	}
	if made != nil {
		*made = append(*made, dir)
	}
	if err := os.Chmod(dir, mode); err != nil { // whatever the umask took
		return err
	}
	if owned && m.uid >= 0 {
		return os.Chown(dir, m.uid, m.gid)
	}
	return nil
}
