package agent

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// This file is about the agent's own files, below the state folder: how they are written, and what becomes of damaged ones.

// setAside renames a damaged file to FILE.bad, for inspection.
func setAside(path string) error {
	if err := os.Rename(path, path+".bad"); err != nil {
		return fmt.Errorf("move it aside: %w", err)
	}
	return nil
}

// writeFile replaces path in one step: a temporary file in the same folder, synced, renamed, and the folder synced.
func writeFile(path string, data []byte, mode fs.FileMode) (err error) {
	dir := filepath.Dir(path)
	tmp, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			tmp.Close()
			os.Remove(tmp.Name())
		}
	}()
	if _, err = tmp.Write(data); err != nil {
		return err
	}
	if err = tmp.Chmod(mode); err != nil {
		return err
	}
	if err = tmp.Sync(); err != nil {
		return err
	}
	if err = tmp.Close(); err != nil {
		return err
	}
	if err = os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
