package enrol

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// This file is for working as root in folders that are not root's: the agent's user owns some, and may put there whatever it likes, at any moment. A
// link is followed only where nobody but root can have made it, and what is done in a folder is done to that folder, whatever its path leads to by then.

// mostLinks bounds how many links one path may lead through, as the kernel does.
const mostLinks = 40

// follow resolves the links of a path that are root's, in folders of root's. Another's is an error among the folders, and stays if it is what the path
// names. What does not exist stays as it is written.
func follow(path string) (string, error) {
	done, rest := "/", strings.Split(filepath.Clean(path), "/")
	for links := 0; len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		if name == "" {
			continue
		}
		if name == ".." { // of a link's target: done has no links
			done = filepath.Dir(done)
			continue
		}
		next := filepath.Join(done, name)
		info, err := os.Lstat(next)
		if errors.Is(err, fs.ErrNotExist) {
			return filepath.Join(append([]string{next}, rest...)...), nil
		}
		if err != nil {
			return "", err
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			done = next
			continue
		}
		folder, err := os.Stat(done)
		if err != nil {
			return "", err
		}
		if !trusted(info) || !trusted(folder) {
			if len(rest) == 0 {
				return next, nil
			}
			return "", fmt.Errorf("%s is a link that root did not make, and is not followed: put a folder there", next)
		}
		to, err := os.Readlink(next)
		if err != nil {
			return "", err
		}
		if links++; links > mostLinks {
			return "", fmt.Errorf("%s: %w", path, syscall.ELOOP)
		}
		if filepath.IsAbs(to) {
			done = "/"
		}
		rest = append(strings.Split(to, "/"), rest...)
	}
	return done, nil
}

// trusted reports whether a file is root's, or of who runs this.
func trusted(info fs.FileInfo) bool {
	s, ok := info.Sys().(*syscall.Stat_t)
	return ok && (s.Uid == 0 || int(s.Uid) == os.Geteuid())
}

// openFolder opens a folder by the links that follow follows.
func openFolder(path string) (*os.Root, error) {
	path, err := follow(path)
	if err != nil {
		return nil, err
	}
	dir, err := os.OpenRoot("/")
	if err != nil {
		return nil, err
	}
	for _, name := range strings.Split(path, "/") {
		if name == "" {
			continue
		}
		info, err := dir.Lstat(name)
		if err == nil && !info.IsDir() {
			err = fmt.Errorf("%s is not a folder, or a link to one that root did not make", filepath.Join(dir.Name(), name))
		}
		var next *os.Root
		if err == nil {
			next, err = dir.OpenRoot(name) // a link that takes its place now leads nowhere out of dir
		}
		dir.Close()
		if err != nil {
			return nil, err
		}
		dir = next
	}
	return dir, nil
}

// in calls do with the folder of a path, and the path's name there.
func in(path string, do func(dir *os.Root, name string) error) error {
	dir, err := openFolder(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return do(dir, filepath.Base(path))
}

// read reads a file of a folder; info is that of the file, or of the link that stands there instead: its content is none of anybody's business.
func read(dir *os.Root, name string) (content []byte, info fs.FileInfo, err error) {
	info, err = dir.Lstat(name)
	if err != nil || info.Mode()&fs.ModeSymlink != 0 {
		return nil, info, err
	}
	f, err := dir.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, info, err
	}
	defer f.Close()
	switch info, err = f.Stat(); {
	case err != nil:
	case !info.Mode().IsRegular():
		err = fmt.Errorf("%s is not a file: move it away", name)
	case info.Size() > maxFile:
		err = fmt.Errorf("%s has more than %d bytes: move it away", name, maxFile)
	default:
		content, err = io.ReadAll(io.LimitReader(f, maxFile))
	}
	return content, info, err
}
