package identity

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// A disk is what the store asks of the file system when it changes something. Tests stop it in the middle, fill it and cut its power.
type disk struct {
	mkdir     func(path string) error              // with parents; 0700 also when it is there
	create    func(path string, data []byte) error // a new file, 0600
	sync      func(path string) error              // a file's bytes, or a folder's names, to the medium
	rename    func(from, to string) error
	exchange  func(a, b string) error // both must exist
	symlink   func(target, path string) error
	removeAll func(path string) error
	share     func(path string, gid int, mode fs.FileMode) error // with a group: first it is given to that, then gets the mode
	volatile  func(path string) bool                             // a reboot loses what lies there
}

var systemDisk = disk{
	mkdir: func(path string) error {
		if err := os.MkdirAll(path, 0o700); err != nil {
			return err
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm()&0o077 == 0 {
			return err
		}
		return os.Chmod(path, 0o700) // a restored backup, a careless umask
	},
	create: func(path string, data []byte) error {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = f.Write(data)
		return errors.Join(err, f.Close())
	},
	sync: func(path string) error {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		return errors.Join(f.Sync(), f.Close())
	},
	rename: os.Rename,
	exchange: func(a, b string) error {
		if err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE); err != nil {
			return &os.LinkError{Op: "exchange", Old: a, New: b, Err: err}
		}
		return nil
	},
	symlink:   os.Symlink,
	removeAll: os.RemoveAll,
	share:     share,
	volatile:  volatile,
}

// whose adds to a permission error whose files they are, which is what is wrong then.
func whose(err error, path string) error {
	var stat unix.Stat_t
	if !errors.Is(err, fs.ErrPermission) || unix.Stat(path, &stat) != nil || int(stat.Uid) == os.Geteuid() {
		return err
	}
	command := "chown"
	if stat.Mode&unix.S_IFMT == unix.S_IFDIR {
		command = "chown -R"
	}
	return fmt.Errorf("%w: %s belongs to uid %d and this process is uid %d: %s %d %s",
		err, path, stat.Uid, os.Geteuid(), command, os.Geteuid(), path)
}
