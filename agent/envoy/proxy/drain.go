package proxy

import (
	"context"
	"log/slog"
	"net/netip"
	"time"

	"wingman/agent/envoy"
)

// Numbers of a drain.
const (
	drainAsk  = 2 * time.Second        // most that one question takes
	drainPoll = 250 * time.Millisecond // between two
	// drainEmpty is how often in a row there must be no connection: one may just be coming.
	drainEmpty = 2
	// drainDeaf is after how many questions without an answer there is no sense in more.
	drainDeaf = 3
)

// Drain makes Envoy shed its connections and returns when it has none left, cannot be asked, or ctx ends. Draining twice does no harm.
func Drain(ctx context.Context, admin *envoy.Admin, log *slog.Logger) {
	ask := func(question func(ctx context.Context) error) error {
		ctx, cancel := context.WithTimeout(ctx, drainAsk)
		defer cancel()
		return question(ctx)
	}
	if err := ask(admin.Drain); err != nil {
		log.Warn("Envoy cannot be drained; it is ended at once", "cause", err)
		return
	}
	tick := time.NewTicker(drainPoll)
	defer tick.Stop()
	for empty, deaf := 0, 0; ; {
		var n int
		var known bool
		err := ask(func(ctx context.Context) (err error) { n, known, err = admin.Connections(ctx); return err })
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			if deaf++; deaf == drainDeaf {
				log.Warn("a draining Envoy does not answer; it is ended", "cause", err)
				return
			}
		case known && n == 0:
			deaf = 0
			if empty++; empty == drainEmpty {
				log.Info("no connection is left")
				return
			}
		default: // what is not counted is waited for until the end
			empty, deaf = 0, 0
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// handoverPoll is between two looks whether requests are left: what waits for the next Envoy waits for that.
const handoverPoll = 25 * time.Millisecond

// handOver has Envoy accept nothing more at ports, which a hold stands by for, and returns when the requests that it had are answered, it cannot be
// asked, or ctx ends. Connections without a request are not waited for.
func handOver(ctx context.Context, admin *envoy.Admin, ports []netip.AddrPort, owner *User, log *slog.Logger) {
	if diverted, err := divert(ports, owner); err != nil {
		log.Debug("connections that Envoy has not accepted yet will be reset", "cause", err)
	} else {
		awaitAccepted(ctx, ports)
		defer diverted.release() // what stands by takes over
	}
	if err := admin.StopListening(ctx); err != nil {
		log.Warn("Envoy cannot be told to accept nothing more; it is ended at once", "cause", err)
		return
	}
	tick := time.NewTicker(handoverPoll)
	defer tick.Stop()
	for empty := 0; ; {
		n, known, err := admin.Requests(ctx)
		if err != nil {
			if ctx.Err() == nil {
				log.Warn("Envoy does not tell of its requests; it is ended at once", "cause", err)
			}
			return
		}
		if empty++; !known || n > 0 {
			empty = 0
		}
		if empty == drainEmpty {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}
