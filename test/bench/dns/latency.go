package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"
)

// latencyRate is the load at which times are compared, in questions per second.
const latencyRate = 20_000

// compareLatency notes the time that 99 of 100 answers come within, with each server on one core, in its turn, and dnsperf on the
// other. The servers are not running yet.
func (b *bench) compareLatency(ctx context.Context, servers []server) error {
	var some []server
	for _, s := range servers {
		if slices.Contains([]string{wingmanName, "knot", "unbound"}, s.name) {
			s.argv = append([]string{"taskset", "-c", "0"}, s.argv...)
			some = append(some, s)
		}
	}
	for i := range some {
		if err := some[i].start(ctx, b.dir); err != nil {
			return fmt.Errorf("start %s on one core: %w", some[i].name, err)
		}
		defer some[i].stop()
	}
	for i := range some { // agents have a push to hand on first
		if _, err := some[i].settle(ctx); err != nil {
			return err
		}
	}
	file, err := b.meshQuestions()(0)
	if err != nil {
		return err
	}
	taken := map[string][]float64{}
	for range max(b.rounds, 5) {
		for _, s := range some {
			p99, err := percentile(ctx, s.addr, file, b.length)
			if err != nil {
				return fmt.Errorf("latency of %s: %w", s.name, err)
			}
			taken[s.name] = append(taken[s.name], p99)
		}
	}
	var figures []figure
	for _, s := range some {
		figures = append(figures, figure{server: s.name, taken: taken[s.name]})
	}
	b.report.add(table{name: latencyTable, unit: "µs", figures: figures})
	return nil
}

// percentile is the 99th of dnsperf's answer times, in microseconds.
func percentile(ctx context.Context, addr, file string, length time.Duration) (float64, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return 0, err
	}
	seconds := length.Seconds()
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
	// what is lost has no time, and would be the slowest: with more than one of 100 lost the figure says nothing
	if asked := int(seconds * latencyRate); len(all) < asked*99/100 {
		return 0, fmt.Errorf("only %d answers to %d questions", len(all), asked)
	}
	slices.Sort(all)
	return all[len(all)*99/100], nil
}

// timeFirstAnswer notes how long after its start the daemon answers with the table it had, while there is no control plane.
func (b *bench) timeFirstAnswer(ctx context.Context, servers []server) error {
	us := servers[0]
	if err := us.start(ctx, b.dir); err != nil { // has the table from the control plane, and keeps it
		return err
	}
	us.stop()
	b.plane.istiod.Stop()
	const times = 10
	f := figure{server: us.name}
	for range times {
		took, err := firstAnswer(ctx, us, b.dir)
		if err != nil {
			return err
		}
		f.taken = append(f.taken, float64(took)/float64(time.Millisecond))
	}
	b.report.add(table{name: firstTable, unit: "ms", figures: []figure{f}})
	return nil
}

// firstAnswer asks a server that is being started again and again until it answers well.
func firstAnswer(ctx context.Context, s server, dir string) (time.Duration, error) {
	conn, err := net.Dial("udp", s.addr)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	question := []byte("\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00")
	for label := range strings.SplitSeq(host(1), ".") {
		question = append(append(question, byte(len(label))), label...)
	}
	question = append(question, 0, 0, 1, 0, 1)
	want := net.ParseIP(address(1)).To4()
	began := time.Now()
	if err := s.launch(ctx, dir); err != nil {
		return 0, err
	}
	defer s.stop()
	buf := make([]byte, 1500)
	for time.Since(began) < startTimeout {
		_ = conn.SetDeadline(time.Now().Add(500 * time.Microsecond))
		if _, err := conn.Write(question); err != nil {
			continue // the kernel's word of the question before: nobody listens
		}
		if n, err := conn.Read(buf); err == nil && bytes.HasSuffix(buf[:n], want) {
			return time.Since(began), nil
		}
	}
	return 0, fmt.Errorf("no answer within %v of its start", startTimeout)
}
