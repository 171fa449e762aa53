package enrol

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"wingman/agent"
	"wingman/agent/status"
	"wingman/bootstrap"
	"wingman/internal/plainfile"
)

// Options are what join and leave need to know beside what they are called with.
type Options struct {
	Root string       // folder that stands for "/"
	Say  func(string) // told of each step, one sentence; must be set
	// Of Join: Offline leaves out what needs the network, the wait for the join too; Timeout bounds that wait.
	Offline bool
	Timeout time.Duration
}

// Waits of a join.
const (
	pollEvery = 200 * time.Millisecond
	// readyPatience is how long a machine that joined may take to be ready: Envoy starts meanwhile.
	readyPatience = 15 * time.Second
	// noPatience is how long istiod has to say no before the wait ends early: the first no may be to what a moment later is right.
	noPatience = 10 * time.Second
)

// ErrNoDaemon means that the files are in place and nobody runs a daemon, or starts one.
var ErrNoDaemon = errors.New("the files are in place, and no daemon runs")

// Join makes the machine a member by istioctl's files in a folder or archive, and waits until it is one. The report is the daemon's afterwards; with
// Offline, and with ErrNoDaemon, there is none.
//
// An error before anything was written says so.
func Join(ctx context.Context, from string, o Options) (status.Report, error) {
	m, b, err := check(ctx, from, o)
	if err != nil {
		return status.Report{}, fmt.Errorf("%w\nnothing was changed", err)
	}
	changed, backups, err := m.put(b)
	for _, path := range backups {
		o.Say("what was there is kept at " + path)
	}
	if err != nil {
		return status.Report{}, fmt.Errorf("put files in place: %w: mend that and join again", err)
	}
	if len(changed) == 0 {
		o.Say("files: all are in place already")
	} else {
		o.Say("files: put in place " + strings.Join(changed, ", "))
	}
	systemd, began := managerOf(ctx, m.cfg.Root), time.Now()
	did := ""
	switch {
	case systemd != nil && o.Offline:
		if _, err := systemd.systemctl(ctx, "enable", "--quiet", agentUnit); err != nil {
			return status.Report{}, err
		}
		did = "enabled; they start at the next boot, or with systemctl start wingman"
	case systemd != nil:
		if did, err = systemd.start(ctx); err != nil {
			return status.Report{}, fmt.Errorf("%w\n%s", err, cmp.Or(systemd.lastWords(ctx, began), "see journalctl -u wingman"))
		}
	case o.Offline:
		return status.Report{}, nil
	default:
		pid, err := agent.Client(o.Root).Process(ctx)
		if err != nil {
			return status.Report{}, fmt.Errorf("%w: start it with wingman run", ErrNoDaemon)
		}
		if err := syscall.Kill(pid, syscall.SIGHUP); err != nil {
			return status.Report{}, fmt.Errorf("have the daemon (pid %d) read its files: %w", pid, err)
		}
		did = "told to read its files"
	}
	o.Say("wingman: " + did)
	if o.Offline {
		return status.Report{}, nil
	}
	return wait(ctx, o, systemd, began)
}

// check finds out everything that can be known before anything is written.
func check(ctx context.Context, from string, o Options) (*machine, bundle, error) {
	if err := mustBeRoot(o.Root, "join"); err != nil {
		return nil, nil, err
	}
	if err := agent.Beside(ctx, o.Root); err != nil {
		return nil, nil, err
	}
	b, other, err := readBundle(from)
	if err != nil {
		return nil, nil, err
	}
	if len(other) > 0 {
		o.Say("not istioctl's, and left out: " + strings.Join(other, ", "))
	}
	cfg, problems := settingsWith(o.Root, b)
	for _, p := range problems.Warnings() {
		o.Say("warning: " + p.String())
	}
	if err := problems.Err(); err != nil {
		return nil, nil, err
	}
	if is, _ := bootstrap.Load(o.Root); is != nil && agent.Member(o.Root) {
		if why := otherMember(is, cfg); why != "" {
			return nil, nil, errors.New(why)
		}
	}
	if cfg.Root == "/" && !cfg.Capture.UserKnown {
		return nil, nil, fmt.Errorf("there is no user %s for the agent to run as: run systemd-sysusers, or install the package", cfg.Capture.User)
	}
	m := machineOf(cfg)
	o.Say("files: " + strings.Join(slices.Sorted(maps.Keys(b)), ", ") + " checked; identity " + cfg.SPIFFEID())
	if o.Offline {
		return m, b, nil
	}
	roots, ok := b[rootCert]
	if !ok {
		if roots, _, err = plainfile.Read(cfg.Paths.RootCert, maxFile); err != nil {
			return nil, nil, err
		}
	}
	if err := agent.Reach(ctx, cfg, roots); err != nil {
		return nil, nil, err
	}
	o.Say("network: istiod answers at " + cfg.Discovery.Address + " and is the one of root-cert.pem")
	return m, b, nil
}

// settingsWith reads the settings as they would be with a bundle in place.
func settingsWith(root string, b bundle) (*bootstrap.Config, bootstrap.Problems) {
	put := map[string][]byte{}
	// Where root file and token belong is a setting itself.
	at := bootstrap.DefaultPaths(root)
	for name, path := range map[string]string{clusterEnv: at.ClusterEnv, meshYAML: at.MeshConfig, hosts: at.Hosts} {
		if content, ok := b[name]; ok {
			put[path] = content
		}
	}
	if cfg, _ := bootstrap.LoadAhead(root, put); cfg != nil {
		at = cfg.Paths
	}
	for name, path := range map[string]string{token: at.Token, rootCert: at.RootCert} {
		if content, ok := b[name]; ok {
			put[path] = content
		}
	}
	return agent.CheckAhead(root, put)
}

func mustBeRoot(root, command string) error {
	if (root == "/" || root == "") && os.Geteuid() != 0 {
		return fmt.Errorf("%s changes files of the system and its units: run it as root", command)
	}
	return nil
}

// wait follows the daemon until the machine is a member and ready, says what keeps it, and gives up when that stays.
func wait(ctx context.Context, o Options, systemd *manager, since time.Time) (status.Report, error) {
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	var (
		w    watched
		said string
	)
	for {
		r, err := agent.Client(o.Root).Status(ctx)
		why := ""
		if err != nil {
			why = err.Error()
			if systemd != nil {
				why = cmp.Or(systemd.lastWords(ctx, since), why)
			}
		} else {
			var done bool
			if done, why = w.look(r, since, time.Now()); done {
				return r, nil
			}
		}
		if ctx.Err() == nil && why != "" && why != said {
			said = why
			o.Say("waiting: " + why)
		}
		if w.refused(time.Now()) || ctx.Err() != nil {
			return r, fmt.Errorf("not joined after %s: %s\nthe daemon goes on trying: see wingman status; the way back is wingman leave",
				time.Since(since).Round(time.Second), cmp.Or(said, "no reason known"))
		}
		select {
		case <-ctx.Done():
		case <-time.After(pollEvery):
		}
	}
}

// watched is what a wait remembers between two looks at the daemon.
type watched struct {
	joined time.Time // since when it is a member; zero: not yet
	no     time.Time // since when istiod says no; zero: it does not
}

// look judges one report. since is when the daemon was told of the files: what it read before does not count. It is pure.
func (w *watched) look(r status.Report, since, now time.Time) (done bool, why string) {
	reasons := append(slices.Clone(r.Degraded), r.NotReady...)
	why = strings.Join(slices.Compact(reasons), "; ")
	if r.Config.Loaded.Before(since) {
		return false, "the daemon has not read the files yet"
	}
	if r.XDS != nil && r.XDS.Rejected {
		if w.no.IsZero() {
			w.no = now
		}
	} else {
		w.no = time.Time{}
	}
	member := r.Phase == "joined" && r.XDS != nil && r.XDS.Answered && r.Identity != nil && now.Before(r.Identity.NotAfter)
	if !member {
		w.joined = time.Time{}
		return false, cmp.Or(why, "no answer of istiod yet")
	}
	if w.joined.IsZero() {
		w.joined = now
	}
	return r.Ready || now.Sub(w.joined) >= readyPatience, why
}

// refused reports whether to give up on an istiod that says no.
func (w *watched) refused(now time.Time) bool { return !w.no.IsZero() && now.Sub(w.no) >= noPatience }
