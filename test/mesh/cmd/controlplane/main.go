// Command controlplane runs the real control plane with the book's objects in it (testbed.Objects) in the network that it is started in, for
// tests whose machines are not namespaces: test/vm starts it on the segment of its machines.
//
//	controlplane -dir DIR -address 10.99.0.1 [-stock]
//
// It speaks HTTP on DIR/socket, and says "ready" on standard output when istiod is. What it started ends with it, and it ends with its
// standard input. Run it in test/mesh.
//
//	GET  /entries                           every state of every WorkloadEntry since the start, oldest first, as JSON
//	GET  /files?namespace=forum&group=forum istioctl's five files of a machine, name to content; the token is good for an hour
//	GET  /token?namespace=…&account=…&ttl=  a token of a service account
//	POST /apply                             the objects of a YAML stream
//	POST /istiod/kill, /istiod/start        start returns when it is ready
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"wingman/test/mesh"
	"wingman/test/mesh/binaries"
	"wingman/test/mesh/testbed"
)

const startTimeout = 2 * time.Minute

func main() {
	dir := flag.String("dir", "", "folder for logs, state and the socket; a short path")
	address := flag.String("address", "", "address at which machines reach istiod")
	stock := flag.Bool("stock", false, "send nothing that only Istio's build of Envoy has: for pilot-agent with another")
	flag.Parse()
	if err := run(*dir, *address, *stock); err != nil {
		fmt.Fprintln(os.Stderr, "controlplane:", err)
		os.Exit(1)
	}
}

func run(dir, address string, stock bool) error {
	at, err := netip.ParseAddr(address)
	if err != nil {
		return fmt.Errorf("-address: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	set, err := binaries.Get(ctx, os.Stderr)
	if err != nil {
		return err
	}
	starting, started := context.WithTimeout(ctx, startTimeout)
	defer started()
	o := mesh.Options{Binaries: set, Dir: dir, Objects: testbed.Objects}
	if stock {
		o.IstiodEnv = testbed.StockEnvoy
	}
	m, err := mesh.Start(starting, o)
	if err != nil {
		return err
	}
	defer m.Close()
	l, err := net.Listen("unix", filepath.Join(dir, "socket"))
	if err != nil {
		return err
	}
	h := &history{}
	failed := make(chan error, 2)
	go func() { failed <- h.follow(ctx, m.Kube) }()
	go func() { failed <- http.Serve(l, handler(m, h, at, dir)) }()
	go func() {
		_, err := io.Copy(io.Discard, os.Stdin)
		failed <- err
	}()
	fmt.Println("ready")
	return <-failed
}
