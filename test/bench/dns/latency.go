package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"
)

// latencyRate is the load at which times are compared, in questions per second.
const latencyRate = 20_000

// compareLatency prints the time that 99 of 100 answers come within, with every server on one core, in its turn, and dnsperf on
// the other. The servers are not running yet.
func (b *bench) compareLatency(ctx context.Context, servers []server) error {
	for i := range servers {
		servers[i].argv = append([]string{"taskset", "-c", "0"}, servers[i].argv...)
		if err := servers[i].start(ctx, b.dir); err != nil {
			return fmt.Errorf("start %s on one core: %w", servers[i].name, err)
		}
		defer servers[i].stop()
	}
	file, err := b.loads()[0].file(0)
	if err != nil {
		return err
	}
	times := make([][]float64, len(servers))
	for range max(b.rounds, 5) {
		for i := range servers {
			p99, err := percentile(ctx, servers[i].addr, file, b.length.Seconds())
			if err != nil {
				return fmt.Errorf("latency of %s: %w", servers[i].name, err)
			}
			times[i] = append(times[i], p99)
		}
	}
	fmt.Printf("\np99 latency at %d questions/s, the server on one core\n", latencyRate)
	for i := range servers {
		fmt.Printf("  %-10s %6.0f µs   (%.0f–%.0f)\n", servers[i].name, median(times[i]), slices.Min(times[i]), slices.Max(times[i]))
	}
	return nil
}

// percentile is the 99th of dnsperf's answer times, in microseconds.
func percentile(ctx context.Context, addr, file string, seconds float64) (float64, error) {
	host, port, _ := strings.Cut(addr, ":")
	out, err := exec.CommandContext(ctx, "taskset", "-c", "1", "dnsperf", "-v", "-s", host, "-p", port, "-d", file, "-c", "8", "-q", "1000", "-T", "1",
		"-Q", strconv.Itoa(latencyRate), "-l", strconv.FormatFloat(seconds, 'f', -1, 64)).Output()
	if err != nil {
		return 0, err
	}
	var all []float64
	for in := bufio.NewScanner(bytes.NewReader(out)); in.Scan(); {
		if fields := strings.Fields(in.Text()); len(fields) == 5 && fields[0] == ">" {
			if v, err := strconv.ParseFloat(fields[4], 64); err == nil {
				all = append(all, v*1e6)
			}
		}
	}
	if len(all) < int(seconds*latencyRate/2) {
		return 0, fmt.Errorf("only %d answers", len(all))
	}
	slices.Sort(all)
	return all[len(all)*99/100], nil
}
