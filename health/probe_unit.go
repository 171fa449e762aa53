package health

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"time"

	"github.com/godbus/dbus/v5"
)

const (
	systemdName = "org.freedesktop.systemd1"
	systemdPath = dbus.ObjectPath("/org/freedesktop/systemd1")

	unitInterface    = "org.freedesktop.systemd1.Unit"
	serviceInterface = "org.freedesktop.systemd1.Service"
	getProperty      = "org.freedesktop.DBus.Properties.Get"

	// busRetry is how long to wait before the bus is dialled again.
	busRetry = time.Second
)

// unitNames is what systemd.unit(5) allows, without templates that lack an instance.
var unitNames = regexp.MustCompile(`^[A-Za-z0-9:_.\\-]+(@[A-Za-z0-9:_.\\@-]+)?\.(service|socket|device|mount|automount|swap|target|path|timer|slice|scope)$`)

func validUnitName(name string) bool { return len(name) < 256 && unitNames.MatchString(name) }

// unitWatcher follows the state of a systemd unit over the system bus. systemd sends changes by itself; nothing is
// polled. When the bus goes away the last known state stays: that says nothing about the unit.
type unitWatcher struct {
	unit   string
	within time.Duration
	log    *slog.Logger
	dial   func(ctx context.Context) (*dbus.Conn, error)
}

func newUnitWatcher(unit string, within time.Duration, log *slog.Logger) *unitWatcher {
	return &unitWatcher{unit: unit, within: within, log: log, dial: func(ctx context.Context) (*dbus.Conn, error) {
		return dbus.ConnectSystemBus(dbus.WithContext(ctx))
	}}
}

func (w *unitWatcher) kind() string   { return "unit" }
func (w *unitWatcher) target() string { return "systemd unit " + w.unit }
func (w *unitWatcher) rule() rule     { return rule{success: 1, failure: 1} }

func (w *unitWatcher) watch(ctx context.Context, emit func(error)) {
	known, lost := false, false
	for ctx.Err() == nil {
		err := w.follow(ctx, func(err error) {
			if lost {
				w.log.Info("systemd unit in sight again", "unit", w.unit)
			}
			known, lost = true, false
			emit(err)
		})
		if ctx.Err() != nil {
			return
		}
		if !known {
			emit(fmt.Errorf("%s: cannot ask systemd: %w", w.target(), err))
		}
		if !lost {
			w.log.Warn("systemd unit out of sight", "unit", w.unit, "cause", err, "retry_seconds", busRetry.Seconds())
		}
		lost = true
		select {
		case <-ctx.Done():
		case <-time.After(busRetry):
		}
	}
}

// errNoAnswer ends a connection to a bus that does not answer in time.
var errNoAnswer = errors.New("no answer in time")

// follow emits the unit's state and each change of it until the bus or ctx ends.
func (w *unitWatcher) follow(ctx context.Context, emit func(error)) (err error) {
	ctx, cancel := context.WithCancelCause(ctx) // the connection closes with it
	defer cancel(nil)
	impatience := time.AfterFunc(w.within, func() { cancel(errNoAnswer) })
	defer impatience.Stop()
	defer func() {
		if errors.Is(context.Cause(ctx), errNoAnswer) {
			err = fmt.Errorf("%w: %s", errNoAnswer, w.within)
		}
	}()
	bus, err := w.dial(ctx)
	if err != nil {
		return err
	}
	defer bus.Close()
	manager := bus.Object(systemdName, systemdPath)
	var path dbus.ObjectPath
	if err := manager.CallWithContext(ctx, systemdName+".Manager.LoadUnit", 0, w.unit).Store(&path); err != nil {
		return fmt.Errorf("load unit: %w", err)
	}
	signals := make(chan *dbus.Signal, 16)
	bus.Signal(signals)
	for _, match := range [][]dbus.MatchOption{
		{dbus.WithMatchObjectPath(path), dbus.WithMatchInterface("org.freedesktop.DBus.Properties"), dbus.WithMatchMember("PropertiesChanged")},
		{dbus.WithMatchSender("org.freedesktop.DBus"), dbus.WithMatchMember("NameOwnerChanged"), dbus.WithMatchArg(0, systemdName)},
	} {
		if err := bus.AddMatchSignalContext(ctx, match...); err != nil {
			return fmt.Errorf("match signals: %w", err)
		}
	}
	if err := manager.CallWithContext(ctx, systemdName+".Manager.Subscribe", 0).Err; err != nil {
		return fmt.Errorf("subscribe: %w", err)
	}
	impatience.Stop()
	// A signal carries what changed, not the whole, and systemd may leave values out of it: each one only says that it is
	// time to ask.
	for last := (unitState{}); ; {
		now, err := w.read(ctx, bus.Object(systemdName, path))
		if err != nil {
			return err
		}
		if now != last {
			emit(now.verdict(w.target()))
			last = now
		}
		select {
		case <-ctx.Done():
			return nil
		case s, open := <-signals:
			if !open {
				return errors.New("the bus closed the connection")
			}
			if s.Name == "org.freedesktop.DBus.NameOwnerChanged" {
				return errors.New("systemd left the bus") // daemon-reexec; it forgets who subscribed
			}
		}
	}
}

// unitState is the part of a unit's properties that decides.
type unitState struct{ load, active, sub, result string }

func (w *unitWatcher) read(ctx context.Context, unit dbus.BusObject) (unitState, error) {
	ctx, cancel := context.WithTimeout(ctx, w.within)
	defer cancel()
	var s unitState
	for _, p := range []struct {
		name string
		into *string
	}{{"LoadState", &s.load}, {"ActiveState", &s.active}, {"SubState", &s.sub}} {
		if err := unit.CallWithContext(ctx, getProperty, 0, unitInterface, p.name).Store(p.into); err != nil {
			return unitState{}, fmt.Errorf("read %s: %w", p.name, err)
		}
	}
	if s.active == "failed" {
		// Only some types of unit have a result; without one the reason is shorter.
		_ = unit.CallWithContext(ctx, getProperty, 0, serviceInterface, "Result").Store(&s.result)
	}
	return s, nil
}

// verdict is nil for a unit that can do its work. Reloading is such a state; activating and deactivating are not.
func (s unitState) verdict(target string) error {
	switch {
	case s.active == "active" || s.active == "reloading" || s.active == "refreshing":
		return nil
	case s.load == "not-found":
		return fmt.Errorf("%s: systemd knows no such unit", target)
	case s.load != "" && s.load != "loaded":
		return fmt.Errorf("%s: not loaded (%s)", target, s.load)
	case s.result != "":
		return fmt.Errorf("%s: %s (%s)", target, s.active, s.result)
	}
	return fmt.Errorf("%s: %s (%s)", target, s.active, s.sub)
}
