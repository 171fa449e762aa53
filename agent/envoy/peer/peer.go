// Package peer opens unix sockets that only root, the agent's own user and Envoy's may use.
//
// Who asks is what the kernel says (SO_PEERCRED, unix(7)); the mode of the socket says the same for those who cannot pass
// the check anyway. Used for what Envoy asks the agent: package sds, and the stream of configuration.
//
// Files: the socket at the path given, removed by Close. Goroutines: the caller's. Ports: none.
package peer

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// Config says where a socket is and who may use it.
type Config struct {
	Path string
	// Owner is a uid that may connect beside root and the user of this process; zero: nobody else. Where this process is root, it
	// owns the socket.
	Owner uint32
	Log   *slog.Logger // nil discards
}

// maxPath is what sockaddr_un holds, with the zero byte at its end.
const maxPath = 107

// Listen opens the socket. One left over by a process that died is replaced in one step, so that a client finds the old one or
// the new one; the caller knows that no other process serves it.
func Listen(c Config) (net.Listener, error) {
	if len(c.Path) == 0 || len(c.Path) > maxPath {
		return nil, fmt.Errorf("socket %q: expected a path of 1 to %d bytes", c.Path, maxPath)
	}
	dir := filepath.Dir(c.Path)
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("folder of the socket: %w", err)
	}
	// A short name of its own, then a rename: the path is never without a socket that somebody listens on.
	tmp := filepath.Join(dir, "."+filepath.Base(c.Path))
	if len(tmp) > maxPath {
		tmp = c.Path
	}
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("socket left over: %w", err)
	}
	inner, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	inner.SetUnlinkOnClose(false)
	l := &listener{UnixListener: inner, path: c.Path, allowed: []uint32{0, uint32(os.Geteuid()), c.Owner}, log: c.Log, refused: map[uint32]bool{}}
	if l.log == nil {
		l.log = slog.New(slog.DiscardHandler)
	}
	if err := l.settle(tmp, c.Owner); err != nil {
		return nil, errors.Join(fmt.Errorf("socket: %w", err), inner.Close(), os.Remove(tmp))
	}
	return l, nil
}

// listener lets in whom the kernel says to be allowed.
type listener struct {
	*net.UnixListener
	path    string
	made    os.FileInfo // of the socket as it lies at path
	allowed []uint32
	log     *slog.Logger

	mu      sync.Mutex // guards everything below
	refused map[uint32]bool
}

// settle gives the socket its mode and owner before anyone can find it, then its name.
func (l *listener) settle(tmp string, owner uint32) error {
	if err := os.Chmod(tmp, 0o600); err != nil {
		return err
	}
	if os.Geteuid() == 0 && owner != 0 {
		if err := os.Chown(tmp, int(owner), -1); err != nil {
			return err
		}
	}
	info, err := os.Lstat(tmp)
	if err != nil {
		return err
	}
	l.made = info
	if tmp == l.path {
		return nil
	}
	return os.Rename(tmp, l.path)
}

// Accept returns the next connection of somebody who may have one. Others are hung up on, and named once for each user.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		cred, err := credentials(c)
		if err == nil && slices.Contains(l.allowed, cred.Uid) {
			return c, nil
		}
		c.Close()
		if err != nil {
			l.log.Warn("connection without credentials refused", "socket", l.path, "cause", err)
			continue
		}
		l.mu.Lock()
		known := l.refused[cred.Uid]
		l.refused[cred.Uid] = true
		l.mu.Unlock()
		if !known {
			l.log.Warn("connection of a stranger refused", "socket", l.path, "uid", cred.Uid, "pid", cred.Pid, "allowed", l.allowed)
		}
	}
}

// Close stops listening and removes the socket, unless another one lies there by now.
func (l *listener) Close() error {
	err := l.UnixListener.Close()
	if info, statErr := os.Lstat(l.path); statErr == nil && os.SameFile(info, l.made) {
		err = errors.Join(err, os.Remove(l.path))
	}
	return err
}

func credentials(c *net.UnixConn) (*unix.Ucred, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return nil, err
	}
	return cred, credErr
}
