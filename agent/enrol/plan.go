package enrol

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"wingman/bootstrap"
)

// A place is where one of the five files belongs.
type place struct {
	name  string
	path  string
	mode  fs.FileMode
	owned bool // by the user of agent and Envoy; else by who joins
	kept  bool // what is replaced is kept: all but the token, which is a secret and soon worthless
}

// placesOf returns all five, by the settings.
func placesOf(cfg *bootstrap.Config) []place {
	p := cfg.Paths
	root := p.RootCert
	if inside(root, p.StateDir) { // below another root than / the agent's own link has been followed
		root = filepath.Join(p.OutputCerts, rootCert)
	}
	return []place{
		{name: clusterEnv, path: p.ClusterEnv, mode: 0o644, kept: true},
		{name: meshYAML, path: p.MeshConfig, mode: 0o644, kept: true},
		{name: hosts, path: p.Hosts, mode: 0o644, kept: true},
		{name: token, path: p.Token, mode: 0o600, owned: true},
		{name: rootCert, path: root, mode: 0o644, kept: true},
	}
}

func inside(path, dir string) bool { return strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/") }

// A record is what join notes for leave, by name: never by path, because the folder that it lies in is not root's.
type record struct {
	Files map[string]placed `json:"files"`
	// Dirs are folders that were made, each the parent of a place or of another of them.
	Dirs []string `json:"dirs,omitempty"`
}

// placed is what join did to one file.
type placed struct {
	SHA256 string `json:"sha256"`           // of what it put there
	Backup int    `json:"backup,omitempty"` // which backup holds what was there before the first join; 0: there was nothing
}

// listOf is a record for packaging/scripts/postremove.sh: "file SHA256 BACKUP PATH", then "dir - - PATH" from the last that was made, with paths as the machine
// has them. A path that is no line is left out: it stays.
func listOf(r record, places []place, root string) string {
	var b strings.Builder
	line := func(word, sum string, backup any, path string) {
		if root != "/" {
			path = strings.TrimPrefix(path, strings.TrimSuffix(root, "/"))
		}
		if !strings.ContainsAny(path, "\n\r") {
			fmt.Fprintf(&b, "%s %s %v %s\n", word, sum, backup, path)
		}
	}
	for _, p := range places {
		if was, ok := r.Files[p.name]; ok {
			line("file", was.SHA256, was.Backup, p.path)
		}
	}
	for _, dir := range slices.Backward(r.Dirs) {
		line("dir", "-", "-", dir)
	}
	return b.String()
}

func digest(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}

// backupName is the n-th name of what was replaced at path, from 1.
func backupName(path string, n int) string {
	if n == 1 {
		return path + ".before-join"
	}
	return fmt.Sprintf("%s.before-join-%d", path, n)
}

// What join does to a file.
type action int

const (
	leaveIt        action = iota // it is as it should be
	writeIt                      // nothing is lost: there is nothing, or what an earlier join put there
	keepAndWriteIt               // somebody else's content goes to a backup first
)

// decideJoin decides for one file: now is its content, nil when there is none, was what an earlier join noted.
func decideJoin(p place, now, want []byte, was placed) action {
	switch {
	case now != nil && bytes.Equal(now, want):
		return leaveIt
	case now == nil, digest(now) == was.SHA256, !p.kept:
		return writeIt
	}
	return keepAndWriteIt
}

// What leave does to a file.
type undo int

const (
	undoNothing undo = iota // there is nothing to do
	undoRemove              // it goes
	undoRestore             // the backup takes its place
	undoChanged             // it was changed since the join: it stays, and that is said
)

// decideLeave decides for one file that join noted: now is its content, nil when there is none.
func decideLeave(now []byte, was placed) undo {
	switch {
	case now != nil && digest(now) != was.SHA256:
		return undoChanged
	case was.Backup > 0:
		return undoRestore
	case now != nil:
		return undoRemove
	}
	return undoNothing
}

// otherMember says why settings would make a member something else than it is; empty: they do not.
func otherMember(is, would *bootstrap.Config) string {
	for _, f := range []struct{ what, is, would string }{
		{"identity", is.SPIFFEID(), would.SPIFFEID()},
		{"cluster", is.ClusterID, would.ClusterID},
		{"WorkloadGroup", is.AutoRegisterGroup, would.AutoRegisterGroup},
	} {
		if f.is != f.would {
			return fmt.Sprintf("this machine is a member of a mesh with %s %q, and these files have %q: run wingman leave first, then join", f.what, f.is, f.would)
		}
	}
	return ""
}
