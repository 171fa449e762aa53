// Command kube-apiserver is the real Kubernetes API server and the etcd it stores in, as one process.
//
// ETCD_DATA_DIR names a folder for etcd: its data and its two unix sockets, so that it takes no port. Everything else is
// kube-apiserver's own command line, with --etcd-servers set here. SIGTERM ends the API server, then etcd.
//
// etcd writes without fsync: a test's cluster does not outlive its machine, and on a busy disk an fsync per write is most
// of the time that a start takes.
package main

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
)

// etcdReadyTimeout bounds the wait for etcd to elect itself, which takes a fraction of a second on an idle machine.
const etcdReadyTimeout = time.Minute

func main() {
	code, err := run()
	if err != nil {
		fmt.Fprintln(os.Stderr, "kube-apiserver:", err)
		code = 1
	}
	os.Exit(code)
}

func run() (exitCode int, err error) {
	dir := os.Getenv("ETCD_DATA_DIR")
	if dir == "" {
		return 0, errors.New("ETCD_DATA_DIR is not set: give etcd a folder of its own")
	}
	client, peer := socketURL(dir, "client.sock"), socketURL(dir, "peer.sock")

	cfg := embed.NewConfig()
	cfg.Dir = filepath.Join(dir, "data")
	cfg.ListenClientUrls, cfg.ListenPeerUrls = []url.URL{client}, []url.URL{peer}
	// What is advertised stays at its default: etcd insists on host:port there, and nobody reads it in a cluster of one.
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.TickMs, cfg.ElectionMs = 20, 200 // a cluster of one has no rivals to wait for
	cfg.UnsafeNoFsync = true
	cfg.LogLevel = "warn"

	etcd, err := embed.StartEtcd(cfg)
	if err != nil {
		return 0, fmt.Errorf("start etcd in %s: %w", dir, err)
	}
	defer etcd.Close()
	select {
	case <-etcd.Server.ReadyNotify():
	case err := <-etcd.Err():
		return 0, fmt.Errorf("start etcd in %s: %w", dir, err)
	case <-time.After(etcdReadyTimeout):
		return 0, fmt.Errorf("start etcd in %s: no leader after %v", dir, etcdReadyTimeout)
	}

	cmd := app.NewAPIServerCommand()
	cmd.SetArgs(append(os.Args[1:], "--etcd-servers="+client.String()))
	return cli.Run(cmd), nil
}

func socketURL(dir, name string) url.URL {
	return url.URL{Scheme: "unix", Path: filepath.Join(dir, name)}
}
