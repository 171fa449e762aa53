// Command dns measures what a DNS answer costs, as ratios against other servers in the same run.
//
// It serves the same 10,000 services from the daemon (`wingman dns serve`) and from each peer that is installed, loads them in
// turn with dnsperf (Debian package dnsperf), and divides the processor time of the server's process by the answers counted.
// Rounds alternate between servers and the median counts, so that what else the machine does hits all alike. Nothing leaves
// the loopback interface.
//
//	go run ./test/bench/dns -wingman bin/wingman [-rounds 3] [-seconds 4] [-peers knot,unbound,dnsmasq]
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"
)

func main() {
	var b bench
	flag.StringVar(&b.wingman, "wingman", "bin/wingman", "the daemon to measure")
	flag.IntVar(&b.rounds, "rounds", 3, "measurements per figure; the median counts")
	flag.DurationVar(&b.length, "length", 4*time.Second, "of one measurement")
	peers := flag.String("peers", "knot,unbound,dnsmasq", "servers to compare with, if installed")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := b.run(ctx, strings.Split(*peers, ",")); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// bench is one run of all measurements.
type bench struct {
	wingman string
	rounds  int
	length  time.Duration
	dir     string
}

func (b *bench) run(ctx context.Context, peers []string) (err error) {
	if b.dir, err = os.MkdirTemp("", "wingman-bench-dns-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	// servers drop privileges and must still read their files
	if err := os.Chmod(b.dir, 0o755); err != nil {
		return err
	}
	if err := b.writeInputs(); err != nil {
		return err
	}
	upstream, err := b.startUpstream(ctx)
	if err != nil {
		return fmt.Errorf("upstream for uncached names (package knot): %w", err)
	}
	defer upstream.stop()

	if err := b.compareLoads(ctx, b.servers(peers, upstream.addr)); err != nil {
		return err
	}
	return b.compareLatency(ctx, b.servers(peers, upstream.addr))
}

// servers are the daemon and the peers that are installed, on ports of their own, not running yet.
func (b *bench) servers(peers []string, upstream string) []server {
	servers := []server{b.wingmanServer(upstream)}
	for _, name := range peers {
		s, err := b.peer(name)
		if err != nil {
			fmt.Fprintf(os.Stderr, "bench: %s left out: %v\n", name, err)
			continue
		}
		servers = append(servers, s)
	}
	return servers
}

// compareLoads runs all servers side by side and loads them in turns.
func (b *bench) compareLoads(ctx context.Context, servers []server) error {
	for i := range servers {
		if err := servers[i].start(ctx, b.dir); err != nil {
			return fmt.Errorf("start %s: %w", servers[i].name, err)
		}
		defer servers[i].stop()
	}
	fmt.Printf("resident with 10,000 services:")
	for i := range servers {
		fmt.Printf("  %s %.1f MB", servers[i].name, servers[i].resident())
	}
	fmt.Println()
	for _, load := range b.loads() {
		if err := b.compare(ctx, load, servers); err != nil {
			return err
		}
	}
	return nil
}

// compare loads every server that can take the load, in turns, and prints the costs as ratios to the first peer's.
func (b *bench) compare(ctx context.Context, load load, servers []server) error {
	costs := make([][]float64, len(servers)) // microseconds per answer
	rates := make([][]float64, len(servers))
	for round := range b.rounds {
		for i := range servers {
			if load.only != "" && servers[i].name != load.only {
				continue
			}
			r, err := load.measure(ctx, &servers[i], round)
			if err != nil {
				return fmt.Errorf("%s on %s: %w", load.name, servers[i].name, err)
			}
			costs[i], rates[i] = append(costs[i], r.micros), append(rates[i], r.rate)
		}
	}
	fmt.Printf("\n%s\n", load.name)
	reference := 0.0
	if len(servers) > 1 && len(costs[1]) > 0 {
		reference = median(costs[1])
	}
	for i := range servers {
		if len(costs[i]) == 0 {
			continue
		}
		fmt.Printf("  %-10s %6.2f µs of CPU an answer  %8.0f answers/s", servers[i].name, median(costs[i]), median(rates[i]))
		if reference > 0 {
			fmt.Printf("  ratio to %s %.2f", servers[1].name, median(costs[i])/reference)
		}
		fmt.Printf("   (%.2f–%.2f)\n", slices.Min(costs[i]), slices.Max(costs[i]))
	}
	return nil
}

func median(values []float64) float64 {
	values = slices.Clone(values)
	slices.Sort(values)
	return values[len(values)/2]
}

var errNotInstalled = errors.New("not installed")
