package resolved

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Times of a Registration.
const (
	checkEvery = 10 * time.Second       // a look without a reason: systemd-resolved tells nobody when somebody else changes a link
	atMostEach = 500 * time.Millisecond // between two looks, whatever the news: a table in motion, or somebody who takes the link away
	firstRetry = time.Second            // after a failure, and twice as long after the next …
	lastRetry  = 30 * time.Second       // … up to this, and so does the time between two looks while somebody else keeps changing the link
	calmAfter  = time.Minute            // without such a change the pace is the first again
	stepLimit  = 10 * time.Second       // for one look with its changes: polkit may have to be started for it
)

// A Wish is what should be registered. Its zero value is nothing: then the link is taken away.
type Wish struct {
	Registered bool
	Server     netip.AddrPort // the DNS proxy's; an unspecified address stands for loopback
	Domains    Domains
}

// Config says what a Registration works with.
type Config struct {
	// Wish is asked before each look; it must be quick.
	Wish    func() Wish
	Changed func()                // State has changed; nil: nobody wants to know
	Log     *slog.Logger          // nil: none
	Metrics prometheus.Registerer // nil: none
}

// State is a Registration's, for people.
type State struct {
	Link       string    `json:"link"`
	Registered bool      `json:"registered"` // systemd-resolved has everything as it should
	Since      time.Time `json:"since,omitzero"`
	Domains    int       `json:"domains"`
	LeftOut    int       `json:"leftOut,omitempty"` // suffixes that have no place
	Missing    []string  `json:"missing,omitempty"` // some of them
	Repairs    int       `json:"repairs,omitempty"` // how often what others changed was set again
	Error      string    `json:"error,omitempty"`   // why it is not registered
}

// Registration keeps systemd-resolved as the wish wants it. Make it with New, run it once.
type Registration struct {
	cfg   Config
	log   *slog.Logger
	news  chan struct{}      // buffered 1
	asked chan chan struct{} // a look at once; the channel is closed after it

	// Run's alone.
	bus      *bus // nil: not connected
	last     Wish // what was set last
	pace     time.Duration
	repaired time.Time // when somebody else's change was undone last

	mu    sync.Mutex // guards everything below
	state State
}

// New checks and allocates; it asks nobody.
func New(c Config) (*Registration, error) {
	r := &Registration{cfg: c, log: c.Log, news: make(chan struct{}, 1), asked: make(chan chan struct{}), pace: atMostEach, state: State{Link: LinkName}}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	if c.Metrics != nil {
		for _, m := range []prometheus.Collector{
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: metricRegistered, Help: "1 while systemd-resolved sends the mesh's names to this agent, 0 while it does not."},
				func() float64 {
					if r.State().Registered {
						return 1
					}
					return 0
				}),
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: metricDomains, Help: "Domains that are registered with systemd-resolved."},
				func() float64 { return float64(r.State().Domains) }),
		} {
			if err := c.Metrics.Register(m); err != nil {
				return nil, fmt.Errorf("register metrics: %w", err)
			}
		}
	}
	return r, nil
}

// Names of metrics.
const (
	metricRegistered = "wingman_resolved_registered"
	metricDomains    = "wingman_resolved_domains"
)

// State returns a snapshot.
func (r *Registration) State() State {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state
}

// Poke says that the wish may have changed. It does not wait.
func (r *Registration) Poke() { poke(r.news) }

// Look has the wish fulfilled now, and waits for the attempt or for ctx. Run must be running.
func (r *Registration) Look(ctx context.Context) {
	done := make(chan struct{})
	select {
	case r.asked <- done:
	case <-ctx.Done():
		return
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// Run keeps the registration until ctx ends, and leaves it as it is then: the next process finds it.
func (r *Registration) Run(ctx context.Context) error {
	stop := make(chan struct{})
	defer close(stop)
	if err := followLinks(r.news, stop); err != nil {
		r.log.Warn("what becomes of the link is only seen every few seconds", "link", LinkName, "cause", err)
	}
	defer func() { r.bus.close() }()
	var (
		done  chan struct{}
		retry = firstRetry
	)
	for {
		began := time.Now()
		err := r.step(ctx, r.cfg.Wish())
		if ctx.Err() != nil {
			return nil
		}
		next := checkEvery
		if err != nil {
			next, retry = retry, min(2*retry, lastRetry)
		} else {
			retry = firstRetry
		}
		if done != nil {
			close(done)
			done = nil
		}
		select {
		case <-ctx.Done():
			return nil
		case done = <-r.asked: // at once, whatever the pace
			continue
		case <-r.news:
		case <-time.After(next):
		}
		select {
		case <-ctx.Done():
			return nil
		case done = <-r.asked:
		case <-time.After(time.Until(began.Add(r.pace))):
		}
	}
}

// step makes one look: what is there becomes what is wished, and the state says how that went.
func (r *Registration) step(life context.Context, w Wish) error {
	ctx, cancel := context.WithTimeout(life, stepLimit)
	defer cancel()
	if !w.Registered {
		removed, err := Remove()
		if removed {
			r.log.Info("mesh names are taken back from systemd-resolved", "link", LinkName)
		}
		r.last = w
		r.note(State{Error: text(err)})
		return err
	}
	done, err := r.fulfil(ctx, w)
	if life.Err() != nil {
		return nil // the next process looks again
	}
	s := State{Registered: err == nil, Error: text(err)}
	if err == nil {
		s.Domains, s.LeftOut, s.Missing = len(w.Domains.List), w.Domains.LeftOut, w.Domains.Missing
		r.tell(done, w)
		r.last = w
	}
	r.note(s)
	return err
}

// done is what fulfil did.
type done struct {
	made  bool   // the link was not there
	calls []call // to systemd-resolved
}

// fulfil makes the link and sets what systemd-resolved has otherwise.
func (r *Registration) fulfil(ctx context.Context, w Wish) (d done, err error) {
	index, made, err := makeLink()
	if err != nil {
		return d, err
	}
	d.made = made
	if r.bus != nil && !r.bus.conn.Connected() {
		r.bus.close()
		r.bus = nil
	}
	if r.bus == nil {
		if r.bus, err = dial(ctx, r.news); err != nil {
			return d, err
		}
	}
	have, err := r.bus.read(ctx, index)
	for errors.Is(err, errUnknownLink) && ctx.Err() == nil { // the kernel has told it, and it has not listened yet
		select {
		case <-ctx.Done():
		case <-time.After(10 * time.Millisecond):
			have, err = r.bus.read(ctx, index)
		}
	}
	if err != nil {
		return d, err
	}
	d.calls = changes(have, settingsFor(w.Server, w.Domains))
	return d, r.bus.apply(ctx, index, d.calls)
}

// tell logs what was done, and counts what others had undone.
func (r *Registration) tell(d done, w Wish) {
	if time.Since(r.repaired) > calmAfter {
		r.pace = atMostEach
	}
	switch again := reflect.DeepEqual(r.last, w); {
	case !r.last.Registered:
		r.log.Info("mesh names are registered with systemd-resolved", "link", LinkName, "server", w.Server, "domains", len(w.Domains.List),
			"left_out", w.Domains.LeftOut, "found_so", len(d.calls) == 0)
	case len(d.calls) == 0:
	case again:
		r.mu.Lock()
		r.state.Repairs++
		r.mu.Unlock()
		r.pace, r.repaired = min(2*r.pace, lastRetry), time.Now()
		r.log.Warn("somebody changed what systemd-resolved knows of the mesh; it is set again", "link", LinkName, "link_was_gone", d.made, "next_look_seconds", r.pace.Seconds())
	default:
		r.log.Info("mesh names changed at systemd-resolved", "link", LinkName, "domains", len(w.Domains.List), "left_out", w.Domains.LeftOut)
	}
}

// note keeps the new state and tells of it when it is another one.
func (r *Registration) note(s State) {
	r.mu.Lock()
	was := r.state
	s.Link, s.Repairs, s.Since = LinkName, was.Repairs, was.Since
	if s.Registered != was.Registered {
		s.Since = time.Now()
	}
	r.state = s
	r.mu.Unlock()
	if s.Error != "" && s.Error != was.Error {
		r.log.Error("mesh names are not at systemd-resolved as they should be; this is tried on", "link", LinkName, "cause", s.Error)
	}
	if s.Error == "" && was.Error != "" {
		r.log.Info("systemd-resolved and the mesh's names are in order again", "link", LinkName)
	}
	if !reflect.DeepEqual(s, was) && r.cfg.Changed != nil {
		r.cfg.Changed()
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
