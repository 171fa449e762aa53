// Command daemon stands in for wingman on a test machine: it has the same commands as far as the unit files use them, and of
// the daemon only what concerns systemd.
//
//	run     echoes UDP packets on 127.0.0.1:15053, on sockets that systemd keeps
//	proxy   sleeps, like Envoy's supervisor
//	status  says that it is ready once /var/lib/wingman/joined is there
//	app     is the workload: it answers every HTTP request on port 8080 (or the address that its argument names), those for /held when
//	        /run/app-release is there; /run/app-holds says that one waits
//	watch   prints each verdict on the systemd unit named by its argument
//
// While /var/lib/wingman/crash is there, run ends with status 1 at once. SIGUSR1 makes it hang, SIGUSR2 log what an exec
// probe of its own is allowed.
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"wingman/health"
	"wingman/systemd"
)

const state = "/var/lib/wingman/"

func main() {
	handler, err := systemd.NewLogHandler(systemd.LogConfig{Stream: os.Stderr, Getenv: os.Getenv, Level: slog.LevelDebug})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	log := slog.New(handler)
	switch os.Args[1] {
	case "run":
		err = run(log)
	case "proxy":
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, syscall.SIGTERM)
		notifier, noNotifier := systemd.NewNotifier(os.Getenv)
		if err = noNotifier; err != nil {
			break
		}
		for pat := time.Tick(max(time.Second, notifier.WatchdogInterval())); len(stop) == 0; {
			_ = notifier.Watchdog()
			select {
			case s := <-stop:
				stop <- s
			case <-pat:
			}
		}
	case "status":
		_, missing := os.Stat(state + "joined")
		fmt.Printf("{\n  \"ready\": %v\n}\n", missing == nil)
	case "app":
		address := ":8080"
		if len(os.Args) > 2 {
			address = os.Args[2]
		}
		err = http.ListenAndServe(address, http.HandlerFunc(answer))
	case "watch":
		err = watch(os.Args[2], log)
	}
	if err != nil {
		log.Error("cannot go on", "command", os.Args[1], "error", err)
		os.Exit(1)
	}
}

func run(log *slog.Logger) error {
	files, err := systemd.Inherited(os.Getenv, os.Unsetenv)
	if err != nil {
		return err
	}
	notifier, err := systemd.NewNotifier(os.Getenv)
	if err != nil {
		return err
	}
	if _, err := os.Stat(state + "crash"); !errors.Is(err, fs.ErrNotExist) {
		return errors.New("told to crash")
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2)

	conn, err := socket(files["dns"], notifier)
	if err != nil {
		return err
	}
	go echo(conn)
	if err := errors.Join(notifier.Status("echoing"), notifier.Ready()); err != nil {
		return err
	}
	log.Info("ready", "inherited", len(files["dns"]), "watchdog_seconds", 2*notifier.WatchdogInterval().Seconds())

	var beat <-chan time.Time
	if every := notifier.WatchdogInterval(); every > 0 {
		beat = time.Tick(every)
	}
	for {
		select {
		case <-beat:
			if err := notifier.Watchdog(); err != nil {
				return err
			}
		case s := <-signals:
			switch s {
			case syscall.SIGUSR1:
				log.Info("hanging")
				select {}
			case syscall.SIGUSR2:
				probe(log)
			case syscall.SIGHUP:
				if err := errors.Join(notifier.Reloading(), notifier.Status("reloaded"), notifier.Ready()); err != nil {
					return err
				}
			case syscall.SIGTERM:
				return end(log, notifier)
			}
		}
	}
}

func probe(log *slog.Logger) {
	const script = `id -un; grep -E "Cap(Eff|Amb)" /proc/self/status; cat /proc/self/oom_score_adj; env | grep NOTIFY; exit 3`
	told := make(chan health.Report, 1)
	c, err := health.New(health.Config{
		Probe:    health.Probe{Exec: &health.Exec{Command: []string{"/bin/sh", "-c", script}}, Timeout: 10 * time.Second},
		OnReport: func(r health.Report) { told <- r },
	})
	if err != nil {
		log.Error("no probe", "error", err)
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go c.Run(ctx)
	log.Info("probed", "reason", (<-told).Reason)
}

// socket returns the inherited socket, or a new one that it gives to systemd to keep.
func socket(inherited []*os.File, notifier *systemd.Notifier) (net.PacketConn, error) {
	if len(inherited) > 0 {
		return net.FilePacketConn(inherited[0])
	}
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 15053})
	if err != nil {
		return nil, err
	}
	file, err := conn.File()
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return conn, notifier.StoreFDs("dns", file)
}

func echo(conn net.PacketConn) {
	for buf := make([]byte, 512); ; {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return
		}
		conn.WriteTo(buf[:n], from) // the client counts what is lost
	}
}

// end notes whether this is a stop or a restart, one line per end.
func end(log *slog.Logger, notifier *systemd.Notifier) error {
	start := time.Now()
	if err := notifier.Stopping(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	stop, err := systemd.StopRequested(ctx)
	log.Info("ending", "stop", stop, "error", err, "asked_seconds", time.Since(start).Seconds())
	f, openErr := os.OpenFile(state+"ends", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if openErr != nil {
		return openErr
	}
	defer f.Close()
	_, writeErr := fmt.Fprintln(f, "stop", stop, "error", err)
	return writeErr
}

// answer takes its time where it is told to.
func answer(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/held" {
		name, err := os.Hostname()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprintln(w, "this is", name)
		return
	}
	if err := os.WriteFile("/run/app-holds", []byte("one\n"), 0o644); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	for released := false; !released; {
		_, err := os.Stat("/run/app-release")
		released = err == nil
		select {
		case <-time.After(10 * time.Millisecond): // files do not call
		case <-r.Context().Done():
			return
		}
	}
}

func watch(unit string, log *slog.Logger) error {
	c, err := health.New(health.Config{
		Probe:    health.Probe{Unit: unit},
		OnReport: func(r health.Report) { fmt.Println(r.Healthy, r.Reason) },
		Log:      log,
		// Without InstanceIP: a unit probe needs no host.
	})
	if err != nil {
		return err
	}
	return c.Run(context.Background())
}
