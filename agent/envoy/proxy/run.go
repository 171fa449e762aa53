package proxy

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"wingman/agent/envoy"
	"wingman/agent/memory"
	"wingman/bootstrap"
	"wingman/systemd"
)

// Options are what cmd hands in.
type Options struct {
	Root           string // folder that stands for "/"
	Getenv         func(string) string
	Stdout, Stderr *os.File
	Reopen         <-chan os.Signal // SIGHUP: the log file was moved away; may be nil
}

// settingsRetry is how often settings that cannot be used are read again, beginRetry how often the agent's first file is looked for.
const (
	settingsRetry = 5 * time.Second
	beginRetry    = 250 * time.Millisecond
)

// When memory is given back: once what a change needs is over, and again where looking around has mapped some.
const (
	settled       = 2 * time.Second
	giveBackEvery = time.Minute
)

// Run is `wingman proxy`: it keeps this machine's Envoy running until ctx ends, and returns nil then.
//
// Whatever is missing is waited for, settings too: its unit starts it again at once whenever it ends, and a loop of starts would
// cost the machine more than a wait.
func Run(ctx context.Context, o Options) error {
	notify, err := systemd.NewNotifier(o.Getenv)
	if err != nil {
		return err
	}
	hostname, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("host name: %w", err)
	}
	handler, err := newLog(bootstrap.Log{Level: "info"}, o)
	if err != nil {
		return err
	}
	log := slog.New(handler)
	// The unit must not time out while istiod is away, or there is no Envoy: up means that it is being looked after.
	if err := notify.Ready(); err != nil {
		log.Debug("systemd was not told", "cause", err)
	}
	var helpers sync.WaitGroup
	defer helpers.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if o.Getenv("NOTIFY_SOCKET") != "" { // else nobody may run an agent beside
		waitAgent(ctx, bootstrap.DefaultPaths(o.Root), log, notify)
	}
	cfg := waitSettings(ctx, o.Root, log, notify)
	if cfg == nil {
		return nil // only ctx ends the wait
	}
	if handler, err = newLog(cfg.Log, o); err != nil {
		return err
	}
	log = slog.New(handler)
	helpers.Go(func() { reopen(ctx, handler, log, o.Reopen) })
	if cfg.Capture.Mode == "TPROXY" && !mayTakeForeign() {
		log.Error("Envoy cannot take the connections that TPROXY brings: put /usr/lib/wingman/tproxy.conf into /etc/systemd/system/wingman-proxy.service.d, or use rules.mode REDIRECT")
	}
	c := ConfigOf(cfg, hostname, log.With(systemd.ScopeKey, "proxy"))
	c.EnvoyLog = log.With(systemd.ScopeKey, "envoy")
	c.Stdout = o.Stdout
	c.BeatEvery, c.Beat = notify.WatchdogInterval(), func() { pat(notify) }
	changed := make(chan struct{}, 1)
	helpers.Go(func() { thrift(ctx, changed, log) })
	c.OnState = func(s State) {
		select {
		case changed <- struct{}{}:
		default:
		}
		if err := notify.Status(s.text()); err != nil {
			log.Debug("systemd was not told", "cause", err)
		}
	}
	s, err := New(c)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() {
		if err := notify.Stopping(); err != nil {
			log.Debug("systemd was not told", "cause", err)
		}
	})
	return s.Run(ctx)
}

// mayTakeForeign reports whether a program started by this process may listen for connections to addresses that are not the machine's (ip(7), IP_TRANSPARENT).
func mayTakeForeign() bool {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TRANSPARENT, 1) == nil
}

// waitAgent returns once a machine that never joined has an agent that is about to: its settings may be half there until then, and they are read once. A
// machine that joined before has settings to go by, whatever its agent does.
func waitAgent(ctx context.Context, p bootstrap.Paths, log *slog.Logger, notify *systemd.Notifier) {
	there := func(files ...string) bool {
		return slices.ContainsFunc(files, func(file string) bool {
			_, err := os.Stat(file)
			return err == nil
		})
	}
	for said := false; !there(filepath.Join(p.StateDir, lastGoodFile), filepath.Join(p.StateDir, joinedFile), envoy.BootstrapPath(&bootstrap.Config{Paths: p})); {
		pat(notify)
		if !said {
			said = true
			if err := notify.Status("waiting for the agent to have files to join with"); err != nil {
				log.Debug("systemd was not told", "cause", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(beginRetry):
		}
	}
}

// waitSettings returns settings once there are some that can be used, nil when ctx ends before.
func waitSettings(ctx context.Context, root string, log *slog.Logger, notify *systemd.Notifier) *bootstrap.Config {
	said := ""
	for {
		pat(notify)
		cfg, warning, err := loadSettings(root)
		if warning != nil {
			log.Warn("settings cannot be used; Envoy runs with the last good ones", "cause", warning)
		}
		if err == nil {
			return cfg
		}
		if err.Error() != said {
			said = err.Error()
			log.Error("settings cannot be used; they are read again until they can", "cause", err)
			if err := notify.Status("waiting for settings that can be used"); err != nil {
				log.Debug("systemd was not told", "cause", err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(settingsRetry):
		}
	}
}

// pat tells systemd's watchdog, where one is set, that this process does its work. Only who does it may call it: while that hangs, nobody watches Envoy.
func pat(notify *systemd.Notifier) {
	if notify.WatchdogInterval() > 0 {
		_ = notify.Watchdog() // without it systemd acts
	}
}

// thrift gives memory back whenever nothing has changed for a while: a machine without Envoy should not pay for the wait.
func thrift(ctx context.Context, changed <-chan struct{}, log *slog.Logger) {
	for pause := settled; ; {
		select {
		case <-ctx.Done():
			return
		case <-changed:
			pause = settled
		case <-time.After(pause):
			if err := memory.GiveBack(); err != nil {
				log.Debug("memory is not given back", "cause", err)
			}
			pause = giveBackEvery
		}
	}
}

// reopen follows logrotate.
func reopen(ctx context.Context, h *systemd.LogHandler, log *slog.Logger, asked <-chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-asked:
			if err := h.Reopen(); err != nil {
				log.Error("the log file stays the old one", "cause", err)
			}
		}
	}
}

// text is one line for systemctl status.
func (s State) text() string {
	text := "Envoy: " + string(s.Phase)
	if s.PID != 0 {
		text += fmt.Sprintf(", pid %d", s.PID)
	}
	if s.EnvoyState != "" {
		text += ", " + s.EnvoyState
	}
	if s.Cause != "" {
		text += ": " + s.Cause
	}
	return text
}

// newLog makes the handler of every logger here.
func newLog(c bootstrap.Log, o Options) (*systemd.LogHandler, error) {
	levels := map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError, "none": slog.LevelError + 100}
	scopes := map[string]slog.Level{}
	for scope, name := range c.Scopes {
		scopes[scope] = levels[name]
	}
	return systemd.NewLogHandler(systemd.LogConfig{
		Stream: o.Stderr, Getenv: o.Getenv, JSON: c.Format == "json", Level: levels[c.Level], Scopes: scopes, File: c.File,
	})
}
