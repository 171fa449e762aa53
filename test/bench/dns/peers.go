package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"wingman/test/freeport"
)

// built are the peers that come from Go modules; empty paths for those that could not be built.
type built struct {
	coredns    string
	pilotAgent string
	template   string // pilot-agent's for Envoy's bootstrap file
}

// build makes what it can and says what it could not.
func build(ctx context.Context, dir string, peers []string) (b built) {
	want := func(name string, make func() error) {
		for _, p := range peers {
			if p == name {
				if err := make(); err != nil {
					fmt.Fprintf(os.Stderr, "bench: build %s: %v\n", name, err)
				}
			}
		}
	}
	want("coredns", func() error {
		out := filepath.Join(dir, "coredns")
		if _, err := goRun(ctx, "test/bench/dns/coredns", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, "."); err != nil {
			return err
		}
		b.coredns = out
		return nil
	})
	want("pilot-agent", func() error {
		list, err := goRun(ctx, "test/mesh", "run", "./cmd/fetch")
		for line := range strings.Lines(list) {
			switch name, path, _ := strings.Cut(strings.TrimSpace(line), " "); name {
			case "pilot-agent":
				b.pilotAgent = path
			case "envoy-bootstrap":
				b.template = path
			}
		}
		return err
	})
	return b
}

// goRun runs the go command in a folder of the repository and returns what it prints.
func goRun(ctx context.Context, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	var stdout bytes.Buffer
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = dir, append(os.Environ(), "CGO_ENABLED=0"), &stdout, os.Stderr
	err := cmd.Run()
	return stdout.String(), err
}

// services in namespaces, as in a large cluster.
const (
	services   = 10_000
	namespaces = 100
	domain     = "svc.cluster.local"
)

func host(i int) string {
	return fmt.Sprintf("service-%d.namespace-%d.%s", i, i%namespaces, domain)
}

func address(i int) string { return fmt.Sprintf("10.96.%d.%d", i>>8, i&0xff) }

// writeInputs writes the services in the words of each server.
func (b *bench) writeInputs() error {
	var hosts, zone, data strings.Builder
	fmt.Fprintf(&zone, "$ORIGIN %s.\n@ 3600 SOA ns root 1 3600 600 86400 30\n@ 3600 NS ns\nns 3600 A 127.0.0.1\n", domain)
	for i := range services {
		fmt.Fprintf(&hosts, "%s %s\n", address(i), host(i))
		fmt.Fprintf(&zone, "%s. 30 A %s\n", host(i), address(i))
		fmt.Fprintf(&data, "local-data: \"%s. 30 IN A %s\"\n", host(i), address(i))
	}
	const miss = "$ORIGIN miss.example.\n@ 3600 SOA ns root 1 3600 600 86400 30\n@ 3600 NS ns\nns 3600 A 127.0.0.1\n* 300 A 192.0.2.1\n"
	for name, text := range map[string]string{"services": hosts.String(), "zone": zone.String(), "miss": miss,
		"unbound-data": "server:\nlocal-zone: \"" + domain + ".\" static\n" + data.String()} {
		if err := os.WriteFile(filepath.Join(b.dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// peer makes the server of a name. It is not running yet.
func (b *bench) peer(name string) (server, error) {
	port := fmt.Sprint(freeport.Port())
	s := server{name: name, addr: "127.0.0.1:" + port}
	path, err := program(map[string]string{"knot": "knotd", "coredns": b.built.coredns, "pilot-agent": b.built.pilotAgent}, name)
	if err != nil {
		return s, err
	}
	conf := filepath.Join(b.dir, name+".conf")
	switch name {
	case "knot":
		s.argv = []string{path, "-c", conf}
		return s, b.writeKnotConf(name, s.addr, domain, "zone")
	case "unbound":
		s.argv = []string{path, "-d", "-c", conf}
		text := fmt.Sprintf("include: %q\nserver:\n interface: 127.0.0.1@%s\n port: %s\n do-daemonize: no\n use-syslog: no\n logfile: \"\"\n chroot: \"\"\n username: \"\"\n pidfile: \"\"\n directory: %q\n"+
			" module-config: \"iterator\"\n do-not-query-localhost: no\nforward-zone:\n name: \".\"\n forward-addr: %s\nremote-control:\n control-enable: no\n",
			filepath.Join(b.dir, "unbound-data"), port, port, b.dir, strings.Replace(upstreamAddr, ":", "@", 1))
		return s, os.WriteFile(conf, []byte(text), 0o644)
	case "dnsmasq":
		s.argv = []string{path, "-k", "-C", "/dev/null", "-p", port, "--no-resolv", "--no-hosts", "--addn-hosts=" + filepath.Join(b.dir, "services"), "--cache-size=10000",
			"--server=" + strings.Replace(upstreamAddr, ":", "#", 1), "--listen-address=127.0.0.1", "--bind-interfaces", "--pid-file", "--log-facility=-", "--user=root"}
		return s, nil
	case "coredns":
		s.argv = []string{path, "-conf", conf}
		text := fmt.Sprintf(".:%s {\n bind 127.0.0.1\n errors\n hosts %s %s {\n  ttl 30\n }\n cache 3600 miss.example\n forward . %s\n}\n", port, filepath.Join(b.dir, "services"), domain, upstreamAddr)
		return s, os.WriteFile(conf, []byte(text), 0o644)
	case "pilot-agent":
		return b.pilotAgent(path)
	}
	return s, fmt.Errorf("%w: known are knot, unbound, dnsmasq, coredns and pilot-agent", errNotThere)
}

// program finds the executable of a peer, which has its name unless another is given.
func program(others map[string]string, name string) (string, error) {
	other, renamed := others[name]
	if renamed {
		if name = other; name == "" {
			return "", fmt.Errorf("%w: it was not built", errNotThere)
		}
	}
	for _, dir := range []string{"", "/usr/sbin/", "/usr/local/sbin/"} {
		if path, err := exec.LookPath(dir + name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%w: %s is not installed", errNotThere, name)
}

// writeKnotConf writes a configuration of Knot DNS that serves one zone.
func (b *bench) writeKnotConf(name, addr, zone, file string) error {
	dir := filepath.Join(b.dir, name)
	if err := os.MkdirAll(filepath.Join(dir, "db"), 0o755); err != nil {
		return err
	}
	text := fmt.Sprintf("server:\n  rundir: %[1]q\n  listen: %[2]s\n  udp-workers: 2\n  tcp-workers: 2\n  background-workers: 2\nlog:\n  - target: stderr\n    any: warning\ndatabase:\n  storage: %[1]q\nzone:\n  - domain: %[3]s\n    file: %[4]q\n    zonefile-sync: -1\n    journal-content: none\n",
		dir, strings.Replace(addr, ":", "@", 1), zone, filepath.Join(b.dir, file))
	return os.WriteFile(filepath.Join(b.dir, name+".conf"), []byte(text), 0o644)
}

// startUpstream starts the server of all names under miss.example: a Knot of its own, cheap enough not to be what is measured.
func (b *bench) startUpstream(ctx context.Context) (*server, error) {
	path, err := program(nil, "knotd")
	if err != nil {
		return nil, err
	}
	s := &server{name: "upstream", addr: upstreamAddr, argv: []string{path, "-c", filepath.Join(b.dir, "upstream.conf")}}
	if err := b.writeKnotConf(s.name, upstreamAddr, "miss.example", "miss"); err != nil {
		return nil, err
	}
	return s, s.launch(ctx, b.dir)
}
