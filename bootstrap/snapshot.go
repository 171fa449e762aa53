package bootstrap

import "io/fs"

// A Snapshot is the content of the settings' files as they were read: cluster.env, sidecar.env, mesh.yaml, hosts and wingman.yaml by their
// paths; a file that was not there has no key. An agent keeps the last one that worked, so that a file broken later does not
// take a machine out of the mesh at its next start.
type Snapshot map[string][]byte

// Snapshot returns what this Config was made from. It is not to be changed.
func (c *Config) Snapshot() Snapshot { return c.snapshot }

// LoadSnapshot is Load with the settings' files as they were. Root certificate, token, users and groups are those of the machine now.
func LoadSnapshot(root string, s Snapshot) (*Config, Problems) {
	if s == nil {
		s = Snapshot{}
	}
	return load(root, s, nil)
}

// LoadAhead is Load as it would be if files held what put says, by path: nothing has been written yet.
func LoadAhead(root string, put Snapshot) (*Config, Problems) { return load(root, nil, put) }

// content reads one file: from the snapshot if there is one, else from disk. The root certificate is never part of a snapshot: it has
// a life of its own.
func (l *loader) content(file string) (src []byte, found string, err error) {
	inSnapshot := file != l.c.Paths.RootCert
	if src, ok := l.ahead[file]; ok {
		return src, "", nil
	}
	if l.from != nil && inSnapshot {
		src, ok := l.from[file]
		if !ok {
			return nil, "no file", fs.ErrNotExist
		}
		return src, "", nil
	}
	src, found, err = readFile(file)
	if err == nil && inSnapshot {
		l.taken[file] = src
	}
	return src, found, err
}
