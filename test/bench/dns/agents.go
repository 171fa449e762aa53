package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"wingman/agent/xds/nds"
	"wingman/test/controlplane"
	"wingman/test/files"
	"wingman/test/freeport"
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
	for typeURL, resources := range envoyResources() {
		istiod.SetResources(typeURL, resources)
	}
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
	port := freeport.Port()
	root := filepath.Join(b.dir, "wingman-root")
	if err := files.Write(root, b.plane.istiod, "127.0.0.53"); err != nil {
		return server{}, err
	}
	settings := fmt.Sprintf("workload: {addresses: [%s]}\ndns: {listen: \"127.0.0.1:%d\"}\nstatus: {port: %d}\ncapture: none\n", ownIP, port, freeport.Port())
	envoy := envoyPart{bootstrap: filepath.Join(root, "run/wingman/envoy/bootstrap.json"), socket: filepath.Join(root, "run/wingman/xds.sock")}
	return server{name: wingmanName, addr: fmt.Sprintf("127.0.0.1:%d", port), argv: []string{b.wingman, "run", "--root", root}, after: envoy.play}, files.Put(root, files.Wingman, settings)
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
	proxy := envoyPart{bootstrap: filepath.Join(root, "etc/istio/proxy/envoy-rev.json"), socket: filepath.Join(root, "etc/istio/proxy/XDS")}
	return server{
		name: "pilot-agent", addr: "127.0.0.1:15053", dir: root,
		argv: []string{"/bin/sh", "-c", "set -a; . ./" + files.ClusterEnv + "; exec " + path + " proxy"},
		env: []string{"PROV_CERT=./etc/certs", "OUTPUT_CERTS=./etc/certs", "INSTANCE_IP=" + istiosIP, "POD_NAME=forum-vm", "CA_ADDR=" + istiodHost + ":15012",
			"PROXY_CONFIG=binaryPath: " + envoy, "ISTIO_BOOTSTRAP=" + b.built.template},
		after: proxy.play,
	}, nil
}

// compareChanges notes what it costs the agents when one service of the mesh changes.
func (b *bench) compareChanges(ctx context.Context, servers []server) error {
	taken := map[string][]float64{}
	agents := agentsOf(servers)
	for _, s := range agents {
		if _, err := s.settle(ctx); err != nil {
			return err
		}
	}
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
	var changed []figure
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

// rest is how long servers are left alone before their memory is read: agents give back what a push took, some sooner, some later.
const rest = 20 * time.Second

// compareMemory notes the memory of all.
func (b *bench) compareMemory(ctx context.Context, servers []server) error {
	select {
	case <-time.After(rest):
	case <-ctx.Done():
		return ctx.Err()
	}
	var resident []figure
	for i := range servers {
		resident = append(resident, figure{server: servers[i].name, taken: []float64{servers[i].resident()}})
	}
	b.report.add(table{name: residentTable, unit: "MB", figures: resident})
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
