package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
)

// Clean removes what Check finds and the agent or Istio's agent put there, and returns what it removed and what is left to do by hand. It is for an image:
// on a machine whose agent runs, stop that first. Settings, units and whether they are enabled stay.
func Clean(root string) (removed []string, left Report, err error) {
	r, err := Check(root)
	if err != nil {
		return nil, r, err
	}
	dir, err := os.OpenRoot(r.Root)
	if err != nil {
		return nil, r, err
	}
	defer dir.Close()
	var problems []error
	for _, f := range r.Findings {
		if !f.remove {
			continue
		}
		if err := dir.Remove(local(f.Path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			problems = append(problems, err)
			continue
		}
		removed = append(removed, f.Path)
		prune(dir, path.Dir(f.Path))
	}
	if err := errors.Join(problems...); err != nil {
		return removed, r, fmt.Errorf("clean: %w", err)
	}
	left, err = Check(root)
	return removed, left, err
}

// ownFolders are the agent's: what is empty there goes too.
var ownFolders = []string{"/var/lib/wingman", "/var/lib/wingman-adopt", "/run/wingman", "/run/wingman-proxy", "/run/wingman-guard", "/run/wingman-machine", "/etc/certs/groups"}

// prune removes folders of ours that became empty.
func prune(dir *os.Root, at string) {
	for inOwn(at) {
		if dir.Remove(local(at)) != nil { // it is not empty
			return
		}
		at = path.Dir(at)
	}
}

func inOwn(at string) bool {
	for _, own := range ownFolders {
		if at == own || len(at) > len(own) && at[:len(own)+1] == own+"/" {
			return true
		}
	}
	return false
}
