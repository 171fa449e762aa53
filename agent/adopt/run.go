package adopt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func run(ctx context.Context, argv ...string) (string, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", argv[0], err, strings.TrimSpace(errs.String()+out.String()))
	}
	return strings.TrimSpace(out.String()), nil
}

// forgetFlows has the kernel forget where it sent the DNS queries of each application to a port that is not the right one any more: an application that asks from the
// same port again and again would be sent there for ever.
func forgetFlows(port uint16) {
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		_, _ = netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, dnsFlow(port)) // without them the kernel forgets after 30 s of silence
	}
}

// dnsFlow is the port that answers.
type dnsFlow uint16

// MatchConntrackFlow is for netlink.
func (p dnsFlow) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	return f.Forward.Protocol == unix.IPPROTO_UDP && f.Forward.DstPort != uint16(p) && f.Reverse.SrcPort == uint16(p)
}

// probe is a client whose packets no hold is for.
var probe = http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: (&net.Dialer{Control: marked}).DialContext}}

func marked(_, _ string, c syscall.RawConn) error {
	var err error
	if e := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, probeMark) }); e != nil {
		return e
	}
	return err
}

func askHTTP(ctx context.Context, method, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return "", err
	}
	res, err := probe.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err == nil && res.StatusCode != http.StatusOK {
		err = errors.New(res.Status)
	}
	return string(body), err
}

// shed has an Envoy finish what it has begun: it tells its clients not to use their connections again, and calls hold once to keep new ones waiting, before the last
// look. It returns when no request is in flight, or after limit.
func shed(ctx context.Context, admin uint16, limit time.Duration, hold func() error) error {
	at := "http://127.0.0.1:" + strconv.Itoa(int(admin))
	_, _ = askHTTP(ctx, http.MethodPost, at+"/drain_listeners?graceful&skip_exit") // an Envoy that does not answer has nothing in flight that could be saved
	if err := hold(); err != nil {
		return err
	}
	calm := 0 // looks that found nothing in flight: a connection may have been accepted, and its request not been read yet
	_ = until(ctx, limit, func(ctx context.Context) (bool, string) {
		stats, err := askHTTP(ctx, http.MethodGet, at+"/stats?usedonly&filter=downstream_rq_active")
		if calm++; inFlight(stats) > 0 {
			calm = 0
		}
		return err != nil || calm > 5, ""
	})
	return nil
}

// inFlight adds up the gauges of requests in Envoy's statistics, but for those of its admin and Prometheus listeners.
func inFlight(stats string) (n int) {
	for line := range strings.Lines(stats) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), ": ")
		if !ok || !strings.HasPrefix(name, "http.") || strings.HasPrefix(name, "http.admin.") || strings.HasPrefix(name, "http.stats.") {
			continue
		}
		if v, err := strconv.Atoi(value); err == nil {
			n += v
		}
	}
	return n
}

// answersDNS reports whether the server at a port of this machine has names to answer from: before its first table pilot-agent fails every query.
func answersDNS(ctx context.Context, port uint16, name string) (bool, string) {
	q := new(dns.Msg)
	q.SetQuestion(dns.Fqdn(name), dns.TypeA)
	c := dns.Client{Timeout: time.Second, Dialer: &net.Dialer{Control: marked}}
	in, _, err := c.ExchangeContext(ctx, q, net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port))))
	if err != nil {
		return false, "DNS does not answer: " + err.Error()
	}
	return in.Rcode != dns.RcodeServerFailure, "DNS answers " + dns.RcodeToString[in.Rcode]
}
