package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"sync"
	"time"
)

// A task is one long-running part of the daemon.
type task struct {
	name string // stable, lower case; used in logs, metrics and status
	// run blocks until ctx ends and heals what can be healed. An error, or a return before that, is a failure.
	run func(ctx context.Context) error
	// essential tasks end the daemon when they fail: without them it cannot do its work, and a fresh start by systemd is the better
	// cure. The others are run again, with back-off.
	essential bool
}

// Waits before a failed task is run again.
const (
	taskFirstWait = 200 * time.Millisecond
	taskMostWait  = 30 * time.Second
	taskSettled   = time.Minute // a task that ran that long starts from the first wait again
)

// errReturned is the failure of a task that returned without being asked to.
var errReturned = errors.New("stopped by itself")

// group runs tasks and remembers what is wrong with them. Make it with newGroup.
type group struct {
	log     *slog.Logger
	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup
	fatal   chan error // buffered 1: the first failure of an essential task

	mu     sync.Mutex // guards everything below
	broken map[string]string
}

func newGroup(ctx context.Context, log *slog.Logger) *group {
	ctx, cancel := context.WithCancel(ctx)
	return &group{log: log, ctx: ctx, cancel: cancel, fatal: make(chan error, 1), broken: map[string]string{}}
}

// start runs t until stop.
func (g *group) start(t task) {
	g.running.Go(func() {
		wait := taskFirstWait
		for g.ctx.Err() == nil {
			began := time.Now()
			err := runGuarded(g.ctx, t.run)
			if g.ctx.Err() != nil {
				return
			}
			if err == nil {
				err = errReturned
			}
			if t.essential {
				select {
				case g.fatal <- fmt.Errorf("%s: %w", t.name, err):
				default:
				}
				return
			}
			if time.Since(began) > taskSettled {
				wait = taskFirstWait
			}
			pause := wait/2 + rand.N(wait/2)
			g.setBroken(t.name, err.Error())
			g.log.Error("task failed; it will be run again", "task", t.name, "cause", err, "next", pause.Round(time.Millisecond))
			select {
			case <-g.ctx.Done():
				return
			case <-time.After(pause):
			}
			wait = min(2*wait, taskMostWait)
			g.setBroken(t.name, "")
		}
	})
}

// stop ends all tasks and waits for them, but no longer than limit: a task that hangs must not hang a shutdown.
func (g *group) stop(limit time.Duration) error {
	g.cancel()
	done := make(chan struct{})
	go func() { g.running.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-time.After(limit):
		return fmt.Errorf("tasks still running %s after they were told to stop", limit)
	}
}

func (g *group) setBroken(name, cause string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if cause == "" {
		delete(g.broken, name)
	} else {
		g.broken[name] = cause
	}
}

// troubles lists tasks that wait to be run again, with their causes.
func (g *group) troubles() map[string]string {
	g.mu.Lock()
	defer g.mu.Unlock()
	m := make(map[string]string, len(g.broken))
	for k, v := range g.broken {
		m[k] = v
	}
	return m
}

// runGuarded turns a panic of one task into its failure: a fault in a probe must not take DNS away from the machine.
func runGuarded(ctx context.Context, run func(context.Context) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return run(ctx)
}
