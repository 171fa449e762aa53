package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/miekg/dns"
	"google.golang.org/protobuf/encoding/protojson"

	"wingman/agent/status"
	"wingman/agent/xds/nds"
	"wingman/bootstrap"
	"wingman/dnsproxy"
)

// DNSServer is the DNS proxy alone, with a table from a file: for tests, benchmarks and debugging.
type DNSServer struct {
	Root      string   // folder that stands for "/"
	Table     string   // file: a NameTable in protojson
	Listen    string   // address, UDP and TCP
	Upstreams []string // address, with or without a port; none: those of /etc/resolv.conf
	Namespace string   // whose services have names of one label
	Domain    string   // of Kubernetes services
	LogLevel  string
	Stderr    *os.File
	Getenv    func(string) string

	listen    netip.AddrPort
	upstreams []netip.AddrPort
}

// Check reads the flags: every wrong one is in the error. Run comes after it.
func (s *DNSServer) Check() error {
	var errs []error
	if s.Table == "" {
		errs = append(errs, errors.New("--table FILE is missing: a NameTable in protojson"))
	}
	var err error
	if s.listen, err = netip.ParseAddrPort(strings.Replace(s.Listen, "localhost:", "127.0.0.1:", 1)); err != nil {
		errs = append(errs, fmt.Errorf("--listen %q: expected an address and port such as 127.0.0.1:15053", s.Listen))
	}
	for _, u := range s.Upstreams {
		a, err := parseServer(u)
		if err != nil {
			errs = append(errs, fmt.Errorf("--upstream %q: expected a server's address, with a port if it is not 53", u))
		}
		s.upstreams = append(s.upstreams, a)
	}
	if _, ok := levelNames[s.LogLevel]; !ok {
		errs = append(errs, fmt.Errorf("--log-level %q: expected debug, info, warn, error or none", s.LogLevel))
	}
	return errors.Join(errs...)
}

// Run serves until ctx ends.
func (s *DNSServer) Run(ctx context.Context) error {
	table, err := loadTable(s.Table, dnsproxy.TableConfig{Namespace: s.Namespace, Domain: s.Domain})
	if err != nil {
		return err
	}
	logs, err := newLogs(bootstrap.Log{Level: s.LogLevel, Format: "text"}, s.Stderr, s.Getenv)
	if err != nil {
		return err
	}
	udp, tcp, err := dnsproxy.Listen(s.listen)
	if err != nil {
		return err
	}
	defer udp.Close()
	defer tcp.Close()
	server, err := dnsproxy.New(dnsproxy.Config{
		UDP:        []*net.UDPConn{udp},
		TCP:        []*net.TCPListener{tcp},
		Upstreams:  s.upstreams,
		ResolvConf: bootstrap.DefaultPaths(s.Root).ResolvConf,
		Log:        logs.part("dns"),
	})
	if err != nil {
		return err
	}
	if list := table.LeftOut(""); len(list) > 0 {
		logs.part("dns").Warn(leftOutMessage, "entries", len(list), "which", theFirst(list))
	}
	server.Replace(table)
	return server.Run(ctx)
}

// parseServer accepts an address with or without a port.
func parseServer(s string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(a, 53), nil
	}
	return netip.ParseAddrPort(s)
}

// loadTable reads a NameTable in protojson.
func loadTable(path string, cfg dnsproxy.TableConfig) (*dnsproxy.Table, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var m nds.NameTable
	// The file may be one that istiod's debug port printed, with its "@type".
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("%s is not a NameTable in protojson: %w", path, err)
	}
	t, err := dnsproxy.NewTable(cfg, namesOf(&m))
	if err == nil {
		err = usable(t)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return t, nil
}

// queryTimeout is a little more than the proxy itself takes before it gives up.
const queryTimeout = 6 * time.Second

// reverseOf is the name that a PTR question for an address asks for; any other name stays.
func reverseOf(name, qtype string) string {
	if reverse, err := dns.ReverseAddr(name); err == nil && strings.EqualFold(qtype, "PTR") {
		return reverse
	}
	return name
}

// query asks a DNS server one question, over UDP, and over TCP when the answer did not fit.
func query(ctx context.Context, server netip.AddrPort, name, qtype string) (status.DNSAnswer, error) {
	t, ok := dns.StringToType[strings.ToUpper(qtype)]
	if !ok {
		return status.DNSAnswer{}, fmt.Errorf("type %q: expected one such as A, AAAA or PTR", qtype)
	}
	if _, ok := dns.IsDomainName(name); !ok || name == "" {
		return status.DNSAnswer{}, fmt.Errorf("name %q: expected a host name", name)
	}
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	q := new(dns.Msg)
	q.SetQuestion(dns.Fqdn(name), t)
	q.SetEdns0(1232, false)
	var (
		in    *dns.Msg
		took  time.Duration
		total time.Duration
		err   error
	)
	for _, network := range []string{"udp", "tcp"} {
		c := dns.Client{Net: network, Timeout: queryTimeout}
		in, took, err = c.ExchangeContext(ctx, q, server.String())
		total += took
		if err != nil || !in.Truncated {
			break
		}
	}
	if err != nil {
		return status.DNSAnswer{}, fmt.Errorf("the DNS proxy did not answer (%w): see wingman status", err)
	}
	a := status.DNSAnswer{
		Question: q.Question[0].Name + " " + dns.TypeToString[t],
		RCode:    dns.RcodeToString[in.Rcode],
		Answers:  []string{},
		Micros:   total.Microseconds(),
	}
	for _, rr := range in.Answer {
		a.Answers = append(a.Answers, strings.ReplaceAll(rr.String(), "\t", " "))
	}
	return a, nil
}
