// Command client is a program on a test machine that uses the network as others there do, and counts what that costs it.
//
//	dns SERVER NAME ADDRESS   asks SERVER for NAME 200 times a second; ADDRESS must be among the answers
//	http ADDRESS HOST         sends 200 requests a second to http://HOST/ at ADDRESS, each over a connection of its own
//	first SERVER NAME ADDRESS asks every 5 ms until the first good answer, and prints when that was: microseconds of CLOCK_MONOTONIC
//
// A query is asked as glibc does, resolv.conf(5): from a port of its own, for 5 s, and once more. dns and http say "flowing" after the first
// 100 good answers; when their standard input ends they wait for the last ones and print an Outcome as JSON.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

const (
	every    = 5 * time.Millisecond
	patience = 5 * time.Second
	attempts = 2
)

// Outcome is what became of the tries.
type Outcome struct {
	Sent    int
	Lasted  time.Duration // how long tries were begun
	Again   int           // queries that were answered at the second attempt only
	Slowest time.Duration // of the good answers
	Failed  []Failure     // oldest first
}

// Failure is a try without a good answer.
type Failure struct {
	Began time.Time
	Took  time.Duration
	Err   string
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "client:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 4 && args[0] == "dns":
		return load(func() (bool, error) { return look(args[1], args[2], args[3]) })
	case len(args) == 3 && args[0] == "http":
		return load(func() (bool, error) { return false, get(args[1], args[2]) })
	case len(args) == 4 && args[0] == "first":
		return first(args[1], args[2], args[3])
	}
	return fmt.Errorf("found %q, expected dns, http or first with what they need", args)
}

// load tries 200 times a second until standard input ends.
func load(try func() (again bool, err error)) error {
	var (
		mu      sync.Mutex // guards out and flows
		out     Outcome
		flows   bool
		running sync.WaitGroup
		end     = make(chan error, 1)
	)
	go func() {
		_, err := io.Copy(io.Discard, os.Stdin)
		end <- err
	}()
	ticks := time.NewTicker(every)
	defer ticks.Stop()
	for from := time.Now(); ; {
		select {
		case err := <-end:
			out.Lasted = time.Since(from)
			running.Wait()
			slices.SortFunc(out.Failed, func(a, b Failure) int { return a.Began.Compare(b.Began) })
			return errors.Join(err, json.NewEncoder(os.Stdout).Encode(out))
		case <-ticks.C:
		}
		running.Go(func() {
			began := time.Now()
			again, err := try()
			took := time.Since(began)
			mu.Lock()
			defer mu.Unlock()
			out.Sent++
			if again {
				out.Again++
			}
			if err != nil {
				out.Failed = append(out.Failed, Failure{began, took, err.Error()})
			} else {
				out.Slowest = max(out.Slowest, took)
			}
			if !flows && out.Sent-len(out.Failed) >= 100 {
				flows = true
				fmt.Println("flowing")
			}
		})
	}
}

// look asks for an address; again reports whether that took a second attempt.
func look(server, name, want string) (again bool, err error) {
	conn, err := net.Dial("udp", server)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	for attempt := range attempts {
		if err = ask(conn, name, want, patience); err == nil {
			return attempt > 0, nil
		}
	}
	return false, err
}

// ask sends one query and waits for its answer.
func ask(conn net.Conn, name, want string, limit time.Duration) error {
	q := new(dns.Msg)
	q.SetQuestion(name, dns.TypeA)
	packet, err := q.Pack()
	if err != nil {
		return err
	}
	if err := conn.SetDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	if _, err := conn.Write(packet); err != nil {
		return err
	}
	buf := make([]byte, 4096)
	n, err := conn.Read(buf)
	if err != nil {
		return err
	}
	a := new(dns.Msg)
	if err := a.Unpack(buf[:n]); err != nil {
		return err
	}
	for _, rr := range a.Answer {
		if a, ok := rr.(*dns.A); ok && a.A.String() == want {
			return nil
		}
	}
	return fmt.Errorf("answer %s with %d records, want %s", dns.RcodeToString[a.Rcode], len(a.Answer), want)
}

// get sends one request. Whoever answers must say who it is.
func get(address, host string) error {
	client := http.Client{
		Timeout: 2 * patience,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			Dial:              func(network, _ string) (net.Conn, error) { return net.DialTimeout(network, address, patience) },
		},
	}
	res, err := client.Get("http://" + host + "/")
	if err != nil {
		return err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK || !strings.HasPrefix(string(body), "this is ") {
		return fmt.Errorf("status %d: %s", res.StatusCode, strings.TrimSpace(string(body)))
	}
	return nil
}

// first asks until the first good answer.
func first(server, name, want string) error {
	answered := make(chan int64)
	ticks := time.Tick(every)
	for {
		go func() {
			conn, err := net.Dial("udp", server)
			if err != nil {
				return // no network yet
			}
			defer conn.Close()
			var now unix.Timespec
			if ask(conn, name, want, patience) == nil && unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) == nil {
				answered <- now.Nano() / 1000
			}
		}()
		select {
		case at := <-answered:
			fmt.Println(at)
			return nil
		case <-ticks:
		}
	}
}
