// Command demo shows Wingman's main job from end to end: a machine joins a mesh, and stays useful whatever dies.
//
// It is the program behind `make demo`, not a part of the daemon. In network and mount namespaces of its own it builds a
// small world, runs the real `wingman run` in it, and tells what happens line by line. Every line is checked against the
// kernel, the control plane or the wire, never against what the daemon says of itself; the first one that is not true
// ends the program with status 1.
//
//	the world (this process): stand-in for istiod 10.99.0.1:15012, upstream resolver 10.99.0.53:53
//	     │ a cable (veth)
//	the machine forum-vm, 10.99.0.2: wingman (uid of istio-proxy), an application on :8080 (uid 1000), queries (uid 1000)
//
// Files: enter.go and subids.go (namespaces, as root or not), world.go (cable, control plane,
// resolver), machine.go and files.go (the VM), roles.go (the application and the asker, which are this program too),
// kernel.go (rules and counters), story.go (lines and checks), scenes*.go (what happens, in order).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// limit bounds the whole demo.
const limit = 60 * time.Second

func main() {
	syscall.Umask(0o022) // other users enter the demo's folders
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("the demo took longer than %s", limit))
	defer cancel()
	err := run(ctx, os.Args[1:])
	switch {
	case errors.Is(err, errSaid):
		os.Exit(1)
	case err != nil:
		fmt.Fprintf(os.Stderr, "demo: %v\n", err)
		os.Exit(1)
	}
}

// run is one of this program's roles: the first argument names those that the demo starts itself.
func run(ctx context.Context, args []string) error {
	if len(args) > 0 {
		switch args[0] {
		case roleWait:
			return awaitIDs(args[1:])
		case roleInside:
			return inside(ctx, args[1:])
		case roleApp:
			return serveApp(ctx, args[1:])
		case roleAsk:
			return ask(ctx, args[1:], os.Stdout)
		}
	}
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	binary := flags.String("wingman", "bin/wingman", "the daemon to show")
	verbose := flags.Bool("v", false, "print the daemon's log too")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	// An ordinary user's path often lacks the folders of iptables.
	if err := os.Setenv("PATH", os.Getenv("PATH")+":/usr/local/sbin:/usr/sbin:/sbin"); err != nil {
		return err
	}
	return enter(ctx, *binary, *verbose, os.Stdout, os.Stderr)
}
