package enrol

import (
	"crypto/rand"
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

// recordFile is below the state folder. listFile beside it says the same with paths, a line each, for a purge of the package, when no program is there that could
// read the settings: only root writes it, and only a file of root's is believed.
const (
	recordFile = "placed.json"
	listFile   = "placed.list"
)

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
		if to, err := follow(p.path); err == nil && cfg.Root == "/" && !identity.OutputLink(p.path) {
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
	err := in(m.recordPath(), func(dir *os.Root, name string) error {
		b, info, err := read(dir, name)
		if err == nil && b == nil {
			err = fmt.Errorf("%s is not a file but %s", m.recordPath(), info.Mode().Type())
		}
		if err != nil {
			return err
		}
		return json.Unmarshal(b, &r)
	})
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return record{Files: map[string]placed{}}, fmt.Errorf("what an earlier join noted at %s: %w", m.recordPath(), err)
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
		err = write(filepath.Join(m.cfg.Paths.StateDir, listFile), []byte(listOf(r, m.places, m.cfg.Root)), 0o600, asIs)
	}
	if err == nil {
		err = write(m.recordPath(), append(b, '\n'), 0o600, asIs)
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
		act := decideJoin(p, now.content, want, was)
		if now.link != "" {
			act = writeIt // it gives way
			if p.kept {
				act = keepAndWriteIt
			}
		}
		if act == leaveIt {
			continue
		}
		if act == keepAndWriteIt {
			n, err := backup(p, now)
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
		whose := asIs
		if p.owned {
			whose = owner{m.uid, m.gid}
		}
		if err := write(p.path, want, p.mode, whose); err != nil {
			return changed, backups, err
		}
		changed = append(changed, p.path)
	}
	return changed, backups, nil
}

// present is what stands at a place.
type present struct {
	content []byte // nil when there is no file
	link    string // where a link leads that root did not make; it is not followed
	mode    fs.FileMode
	owner   owner
}

// current returns what there is at path. Behind a link of the agent's it is the file that stood there before.
func current(path string) (p present, err error) {
	if identity.OutputLink(path) {
		path = identity.KeptRoot(path)
	}
	err = in(path, func(dir *os.Root, name string) error {
		content, info, err := read(dir, name)
		if err != nil {
			return err
		}
		p = present{content: content, mode: info.Mode().Perm(), owner: asIs}
		if s, ok := info.Sys().(*syscall.Stat_t); ok && os.Geteuid() == 0 {
			p.owner = owner{int(s.Uid), int(s.Gid)}
		}
		if content == nil {
			p.link, err = dir.Readlink(name)
		}
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return present{}, nil
	}
	return p, err
}

// backup keeps what is there beside p under the first free name, with mode and owner.
func backup(p place, now present) (n int, err error) {
	for n = 1; ; n++ {
		if _, err := os.Lstat(backupName(p.path, n)); errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	to := backupName(p.path, n)
	if now.link == "" {
		return n, write(to, now.content, now.mode, now.owner)
	}
	return n, in(to, func(dir *os.Root, name string) error {
		if err := dir.Symlink(now.link, name); err != nil {
			return err
		}
		// Root's it would be one to follow.
		return dir.Lchown(name, now.owner.uid, now.owner.gid)
	})
}

// undo puts the files back as they were before the first join. Problems do not stop it; what could not be undone stays in the record, for another undo.
func (m *machine) undo() (removed, restored, changed []string, err error) {
	r, unreadable := m.record()
	problems := []error{unreadable}
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
		act := decideLeave(now.content, was)
		if now.link != "" {
			act = undoChanged
		}
		switch act {
		case undoRemove:
			if err = in(p.path, (*os.Root).Remove); err == nil {
				removed = append(removed, p.path)
			}
		case undoRestore:
			err = in(p.path, func(dir *os.Root, name string) error { return dir.Rename(backupName(name, was.Backup), name) })
			if err == nil {
				restored = append(restored, p.path)
			} else if errors.Is(err, fs.ErrNotExist) && now.content == nil {
				err = nil // somebody took both away
			}
		case undoChanged:
			changed = append(changed, p.path)
		}
		if err == nil {
			delete(r.Files, p.name)
		}
		problems = append(problems, err)
	}
	if unreadable == nil && errors.Join(problems...) != nil {
		problems = append(problems, m.save(r))
	}
	ways := append(slices.Clone(m.places), placesOf(m.cfg)...) // by links and without: a folder was noted before its file was there to follow
	for _, dir := range slices.Backward(r.Dirs) {
		if slices.ContainsFunc(ways, func(p place) bool { return inside(p.path, dir) }) {
			_ = in(dir, (*os.Root).Remove) // only if it is empty
		}
	}
	return removed, restored, changed, errors.Join(problems...)
}

// An owner is whose a file is to be; -1: as it comes.
type owner struct{ uid, gid int }

var asIs = owner{-1, -1}

// write replaces path in one step: a temporary file in the same folder, synced, renamed, and the folder synced. A link at path gives way.
func write(path string, content []byte, mode fs.FileMode, whose owner) error {
	return in(path, func(dir *os.Root, name string) (err error) {
		fresh := "." + name + "." + rand.Text()
		tmp, err := dir.OpenFile(fresh, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		defer func() {
			if err != nil {
				tmp.Close()
				dir.Remove(fresh)
			}
		}()
		if whose != asIs {
			if err = tmp.Chown(whose.uid, whose.gid); err != nil {
				return err
			}
		}
		if _, err = tmp.Write(content); err != nil {
			return err
		}
		for _, do := range []func() error{func() error { return tmp.Chmod(mode) }, tmp.Sync, tmp.Close, func() error { return dir.Rename(fresh, name) }} {
			if err = do(); err != nil {
				return err
			}
		}
		d, err := dir.Open(".")
		if err != nil {
			return err
		}
		return errors.Join(d.Sync(), d.Close())
	})
}

// mkdir makes a folder and what lacks above it; those that it made are added to made. Only the last can have the user and a mode of its own.
func (m *machine) mkdir(path string, mode fs.FileMode, owned bool, made *[]string) error {
	d, err := openFolder(path)
	if err == nil {
		return d.Close()
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if parent := filepath.Dir(path); parent != path {
		if err := m.mkdir(parent, 0o755, false, made); err != nil {
			return err
		}
	}
	return in(path, func(dir *os.Root, name string) error {
		if err := dir.Mkdir(name, mode); err != nil {
			return err
		}
		if made != nil {
			*made = append(*made, path)
		}
		if err := dir.Chmod(name, mode); err != nil { // whatever the umask took
			return err
		}
		if owned && m.uid >= 0 {
			return dir.Lchown(name, m.uid, m.gid)
		}
		return nil
	})
}
