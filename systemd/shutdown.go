package systemd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/godbus/dbus/v5"
)

// Names on the bus: org.freedesktop.login1(5).
const (
	loginName    = "org.freedesktop.login1"
	loginPath    = dbus.ObjectPath("/org/freedesktop/login1")
	loginManager = loginName + ".Manager"
)

const (
	// delayUsually is how long systemd-logind waits where it does not say: InhibitDelayMaxSec='s default.
	delayUsually = 5 * time.Second
	// delayMargin is left of the time that systemd-logind grants: what takes longer it does not wait for.
	delayMargin = 500 * time.Millisecond
)

// A Shutdown is what DelayShutdowns tells of. Both are called from its own goroutine, one after the other.
type Shutdown struct {
	// Begins is called before anything is stopped, which waits until it returns, for at most as long as ctx lives: InhibitDelayMaxSec= of logind.conf
	// (5 s by default), less a margin.
	Begins func(ctx context.Context)
	// CalledOff is called when it does not come to a shutdown that was begun.
	CalledOff func()
}

// DelayShutdowns has systemd-logind wait with each orderly shutdown and reboot until s.Begins has returned (https://systemd.io/INHIBITOR_LOCKS).
//
// It blocks until ctx ends (nil). An error means that shutdowns are not delayed, or no more: there is no bus, systemd-logind does not allow it (which it
// asks polkit about), the bus went. A machine without systemd-logind is no error: it may come. What is forced (reboot --force) is never delayed.
func DelayShutdowns(ctx context.Context, who, why string, s Shutdown) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // and the connection closes
	conn, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if err != nil {
		return fmt.Errorf("connect to the system bus: %w", err)
	}
	signals := make(chan *dbus.Signal, 16)
	conn.Signal(signals)
	for _, match := range [][]dbus.MatchOption{
		{dbus.WithMatchSender(loginName), dbus.WithMatchInterface(loginManager), dbus.WithMatchMember("PrepareForShutdown")},
		{dbus.WithMatchSender("org.freedesktop.DBus"), dbus.WithMatchMember("NameOwnerChanged"), dbus.WithMatchArg(0, loginName)},
	} {
		if err := conn.AddMatchSignalContext(ctx, match...); err != nil {
			return fmt.Errorf("watch for shutdowns: %w", err)
		}
	}
	manager := conn.Object(loginName, loginPath)
	return delayShutdowns(ctx, login{
		signals: signals,
		// No auto-start: who stopped systemd-logind wants it stopped.
		inhibit: func(ctx context.Context) (io.Closer, error) {
			var fd dbus.UnixFD
			if err := manager.CallWithContext(ctx, loginManager+".Inhibit", dbus.FlagNoAutoStart, "shutdown", who, why, "delay").Store(&fd); err != nil {
				return nil, err
			}
			return os.NewFile(uintptr(fd), "inhibitor"), nil
		},
		limit: func(ctx context.Context) (v dbus.Variant, err error) {
			err = manager.CallWithContext(ctx, "org.freedesktop.DBus.Properties.Get", dbus.FlagNoAutoStart, loginManager, "InhibitDelayMaxUSec").Store(&v)
			return v, err
		},
	}, s)
}

// login is what systemd-logind does for DelayShutdowns.
type login struct {
	signals <-chan *dbus.Signal // PrepareForShutdown, and NameOwnerChanged of its name; closed with the connection
	inhibit func(ctx context.Context) (io.Closer, error)
	limit   func(ctx context.Context) (dbus.Variant, error) // InhibitDelayMaxUSec
}

func delayShutdowns(ctx context.Context, l login, s Shutdown) error {
	var lock io.Closer // nil: none is held
	release := func() {
		if lock != nil {
			lock.Close()
		}
		lock = nil
	}
	defer release()
	take := func() error {
		taken, err := l.inhibit(ctx)
		switch {
		case absent(err):
			return nil
		case err != nil:
			return fmt.Errorf("ask systemd-logind to delay shutdowns: %w", err)
		}
		release()
		lock = taken
		return nil
	}
	if err := take(); err != nil {
		return orEnd(ctx, err)
	}
	for {
		var signal *dbus.Signal
		select {
		case <-ctx.Done():
			return nil
		case signal = <-l.signals:
		}
		if signal == nil { // closed
			return orEnd(ctx, errors.New("the bus closed the connection"))
		}
		begins, known := preparesFor(signal)
		switch {
		case known && begins:
			most, cancel := context.WithTimeout(ctx, delay(l.limit(ctx)))
			s.Begins(most)
			cancel()
			release()
			continue
		case known:
			s.CalledOff()
		case signal.Name != "org.freedesktop.DBus.NameOwnerChanged":
			continue
		}
		if err := take(); err != nil {
			return orEnd(ctx, err)
		}
	}
}

// orEnd is err, unless it comes of ctx's end.
func orEnd(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// preparesFor reads PrepareForShutdown: whether one begins, or was called off.
func preparesFor(s *dbus.Signal) (begins, known bool) {
	if s.Name != loginManager+".PrepareForShutdown" || len(s.Body) != 1 {
		return false, false
	}
	begins, known = s.Body[0].(bool)
	return begins, known
}

// absent reports whether nobody has systemd-logind's name.
func absent(err error) bool {
	var answer dbus.Error
	return errors.As(err, &answer) && (answer.Name == "org.freedesktop.DBus.Error.NameHasNoOwner" || answer.Name == "org.freedesktop.DBus.Error.ServiceUnknown")
}

// delay is how long a shutdown may be delayed where systemd-logind says limit.
func delay(limit dbus.Variant, err error) time.Duration {
	d := delayUsually
	if us, ok := limit.Value().(uint64); err == nil && ok {
		d = stopLimit(us)
		if d == 0 && us > 0 { // infinity
			d = delayUsually
		}
	}
	return max(0, d-delayMargin)
}
