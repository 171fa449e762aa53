// Command dns measures what DNS costs with the daemon, as ratios against other servers in the same run.
//
// The daemon is the whole of it, `wingman run`, a member of a mesh of 10,000 services; the control plane is the stand-in. Its
// peers have the same names: Istio's pilot-agent, the whole of it too, on the same control plane; Knot, Unbound and dnsmasq from
// a zone, local data and a hosts file; CoreDNS with the hosts plugin. All forward to one Knot that answers for any name. Those
// that are not installed are left out and named; CoreDNS and pilot-agent are built from their modules, once.
//
// Load is dnsperf's (-c 8 -q 100 -T 1), and cost the processor time of the server's process by the kernel's clock for it, divided
// by the answers counted. Servers take turns, round by round, and the median counts, so that what else the machine does hits all
// alike. Everything runs in a network of its own, which needs root; nothing leaves it.
//
//	go run ./test/bench/dns -wingman bin/wingman [-rounds 3] [-length 3s] [-peers knot,unbound,dnsmasq,coredns,pilot-agent]
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	var b bench
	flag.StringVar(&b.wingman, "wingman", "bin/wingman", "the daemon to measure")
	flag.IntVar(&b.rounds, "rounds", 3, "measurements per figure; the median counts")
	flag.DurationVar(&b.length, "length", 3*time.Second, "of one measurement")
	peers := flag.String("peers", "knot,unbound,dnsmasq,coredns,pilot-agent", "servers to compare with, if there")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := b.main(ctx, strings.Split(*peers, ","))
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// bench is one run of all measurements.
type bench struct {
	wingman string
	rounds  int
	length  time.Duration
	dir     string // of everything that servers read and write
	built   built
	plane   *plane
	report  report
}

// main builds the peers where the network is, then measures in a network of its own.
func (b *bench) main(ctx context.Context, peers []string) (err error) {
	if b.wingman, err = filepath.Abs(b.wingman); err != nil {
		return err
	}
	if _, err := os.Stat(b.wingman); err != nil {
		return err
	}
	if !inRoom() {
		if b.dir, err = os.MkdirTemp("", "wingman-bench-dns-"); err != nil {
			return err
		}
		defer os.RemoveAll(b.dir)
		// servers drop privileges and must still read their files
		if err := os.Chmod(b.dir, 0o755); err != nil {
			return err
		}
		b.built = build(ctx, b.dir, peers)
		return enterRoom(ctx, b.dir, b.built)
	}
	b.dir, b.built = roomDir()
	if err := furnishRoom(b.dir); err != nil {
		return err
	}
	return b.run(ctx, peers)
}

func (b *bench) run(ctx context.Context, peers []string) (err error) {
	b.report.before = loadAverage()
	if err := b.writeInputs(); err != nil {
		return err
	}
	upstream, err := b.startUpstream(ctx)
	if err != nil {
		return fmt.Errorf("upstream of all servers (Debian package knot): %w", err)
	}
	defer upstream.stop()
	if b.plane, err = newPlane(); err != nil {
		return err
	}
	defer b.plane.istiod.Close()
	us, err := b.wingmanServer()
	if err != nil {
		return err
	}
	servers := append([]server{us}, b.peers(peers)...)
	for _, step := range []func(context.Context, []server) error{b.compareSideBySide, b.compareLatency, b.timeFirstAnswer} {
		if err := step(ctx, servers); err != nil {
			return err
		}
	}
	b.report.after = loadAverage()
	b.report.print(os.Stdout)
	return nil
}

// peers are those servers that are there.
func (b *bench) peers(names []string) (servers []server) {
	for _, name := range names {
		s, err := b.peer(name)
		if err != nil {
			fmt.Fprintf(os.Stderr, "bench: %s left out: %v\n", name, err)
			continue
		}
		servers = append(servers, s)
	}
	return servers
}

// compareSideBySide runs all servers and loads them in turns.
func (b *bench) compareSideBySide(ctx context.Context, servers []server) error {
	for i := range servers {
		if err := servers[i].start(ctx, b.dir); err != nil {
			return fmt.Errorf("start %s: %w", servers[i].name, err)
		}
		defer servers[i].stop()
	}
	for _, step := range []func(context.Context, []server) error{b.compareChanges, b.compareMemory} {
		if err := step(ctx, servers); err != nil {
			return err
		}
	}
	for _, load := range b.loads() {
		if err := b.compareLoad(ctx, load, servers); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) compareLoad(ctx context.Context, load load, servers []server) error {
	var figures []figure
	taken := map[string][]float64{}
	for round := range b.rounds {
		for i := range servers {
			s := &servers[i]
			if load.only != nil && !slices.Contains(load.only, s.name) {
				continue
			}
			r, err := load.measure(ctx, s, round)
			if err != nil {
				return fmt.Errorf("%s on %s: %w", load.name, s.name, err)
			}
			taken[s.name] = append(taken[s.name], r.micros)
			if round == b.rounds-1 {
				figures = append(figures, figure{server: s.name, taken: taken[s.name], note: fmt.Sprintf("%.0f answers/s", r.rate)})
			}
		}
	}
	b.report.add(table{name: load.name, unit: "µs of CPU an answer", figures: figures})
	return nil
}

var errNotThere = errors.New("not there")
