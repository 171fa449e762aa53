package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"

	"wingman/agent/xds/nds"
	"wingman/test/controlplane"
	"wingman/test/files"
)

// plane is the control plane that both agents are members of.
type plane struct {
	istiod *controlplane.Server
	names  *nds.NameTable
	turn   int // changes so far
}

func newPlane() (*plane, error) {
	istiod, err := controlplane.New(controlplane.Config{Addr: istiodAddr})
	if err != nil {
		return nil, err
	}
	hosts := map[string][]string{}
	for i := range services {
		hosts[host(i)] = []string{address(i)}
	}
	p := &plane{istiod: istiod, names: controlplane.Names(hosts)}
	istiod.SetNames(p.names)
	files.AddGroup(istiod)
	return p, istiod.Start()
}

// change gives the first service another address, and pushes the table. It returns the address.
func (p *plane) change() string {
	p.turn++
	addr := fmt.Sprintf("10.200.0.%d", p.turn)
	p.names.Table[host(1)].Ips = []string{addr}
	p.istiod.SetNames(p.names)
	return addr
}

// restore undoes the changes.
func (p *plane) restore() string {
	p.names.Table[host(1)].Ips = []string{address(1)}
	p.istiod.SetNames(p.names)
	return address(1)
}

const wingmanName = "wingman"

// wingmanServer is the whole daemon, with istioctl's files below a root of its own.
func (b *bench) wingmanServer() (server, error) {
	port := freePort()
	root := filepath.Join(b.dir, "wingman-root")
	if err := files.Write(root, b.plane.istiod, "127.0.0.53"); err != nil {
		return server{}, err
	}
	settings := fmt.Sprintf("workload: {addresses: [%s]}\ndns: {listen: \"127.0.0.1:%s\"}\nstatus: {port: %s}\ncapture: none\n", ownIP, port, freePort())
	return server{name: wingmanName, addr: "127.0.0.1:" + port, argv: []string{b.wingman, "run", "--root", root}}, files.Put(root, files.Wingman, settings)
}

// pilotAgent is the whole of Istio's agent, started as its package starts it but for Envoy, whose part the bench takes.
func (b *bench) pilotAgent(path string) (server, error) {
	root := filepath.Join(b.dir, "pilot-agent-root")
	if err := files.Write(root, b.plane.istiod, "127.0.0.53"); err != nil {
		return server{}, err
	}
	for _, dir := range []string{"etc/istio/proxy", "var/lib/istio/data"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return server{}, err
		}
	}
	envoy := filepath.Join(root, "envoy")
	if err := os.WriteFile(envoy, []byte("#!/bin/sh\nexec sleep infinity\n"), 0o755); err != nil {
		return server{}, err
	}
	return server{
		name: "pilot-agent", addr: "127.0.0.1:15053", dir: root,
		argv: []string{"/bin/sh", "-c", "set -a; . ./" + files.ClusterEnv + "; exec " + path + " proxy"},
		env: []string{"PROV_CERT=./etc/certs", "OUTPUT_CERTS=./etc/certs", "INSTANCE_IP=" + istiosIP, "POD_NAME=forum-vm", "CA_ADDR=" + istiodHost + ":15012",
			"PROXY_CONFIG=binaryPath: " + envoy, "ISTIO_BOOTSTRAP=" + b.built.template},
		after: func(ctx context.Context) (func(), error) {
			return playEnvoy(ctx, filepath.Join(root, "etc/istio/proxy"))
		},
	}, nil
}

// playEnvoy subscribes to listeners at pilot-agent's socket: only then does pilot-agent ask for names. It takes in what comes
// until stop is called.
func playEnvoy(ctx context.Context, dir string) (stop func(), err error) {
	node, err := awaitNode(ctx, filepath.Join(dir, "envoy-rev.json"))
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient("unix:"+filepath.Join(dir, "XDS"), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		return nil, err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for conn.GetState().String() != "SHUTDOWN" {
			if err := subscribe(conn, node); errors.Is(err, errRefused) {
				fmt.Fprintln(os.Stderr, "bench: pilot-agent:", err)
				return
			}
		}
	}()
	return func() { conn.Close(); <-ended }, nil
}

var errRefused = errors.New("it refuses the stream")

// subscribe keeps one stream for as long as it lasts.
func subscribe(conn *grpc.ClientConn, node *corev3.Node) error {
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(context.Background())
	if err != nil {
		return err
	}
	const listeners = "type.googleapis.com/envoy.config.listener.v3.Listener"
	if err := stream.Send(&discoveryv3.DeltaDiscoveryRequest{Node: node, TypeUrl: listeners}); err != nil {
		return err
	}
	for {
		r, err := stream.Recv()
		switch {
		case err == nil:
		case errors.Is(err, io.EOF), status.Code(err) == codes.Unavailable, status.Code(err) == codes.Canceled:
			return err
		default:
			return fmt.Errorf("%w: %w", errRefused, err)
		}
		if err := stream.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.TypeUrl, ResponseNonce: r.Nonce}); err != nil {
			return err
		}
	}
}

// awaitNode reads who pilot-agent says that Envoy is.
func awaitNode(ctx context.Context, bootstrap string) (*corev3.Node, error) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		var file struct{ Node json.RawMessage }
		raw, err := os.ReadFile(bootstrap)
		if err == nil {
			err = json.Unmarshal(raw, &file)
		}
		if err == nil {
			node := new(corev3.Node)
			return node, protojson.Unmarshal(file.Node, node)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("pilot-agent made no bootstrap file: %w", err)
		case <-tick.C:
		}
	}
}

// compareChanges notes the memory of all, and what it costs the agents when one service of the mesh changes.
func (b *bench) compareChanges(ctx context.Context, servers []server) error {
	var resident, changed []figure
	for i := range servers {
		if _, err := servers[i].settle(ctx); err != nil {
			return err
		}
		resident = append(resident, figure{server: servers[i].name, taken: []float64{servers[i].resident()}})
	}
	b.report.add(table{name: residentTable, unit: "MB", figures: resident})
	taken := map[string][]float64{}
	agents := agentsOf(servers)
	for range max(b.rounds, 5) {
		before := make([]time.Duration, len(agents))
		for i, s := range agents {
			var err error
			if before[i], err = s.cpu(); err != nil {
				return err
			}
		}
		want := b.plane.change()
		for i, s := range agents {
			if err := awaitChange(ctx, s, want); err != nil {
				return err
			}
			after, err := s.settle(ctx)
			if err != nil {
				return err
			}
			taken[s.name] = append(taken[s.name], float64(after-before[i])/1e6)
		}
	}
	for _, s := range agents {
		changed = append(changed, figure{server: s.name, taken: taken[s.name]})
	}
	b.report.add(table{name: changeTable, unit: "ms of CPU", figures: changed})
	want := b.plane.restore()
	for _, s := range agents {
		if err := awaitChange(ctx, s, want); err != nil {
			return err
		}
	}
	return nil
}

func awaitChange(ctx context.Context, s *server, want string) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	return s.await(ctx, want)
}

// agentsOf are those servers that hear of changes from the control plane.
func agentsOf(servers []server) (agents []*server) {
	for i := range servers {
		if servers[i].name == wingmanName || servers[i].name == "pilot-agent" {
			agents = append(agents, &servers[i])
		}
	}
	return agents
}
