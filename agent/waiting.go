package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"wingman/agent/memory"
	"wingman/agent/status"
	"wingman/bootstrap"
	"wingman/internal/filewatch"
	"wingman/systemd"
)

// This file is about a machine that never joined and has not got its files yet: one made from an image, say. Its unit is enabled, and something
// (cloud-init, Ansible, a person) will write istioctl's files, in any order and not in one step. systemd starts the daemon at the first of them
// (wingman.path); the daemon waits here for the others, and opens nothing but its admin socket meanwhile.

// Timings of the wait.
const (
	// filesSettled is how long files of a first join must not have changed: what is half written may be right as far as it goes.
	filesSettled = 300 * time.Millisecond
	// filesAnyway is how often they are read without a word of the kernel's: a setting may name files elsewhere.
	filesAnyway = 5 * time.Second
)

// errWaiting is what the admin socket answers to everything but a question for the status.
var errWaiting = errors.New("this machine waits for the files that make it a member of a mesh: see wingman status")

// A prospect is what the files of a machine that never joined are good for.
type prospect struct {
	good     bool
	why      string // not good: one sentence that names what is missing, or what cannot be used
	problems bootstrap.Problems
	settling bool // nothing is wrong with them but that they have just changed
}

// prospectOf judges files as they were read; newest is when the last one changed. It is pure.
func prospectOf(problems bootstrap.Problems, newest, now time.Time) prospect {
	var missing []string
	var broken error
	for _, p := range problems {
		switch {
		case p.Severity != bootstrap.Error:
		case p.Found == "no file" || p.Found == "an empty file" || p.Found == "no variables":
			missing = append(missing, p.File)
		case broken == nil:
			broken = errors.New(p.String())
		}
	}
	p := prospect{problems: problems}
	switch age := now.Sub(newest); {
	case len(missing) > 0:
		p.why = "waiting for " + enumerate(missing) + ", which istioctl x workload entry configure makes"
	case broken != nil:
		p.why = "waiting for files that can be used: " + broken.Error()
	case age >= 0 && age < filesSettled:
		p.why, p.settling = "waiting for the files to be complete: they are being written", true
	default:
		p.good = true
	}
	return p
}

// enumerate is "a", "a and b", "a, b and c".
func enumerate(list []string) string {
	if len(list) < 2 {
		return strings.Join(list, "")
	}
	return strings.Join(list[:len(list)-1], ", ") + " and " + list[len(list)-1]
}

// settingsFiles are the files that decide what a first join is made with. cfg may be nil.
func settingsFiles(root string, cfg *bootstrap.Config) []string {
	p := bootstrap.DefaultPaths(root)
	if cfg != nil {
		p = cfg.Paths
	}
	return []string{p.ClusterEnv, p.SidecarEnv, p.MeshConfig, p.Hosts, p.WingmanYAML, p.RootCert}
}

// newest is when the last of the files changed.
func newest(files []string) (at time.Time) {
	for _, file := range files {
		if info, err := os.Stat(file); err == nil && info.ModTime().After(at) {
			at = info.ModTime()
		}
	}
	return at
}

// fingerprint is another one when one of the files is.
func fingerprint(files []string) string {
	var b strings.Builder
	for _, file := range files {
		if info, err := os.Stat(file); err == nil {
			fmt.Fprintf(&b, "%d %d %s", info.ModTime().UnixNano(), info.Size(), info.Mode())
		}
		b.WriteByte(';')
	}
	return b.String()
}

// waiter is the daemon before it has files to begin with.
type waiter struct {
	o      Options
	log    *slog.Logger
	notify *systemd.Notifier
	now    prospect
	loaded time.Time
	ask    chan func(prospect, time.Time) // by the admin socket, for what the loop has
}

// awaitFiles returns true once there is something to start with: at once on a machine that joined before, and where nobody starts the daemon again
// (then Run says what is missing, and ends). It returns false when ctx ended.
func awaitFiles(ctx context.Context, o Options) (bool, error) {
	if o.Getenv("NOTIFY_SOCKET") == "" {
		return true, nil
	}
	first, wait := look(o.Root)
	if !wait {
		return true, nil
	}
	notify, err := systemd.NewNotifier(o.Getenv)
	if err != nil {
		return false, err
	}
	logs, err := newLogs(bootstrap.Log{Level: "info"}, o.Stderr, o.Getenv)
	if err != nil {
		return false, err
	}
	lock, err := takeLock(bootstrap.DefaultPaths(o.Root).RunDir)
	if err != nil {
		return false, err
	}
	defer lock.Close()
	w := &waiter{o: o, log: logs.part("agent"), notify: notify, now: first, loaded: time.Now(), ask: make(chan func(prospect, time.Time))}
	return w.run(ctx)
}

// look reads the files. wait is false where a start has something to go by, and on a machine that joined before.
func look(root string) (p prospect, wait bool) {
	joined, err := readJoined(bootstrap.DefaultPaths(root).StateDir)
	if joined != nil || err != nil {
		return prospect{}, false
	}
	last := newest(settingsFiles(root, nil))
	_, _, problems, err := loadConfig(root)
	if err == nil {
		problems = nil
	}
	p = prospectOf(problems, last, time.Now())
	return p, !p.good
}

// run waits, and answers the admin socket meanwhile.
func (w *waiter) run(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	admin := status.NewAdmin(filepath.Join(bootstrap.DefaultPaths(w.o.Root).RunDir, adminSocket), w.operations(ctx), w.log)
	if err := admin.Listen(); err != nil {
		return false, err
	}
	served := make(chan error, 1)
	go func() { served <- admin.Run(ctx) }()
	defer func() { cancel(); <-served }()

	changed := make(chan struct{}, 1)
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel()
	watching.Go(func() { watchFiles(ctx, settingsFiles(w.o.Root, nil), w.log, changed) })

	w.tell(w.notify.Ready()) // nothing of a boot waits for the mesh
	w.say("")
	anyway := time.NewTicker(filesAnyway)
	defer anyway.Stop()
	if err := memory.GiveBack(); err != nil {
		w.log.Debug("memory is not given back", "cause", err)
	}
	var again <-chan time.Time // files that were being written may be complete, and need not change any more
	for {
		asked := false
		select {
		case <-ctx.Done():
			w.tell(w.notify.Stopping())
			return false, nil
		case answer := <-w.ask:
			answer(w.now, w.loaded)
			continue
		case <-w.o.Reload:
			w.tell(w.notify.Reloading())
			asked = true
		case <-changed:
		case <-again:
		case <-anyway.C:
			if w.notify.WatchdogInterval() > 0 {
				w.tell(w.notify.Watchdog())
			}
		}
		before := w.now.why
		p, wait := look(w.o.Root)
		w.now, w.loaded = p, time.Now()
		if asked {
			w.tell(w.notify.Ready())
		}
		if !wait {
			w.log.Info("the files are there")
			return true, nil
		}
		w.say(before)
		if again = nil; p.settling {
			again = time.After(filesSettled)
		}
	}
}

// watchFiles tells of files that have changed and then rested, until ctx ends; once at the beginning in any case.
func watchFiles(ctx context.Context, files []string, log *slog.Logger, changed chan<- struct{}) {
	w := filewatch.New(log, filesAnyway)
	defer w.Stop()
	w.Arm(files)
	rested := time.After(filesSettled) // what changed before is told too
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.Changed():
			w.Arm(files)
			rested = time.After(filesSettled)
		case <-rested:
			rested = nil
			select {
			case changed <- struct{}{}:
			default:
			}
		}
	}
}

// say logs what is waited for, when that is news.
func (w *waiter) say(before string) {
	if w.now.why == before {
		return
	}
	w.tell(w.notify.Status(w.now.why))
	w.log.Info("not a member of a mesh yet", "why", w.now.why)
}

func (w *waiter) tell(err error) {
	if err != nil {
		w.log.Debug("systemd was not told", "cause", err)
	}
}

// operations answer the status, and refuse everything else.
func (w *waiter) operations(ctx context.Context) status.Operations {
	started := time.Now()
	refuse := func(context.Context) error { return errWaiting }
	return status.Operations{
		Status: func() status.Report {
			answer := make(chan status.Report, 1)
			select {
			case w.ask <- func(p prospect, loaded time.Time) {
				r := waitingReport(p, w.o.Version)
				r.PID, r.StartedAt, r.Config.Loaded = os.Getpid(), started, loaded
				answer <- r
			}:
				return <-answer
			case <-ctx.Done():
				return waitingReport(prospect{why: "stopping"}, w.o.Version)
			}
		},
		Table: func(string) ([]status.DNSName, error) { return nil, errWaiting },
		Query: func(context.Context, string, string, bool) (status.DNSAnswer, error) {
			return status.DNSAnswer{}, errWaiting
		},
		Renew:   refuse,
		Drain:   func(context.Context, string) error { return errWaiting },
		Undrain: refuse,
		Health:  func() any { return []any{} },
	}
}

// waitingReport is the status of a machine that waits.
func waitingReport(p prospect, version string) status.Report {
	r := status.Report{Version: version, Time: time.Now(), Phase: phaseWaiting, NotReady: []string{p.why}, Config: status.ConfigReport{Source: sourceNone}}
	for _, problem := range p.problems {
		r.Config.Problems = append(r.Config.Problems, problem.Severity.String()+": "+problem.String())
	}
	r.DNS.Listen, r.DNS.Upstreams = []string{}, []string{}
	return r
}

// Waiting is the status of a machine where no daemon runs because it never joined and lacks the files to: systemd starts it once they come. false: it is
// down for another reason.
func Waiting(root, version string) (status.Report, bool) {
	p, wait := look(root)
	if !wait {
		return status.Report{}, false
	}
	return waitingReport(p, version), true
}

// followFiles has settings read again that change before the first join: whoever writes them may not be done. After the join they are an operator's, who says when.
func (a *Agent) followFiles(ctx context.Context) error {
	watching, enough := context.WithCancel(ctx)
	defer enough()
	files := settingsFiles(a.opts.Root, a.config())
	changed := make(chan struct{}, 1)
	var done sync.WaitGroup
	done.Go(func() { watchFiles(watching, files, a.logs.part("agent"), changed) })
	defer done.Wait()
	defer enough()
	seen := fingerprint(files)
	if fingerprint(settingsFiles(a.opts.Root, nil)) != a.filesRead {
		seen = "" // what came while this agent started has not been read
	}
	look := time.NewTicker(filesAnyway)
	defer look.Stop()
	for !a.isJoined() {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-look.C:
		}
		if print := fingerprint(files); print != seen && !a.isJoined() {
			seen = print
			select {
			case a.filesChanged <- struct{}{}:
			default:
			}
		}
	}
	enough()
	<-ctx.Done()
	return nil
}
