package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Operations are what the admin socket can be asked; every field must be set.
type Operations struct {
	Status func() Report
	// Table returns the names that match a glob; "" matches all.
	Table func(match string) ([]DNSName, error)
	Query func(ctx context.Context, name, qtype string, explain bool) (DNSAnswer, error)
	// Renew asks for a new certificate now and returns when it is in use.
	Renew func(ctx context.Context) error
	// Drain takes the machine out of load balancing and returns when peers have heard of it; Undrain is the way back.
	Drain   func(ctx context.Context, reason string) error
	Undrain func(ctx context.Context) error
	// Health returns the last verdicts, oldest first.
	Health func() any
}

// Admin serves the admin socket. Make it with NewAdmin.
type Admin struct {
	path     string
	log      *slog.Logger
	server   *http.Server
	listener net.Listener
	ready    chan struct{}
}

// NewAdmin makes the server of the socket at path. It opens nothing.
func NewAdmin(path string, ops Operations, log *slog.Logger) *Admin {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { reply(w, ops.Status()) })
	mux.HandleFunc("GET /health/history", func(w http.ResponseWriter, _ *http.Request) { reply(w, ops.Health()) })
	mux.HandleFunc("GET /dns/table", func(w http.ResponseWriter, r *http.Request) {
		names, err := ops.Table(r.FormValue("match"))
		if err != nil {
			refuse(w, http.StatusBadRequest, err)
			return
		}
		reply(w, names)
	})
	mux.HandleFunc("GET /dns/query", func(w http.ResponseWriter, r *http.Request) {
		a, err := ops.Query(r.Context(), r.FormValue("name"), r.FormValue("type"), r.FormValue("explain") != "")
		if err != nil {
			refuse(w, http.StatusBadRequest, err)
			return
		}
		reply(w, a)
	})
	mux.HandleFunc("POST /cert/renew", func(w http.ResponseWriter, r *http.Request) {
		if err := ops.Renew(r.Context()); err != nil {
			refuse(w, http.StatusBadGateway, err)
			return
		}
		reply(w, ops.Status())
	})
	mux.HandleFunc("POST /drain", func(w http.ResponseWriter, r *http.Request) {
		// drain.propagation may be longer than any other answer takes.
		_ = http.NewResponseController(w).SetWriteDeadline(time.Time{})
		if err := ops.Drain(r.Context(), r.FormValue("reason")); err != nil {
			refuse(w, http.StatusBadGateway, err)
			return
		}
		reply(w, ops.Status())
	})
	mux.HandleFunc("POST /undrain", func(w http.ResponseWriter, r *http.Request) {
		if err := ops.Undrain(r.Context()); err != nil {
			refuse(w, http.StatusBadGateway, err)
			return
		}
		reply(w, ops.Status())
	})
	a := &Admin{path: path, log: log, ready: make(chan struct{})}
	a.server = newServer(mux)
	return a
}

// Ready is closed once the socket accepts connections.
func (a *Admin) Ready() <-chan struct{} { return a.ready }

// Listen opens the socket. One left over by a daemon that died is replaced; the caller holds the lock that says no other lives.
func (a *Admin) Listen() error {
	if err := os.MkdirAll(filepath.Dir(a.path), 0o750); err != nil {
		return fmt.Errorf("admin socket: %w", err)
	}
	if err := os.Remove(a.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("admin socket left over: %w", err)
	}
	l, err := net.Listen("unix", a.path)
	if err != nil {
		return fmt.Errorf("admin socket: %w", err)
	}
	if err := os.Chmod(a.path, 0o660); err != nil {
		l.Close()
		return fmt.Errorf("admin socket: %w", err)
	}
	a.listener = peerChecked{l.(*net.UnixListener), a.log}
	close(a.ready)
	return nil
}

// Run serves until ctx ends, then removes the socket. Listen comes first.
func (a *Admin) Run(ctx context.Context) error { return serve(ctx, a.server, a.listener) }

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.Encode(v) // a client that went away is its own affair
}

func refuse(w http.ResponseWriter, code int, err error) {
	http.Error(w, err.Error(), code)
}

// peerChecked lets in whom the kernel says to be root, the daemon's own user, or of its group. The mode of the socket says the same;
// this holds even where someone widened the mode.
type peerChecked struct {
	*net.UnixListener
	log *slog.Logger
}

func (l peerChecked) Accept() (net.Conn, error) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		cred, err := peer(c)
		if err == nil && allowed(cred, uint32(os.Geteuid()), uint32(os.Getegid())) {
			return c, nil
		}
		c.Close()
		if err != nil {
			l.log.Warn("admin client refused", "cause", err)
		} else {
			l.log.Warn("admin client refused", "uid", cred.Uid, "gid", cred.Gid, "pid", cred.Pid)
		}
	}
}

func allowed(c *unix.Ucred, uid, gid uint32) bool {
	return c.Uid == 0 || c.Uid == uid || c.Gid == gid
}

func peer(c *net.UnixConn) (cred *unix.Ucred, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	if ctlErr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); ctlErr != nil {
		return nil, ctlErr
	}
	return cred, err
}
