package machine

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Environment of the holder.
const (
	rootVar = "WINGMAN_MACHINE_ROOT" // an empty folder that becomes the machine's /
	nameVar = "WINGMAN_MACHINE_NAME"
	bindVar = "WINGMAN_MACHINE_BIND" // JSON: path in the machine → path outside
)

// ready is what the holder writes to its standard output once the machine stands.
const ready = "ready\n"

// hold is the process that holds a machine's namespaces: it gives them a root file system and a name, says so, and waits
// until its standard input ends, which is when the test wants the machine gone or is gone itself.
func hold() error {
	if err := furnish(os.Getenv(rootVar), os.Getenv(bindVar)); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(os.Getenv(nameVar))); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	if err := loopbackUp(); err != nil {
		return err
	}
	if _, err := os.Stdout.WriteString(ready); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// system are the host's folders that a machine shares, read-only; links stay links (/bin → usr/bin).
var system = []string{"usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"}

// etc are what programs need of the host's /etc. The rest of a machine's /etc is its own.
var etc = []string{
	"alternatives", "ethertypes", "gai.conf", "iproute2", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "nsswitch.conf",
	"protocols", "services", "ssl",
}

// folders of a fresh machine, with their modes.
var folders = []struct {
	path string
	mode os.FileMode
}{
	{"dev", 0o755}, {"dev/shm", 0o1777}, {"etc", 0o755}, {"home/istio-proxy", 0o755}, {"proc", 0o755}, {"root", 0o700},
	{"run", 0o755}, {"sys", 0o755}, {"tmp", 0o1777}, {"var/cache", 0o755}, {"var/lib", 0o755}, {"var/log", 0o755}, {"var/tmp", 0o1777},
}

// devices are the ones of a container.
var devices = []string{"null", "zero", "full", "random", "urandom", "tty"}

var links = map[string]string{
	"dev/fd": "/proc/self/fd", "dev/stdin": "/proc/self/fd/0", "dev/stdout": "/proc/self/fd/1", "dev/stderr": "/proc/self/fd/2",
	"var/run": "../run", // relative: seen from outside, /run is the host's
}

// furnish makes root the root file system of this process's mount namespace: a tmpfs with the host's programs and nothing
// else of the host.
func furnish(root, binds string) error {
	// A mount on a folder below /usr/local would need that folder on a read-only /usr: a tmpfs of its own stands there.
	for _, step := range []func() error{
		func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") },
		func() error { return unix.Mount("tmpfs", root, "tmpfs", 0, "mode=0755") },
		func() error { return makeFolders(root) },
		func() error { return shareSystem(root) },
		func() error { return shareEtc(root) },
		func() error { return unix.Mount("tmpfs", filepath.Join(root, "usr/local"), "tmpfs", 0, "mode=0755") },
		func() error { return unix.Mount("proc", filepath.Join(root, "proc"), "proc", 0, "") },
		func() error { return unix.Mount("sysfs", filepath.Join(root, "sys"), "sysfs", unix.MS_RDONLY, "") },
		func() error { return bindAll(root, binds) },
		func() error { return pivot(root) },
	} {
		if err := step(); err != nil {
			return fmt.Errorf("furnish %s: %w", root, err)
		}
	}
	return nil
}

func makeFolders(root string) error {
	for _, f := range folders {
		path := filepath.Join(root, f.path)
		if err := os.MkdirAll(path, 0o755); err != nil {
			return err
		}
		mode := f.mode.Perm()
		if f.mode&0o1000 != 0 {
			mode |= os.ModeSticky
		}
		if err := os.Chmod(path, mode); err != nil {
			return err
		}
	}
	for name, target := range links {
		if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
			return err
		}
	}
	for _, d := range devices {
		if err := bind(filepath.Join(root, "dev", d), "/dev/"+d); err != nil {
			return err
		}
	}
	return nil
}

func shareSystem(root string) error {
	for _, name := range system {
		if target, err := os.Readlink("/" + name); err == nil {
			if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
				return err
			}
			continue
		}
		if _, err := os.Stat("/" + name); errors.Is(err, os.ErrNotExist) {
			continue
		}
		path := filepath.Join(root, name)
		if err := bind(path, "/"+name); err != nil {
			return err
		}
		if err := unix.Mount("", path, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
			return fmt.Errorf("make %s read-only: %w", path, err)
		}
	}
	return nil
}

func shareEtc(root string) error {
	for _, name := range etc {
		if _, err := os.Stat("/etc/" + name); errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err := bind(filepath.Join(root, "etc", name), "/etc/"+name); err != nil {
			return err
		}
	}
	return nil
}

// bindAll mounts what the test brings in; binds is a JSON object, path in the machine to path outside.
func bindAll(root, binds string) error {
	var list map[string]string
	if err := json.Unmarshal([]byte(binds), &list); err != nil {
		return fmt.Errorf("read %s: %w", bindVar, err)
	}
	for path, source := range list {
		if err := bind(filepath.Join(root, path), source); err != nil {
			return err
		}
	}
	return nil
}

// bind mounts a file or folder at a path, which it creates first.
func bind(path, source string) error {
	info, err := os.Stat(source)
	if err != nil {
		return err
	}
	if info.IsDir() {
		err = os.MkdirAll(path, 0o755)
	} else if err = os.MkdirAll(filepath.Dir(path), 0o755); err == nil {
		err = os.WriteFile(path, nil, 0o644)
	}
	if err != nil {
		return err
	}
	if err := unix.Mount(source, path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s at %s: %w", source, path, err)
	}
	return nil
}

// pivot makes root the / of this mount namespace and lets go of the old one.
func pivot(root string) error {
	if err := unix.Chdir(root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil { // the old root, mounted over the new one: pivot_root(2)
		return fmt.Errorf("leave the old root: %w", err)
	}
	return unix.Chdir("/")
}
