package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// server is a DNS server of one process.
type server struct {
	name string
	addr string // "127.0.0.1:port"
	argv []string
	cmd  *exec.Cmd
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

// start runs the server and waits until it answers.
func (s *server) start(ctx context.Context, dir string) error {
	log, err := os.Create(filepath.Join(dir, s.name+".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	s.cmd = exec.CommandContext(ctx, s.argv[0], s.argv[1:]...)
	s.cmd.Stdout, s.cmd.Stderr, s.cmd.Dir = log, log, dir
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		return err
	}
	deadline := time.Now().Add(20 * time.Second)
	for time.Now().Before(deadline) {
		if s.answers() {
			return nil
		}
	}
	text, _ := os.ReadFile(log.Name())
	return fmt.Errorf("no answer within 20 s; it says:\n%s", text)
}

// answers asks for one service.
func (s *server) answers() bool {
	resolver := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", s.addr)
	}}
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	addrs, err := resolver.LookupHost(ctx, host(1)+".")
	return err == nil && len(addrs) == 1 && addrs[0] == address(1)
}

func (s *server) stop() {
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
}

// cpu is the processor time that the process's threads have used: from schedstat, in nanoseconds, for the 10 ms ticks of stat
// miss work that is done in between. A thread that ended is missing; servers keep theirs.
func (s *server) cpu() (time.Duration, error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", s.cmd.Process.Pid))
	if err != nil || len(files) == 0 {
		return 0, fmt.Errorf("processor time of %s: no schedstat: %w", s.name, err)
	}
	total := time.Duration(0)
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return 0, err
		}
		first, _, _ := strings.Cut(string(text), " ")
		ns, err := strconv.ParseInt(first, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", file, err)
		}
		total += time.Duration(ns)
	}
	return total, nil
}

// resident is the process's memory in MB (10^6 bytes).
func (s *server) resident() float64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == "VmRSS:" {
			kib, _ := strconv.ParseFloat(fields[1], 64)
			return kib * 1024 / 1e6
		}
	}
	return 0
}

// writeInputs writes the services in the words of each server.
func (b *bench) writeInputs() error {
	var table, hosts, zone, data strings.Builder
	table.WriteString(`{"table":{`)
	fmt.Fprintf(&zone, "$ORIGIN %s.\n@ 3600 SOA ns root 1 3600 600 86400 30\n@ 3600 NS ns\nns 3600 A 127.0.0.1\n", domain)
	for i := range services {
		if i > 0 {
			table.WriteByte(',')
		}
		fmt.Fprintf(&table, "\n%q:{\"ips\":[%q],\"registry\":\"Kubernetes\",\"shortname\":\"service-%d\",\"namespace\":\"namespace-%d\"}", host(i), address(i), i, i%namespaces)
		fmt.Fprintf(&hosts, "%s %s\n", address(i), host(i))
		fmt.Fprintf(&zone, "%s. 30 A %s\n", host(i), address(i))
		fmt.Fprintf(&data, "local-data: \"%s. 30 IN A %s\"\n", host(i), address(i))
	}
	table.WriteString("}}\n")
	const miss = "$ORIGIN miss.example.\n@ 3600 SOA ns root 1 3600 600 86400 30\n@ 3600 NS ns\nns 3600 A 127.0.0.1\n* 300 A 192.0.2.1\n"
	for name, text := range map[string]string{"table.json": table.String(), "hosts": hosts.String(), "zone": zone.String(), "miss": miss,
		"unbound-data": "server:\nlocal-zone: \"" + domain + ".\" static\n" + data.String()} {
		if err := os.WriteFile(filepath.Join(b.dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// freeAddr is a loopback address where nobody listens now, by UDP or TCP: below the ports that the kernel gives to clients, of
// which there are many here.
func freeAddr() string {
	for {
		addr := fmt.Sprintf("127.0.0.1:%d", 20_000+rand.IntN(10_000))
		udp, err := net.ListenPacket("udp", addr)
		if err != nil {
			continue
		}
		tcp, err := net.Listen("tcp", addr)
		udp.Close()
		if err == nil {
			tcp.Close()
			return addr
		}
	}
}

func (b *bench) wingmanServer(upstream string) server {
	addr := freeAddr()
	return server{name: "wingman", addr: addr, argv: []string{b.wingman, "dns", "serve", "--table", filepath.Join(b.dir, "table.json"), "--listen", addr,
		"--upstream", upstream, "--namespace", "namespace-1", "--domain", domain}}
}

// peer makes the server of a name.
func (b *bench) peer(name string) (server, error) {
	addr := freeAddr()
	_, port, _ := net.SplitHostPort(addr)
	find := func(program string) (string, error) {
		for _, dir := range []string{"", "/usr/sbin/", "/usr/local/sbin/"} {
			if path, err := exec.LookPath(dir + program); err == nil {
				return path, nil
			}
		}
		return "", fmt.Errorf("%s: %w", program, errNotInstalled)
	}
	switch name {
	case "knot":
		path, err := find("knotd")
		if err != nil {
			return server{}, err
		}
		conf, err := b.knotConf("knot", port, domain, "zone")
		return server{name: name, addr: addr, argv: []string{path, "-c", conf}}, err
	case "unbound":
		path, err := find("unbound")
		if err != nil {
			return server{}, err
		}
		conf := filepath.Join(b.dir, "unbound.conf")
		text := fmt.Sprintf("include: %q\nserver:\n interface: 127.0.0.1@%s\n port: %s\n do-daemonize: no\n use-syslog: no\n logfile: \"\"\n chroot: \"\"\n username: \"\"\n pidfile: \"\"\n directory: %q\nremote-control:\n control-enable: no\n",
			filepath.Join(b.dir, "unbound-data"), port, port, b.dir)
		return server{name: name, addr: addr, argv: []string{path, "-d", "-c", conf}}, os.WriteFile(conf, []byte(text), 0o644)
	case "dnsmasq":
		path, err := find("dnsmasq")
		return server{name: name, addr: addr, argv: []string{path, "-k", "-C", "/dev/null", "-p", port, "--no-resolv", "--no-hosts", "--addn-hosts=" + filepath.Join(b.dir, "hosts"),
			"--listen-address=127.0.0.1", "--bind-interfaces", "--pid-file", "--log-facility=-", "--user=root"}}, err
	}
	return server{}, fmt.Errorf("%w: known are knot, unbound, dnsmasq", errNotInstalled)
}

// knotConf writes a configuration of Knot DNS that serves one zone on port.
func (b *bench) knotConf(name, port, zone, file string) (string, error) {
	dir := filepath.Join(b.dir, name)
	if err := os.MkdirAll(filepath.Join(dir, "db"), 0o755); err != nil {
		return "", err
	}
	conf := filepath.Join(b.dir, name+".conf")
	text := fmt.Sprintf("server:\n  rundir: %[1]q\n  listen: 127.0.0.1@%[2]s\n  udp-workers: 2\n  tcp-workers: 2\n  background-workers: 2\nlog:\n  - target: stderr\n    any: warning\ndatabase:\n  storage: %[1]q\nzone:\n  - domain: %[3]s\n    file: %[4]q\n    zonefile-sync: -1\n    journal-content: none\n",
		dir, port, zone, filepath.Join(b.dir, file))
	return conf, os.WriteFile(conf, []byte(text), 0o644)
}

// upstream answers for every name under miss.example: a Knot of its own, cheap enough not to be what is measured.
type upstreamServer struct{ server }

func (b *bench) startUpstream(ctx context.Context) (*upstreamServer, error) {
	s, err := b.peer("knot")
	if err != nil {
		return nil, err
	}
	_, port, _ := net.SplitHostPort(s.addr)
	conf, err := b.knotConf("upstream", port, "miss.example", "miss")
	if err != nil {
		return nil, err
	}
	u := &upstreamServer{server{name: "upstream", addr: s.addr, argv: []string{s.argv[0], "-c", conf}}}
	u.cmd = exec.CommandContext(ctx, u.argv[0], u.argv[1:]...)
	u.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return u, u.cmd.Start()
}
