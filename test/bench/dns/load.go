package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// load is one kind of question.
type load struct {
	name string
	only []string // the servers that it is for; nil for all
	// file names the questions of a round; dnsperf goes through it again and again
	file func(round int) (string, error)
	warm bool // ask everything once before measuring
	args []string
}

// result is one measurement.
type result struct {
	micros float64 // processor time of the server per answer
	rate   float64 // answers per second
}

// lowRate is a load, in questions per second, at which no two questions come together.
const lowRate = 500

func (b *bench) loads() []load {
	mesh := b.meshQuestions()
	external := b.questions("external", func(int) (names []string) {
		for i := range 1000 {
			names = append(names, fmt.Sprintf("cached-%d.miss.example", i))
		}
		return names
	})
	fresh := b.questions("fresh", func(round int) (names []string) {
		for i := range 50_000 {
			names = append(names, fmt.Sprintf("n%d-%d-%d.miss.example", os.Getpid(), round, i))
		}
		return names
	})
	length := []string{"-l", strconv.FormatFloat(b.length.Seconds(), 'f', -1, 64)}
	return []load{
		{name: meshTable, file: mesh, args: length},
		{name: cachedTable, only: []string{wingmanName, "unbound", "dnsmasq", "coredns"}, file: external, warm: true, args: length},
		// without dnsmasq, which asks one by one and would take longer than all others together
		{name: uncachedTable, only: []string{wingmanName, "unbound", "coredns", "pilot-agent"}, file: fresh, args: []string{"-n", "1"}},
		{name: lowTable, only: []string{wingmanName, "knot", "unbound", "dnsmasq"}, file: mesh, args: append([]string{"-Q", strconv.Itoa(lowRate)}, length...)},
	}
}

func (b *bench) meshQuestions() func(int) (string, error) {
	return b.questions("mesh", func(int) (names []string) {
		for i := range services {
			names = append(names, host(i*7919%services))
		}
		return names
	})
}

// questions makes a function that writes a file of questions for a round.
func (b *bench) questions(name string, names func(round int) []string) func(int) (string, error) {
	return func(round int) (string, error) {
		path := filepath.Join(b.dir, fmt.Sprintf("%s-%d", name, round))
		var text strings.Builder
		for _, n := range names(round) {
			text.WriteString(n + " A\n")
		}
		return path, os.WriteFile(path, []byte(text.String()), 0o644)
	}
}

func (l load) measure(ctx context.Context, s *server, round int) (result, error) {
	file, err := l.file(round)
	if err != nil {
		return result{}, err
	}
	if l.warm {
		if _, err := dnsperf(ctx, s.addr, file, "-n", "1"); err != nil {
			return result{}, err
		}
	}
	before, err := s.cpu()
	if err != nil {
		return result{}, err
	}
	out, err := dnsperf(ctx, s.addr, file, l.args...)
	if err != nil {
		return result{}, err
	}
	after, err := s.cpu()
	if err != nil {
		return result{}, err
	}
	answered := number(out, "Queries completed:")
	if answered == 0 || !bytes.Contains(out, []byte("NOERROR")) {
		return result{}, fmt.Errorf("no useful answers:\n%s", out)
	}
	return result{micros: float64(after-before) / float64(time.Microsecond) / answered, rate: number(out, "Queries per second:")}, nil
}

// dnsperf runs with the load that all published figures of this project have: 8 clients, 100 questions in flight, 1 thread.
func dnsperf(ctx context.Context, addr, file string, args ...string) ([]byte, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	args = append([]string{"-s", host, "-p", port, "-d", file, "-c", "8", "-q", "100", "-T", "1", "-t", "2"}, args...)
	out, err := exec.CommandContext(ctx, "dnsperf", args...).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("dnsperf (Debian package dnsperf): %w\n%s", err, out)
	}
	return out, nil
}

// number is what follows a label in dnsperf's report.
func number(report []byte, label string) float64 {
	_, rest, found := strings.Cut(string(report), label)
	fields := strings.Fields(rest)
	if !found || len(fields) == 0 {
		return 0
	}
	v, _ := strconv.ParseFloat(fields[0], 64)
	return v
}
