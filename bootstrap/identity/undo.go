package identity

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
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
	copies, err := removeCopies(outputDir)
	changed, problems = append(changed, copies...), append(problems, err)
	if err := errors.Join(problems...); err != nil {
		return changed, fmt.Errorf("take certificates out of %s: %w", outputDir, err)
	}
	return changed, nil
}

// removeCopies takes the copies of groups away with their folders; a folder in which somebody else has put something stays with that. It may run as root
// in a folder that is the agent's: links in it lead nowhere else.
func removeCopies(outputDir string) (changed []string, err error) {
	root, err := os.OpenRoot(outputDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer root.Close()
	groups, err := fs.ReadDir(root.FS(), groupsDir)
	if err != nil {
		return nil, nil // there are none
	}
	var problems []error
	for _, group := range groups {
		folder := filepath.Join(groupsDir, group.Name())
		inside, err := fs.ReadDir(root.FS(), folder)
		if err != nil || !group.IsDir() {
			continue
		}
		for _, e := range inside {
			name := strings.TrimSuffix(e.Name(), ".new")
			_, notNumber := strconv.Atoi(name)
			if notNumber == nil || slices.Contains([]string{currentLink, keyFile, chainFile, rootFile, "new"}, name) {
				problems = append(problems, root.RemoveAll(filepath.Join(folder, e.Name())))
				changed = append(changed, filepath.Join(outputDir, folder, e.Name()))
			}
		}
		root.Remove(folder) // if nothing is left in it
	}
	root.Remove(groupsDir)
	return changed, errors.Join(problems...)
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

// Stored reports whether there is an identity below stateDir.
func Stored(stateDir string) bool {
	_, err := os.Lstat(filepath.Join(stateDir, storeName, currentLink))
	return err == nil
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
