package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// Roles of this program on the machine, as the user userUID.
const (
	roleApp = "app"
	roleAsk = "ask"
)

// serveApp is the application: healthy as long as it runs. Its argument is the address to listen at.
func serveApp(ctx context.Context, args []string) error {
	if len(args) != 1 {
		return errors.New("this role is for the demo itself")
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	l, err := net.Listen("tcp", args[0])
	if err != nil {
		return err
	}
	server := &http.Server{Handler: mux, ReadHeaderTimeout: time.Second}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// answer is what the asker prints, as one line of JSON.
type answer struct {
	Name   string    `json:"name"`
	Addrs  []string  `json:"addrs,omitempty"`
	Error  string    `json:"error,omitempty"`
	Millis float64   `json:"millis"` // how long the try took that was answered
	Tries  int       `json:"tries"`
	At     time.Time `json:"at"` // when the answer came
}

// ask resolves names as any program on the machine does: by Go's resolver, from /etc/resolv.conf. Its arguments are for how
// many milliseconds to go on trying (0: one try) and the names, one after the other.
func ask(ctx context.Context, args []string, out io.Writer) error {
	if len(args) < 2 {
		return errors.New("this role is for the demo itself")
	}
	patience, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	for _, name := range args[1:] {
		var a answer
		if patience == 0 {
			a = try(ctx, name)
			a.Tries = 1
		} else {
			a = keepTrying(ctx, name, time.Duration(patience)*time.Millisecond)
		}
		if err := json.NewEncoder(out).Encode(a); err != nil {
			return err
		}
	}
	return nil
}

// try asks once.
func try(ctx context.Context, name string) answer {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	begun := time.Now()
	addrs, err := (&net.Resolver{PreferGo: true}).LookupIPAddr(ctx, name+".")
	a := answer{Name: name, At: time.Now()}
	a.Millis = float64(a.At.Sub(begun).Microseconds()) / 1000
	for _, addr := range addrs {
		a.Addrs = append(a.Addrs, addr.String())
	}
	if err != nil {
		a.Error = err.Error()
	}
	return a
}

// keepTrying asks every few milliseconds, without waiting for those before, until one is answered. A query that is sent
// while nobody serves the redirected port is lost without a word: the kernel's refusal does not find its way back through
// the redirect. So whoever waits for the first query measures its own patience.
func keepTrying(ctx context.Context, name string, patience time.Duration) answer {
	const pause = 5 * time.Millisecond
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	answered := make(chan answer, 1)
	var askers sync.WaitGroup
	defer askers.Wait()
	defer cancel()
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for tries := 1; ; tries++ {
		askers.Go(func() {
			if a := try(ctx, name); a.Error == "" {
				select {
				case answered <- a:
				default:
				}
			}
		})
		select {
		case a := <-answered:
			a.Tries = tries
			return a
		case <-tick.C:
		case <-ctx.Done():
			return answer{Name: name, Error: "no answer", Tries: tries, At: time.Now()}
		}
	}
}
