package identity

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// RemoveOutput takes back what a Manager did to outputDir: its links go, and what stood there before it returns. Whatever else is there stays. It is for a
// machine that leaves the mesh, with no Manager running; once more changes nothing. changed names the files.
func RemoveOutput(outputDir string) (changed []string, err error) {
	if outputDir == "" {
		return nil, nil
	}
	var problems []error
	for _, name := range []string{keyFile, chainFile, rootFile} {
		path := filepath.Join(outputDir, name)
		did, err := removeLink(path)
		if err != nil {
			problems = append(problems, err)
		}
		if did {
			changed = append(changed, path)
		}
	}
	if err := errors.Join(problems...); err != nil {
		return changed, fmt.Errorf("take certificates out of %s: %w", outputDir, err)
	}
	return changed, nil
}

// removeLink does it for one file. A link to somewhere else is not ours; a plain file came after our link, and what we kept is older.
func removeLink(path string) (changed bool, err error) {
	tmp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".wingman")
	if to, err := os.Readlink(tmp); err == nil && isOurs(to, filepath.Base(path)) {
		if err := os.Remove(tmp); err != nil {
			return false, err
		}
	}
	if to, err := os.Readlink(path); err == nil && isOurs(to, filepath.Base(path)) {
		if err := os.Remove(path); err != nil {
			return false, err
		}
		changed = true
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return changed, err
	}
	err = os.Rename(KeptRoot(path), path)
	if errors.Is(err, fs.ErrNotExist) {
		return changed, nil
	}
	return true, err
}

// isOurs reports whether a link to target is one of a Manager, under whatever root.
func isOurs(target, name string) bool {
	return strings.HasSuffix(target, filepath.Join(storeName, currentLink, name))
}

// OutputLink reports whether what is at path is a link of a Manager: the file that stood there is at KeptRoot(path).
func OutputLink(path string) bool {
	to, err := os.Readlink(path)
	return err == nil && isOurs(to, filepath.Base(path))
}
