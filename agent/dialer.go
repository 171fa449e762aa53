package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Limits of finding and reaching istiod.
const (
	// lookupPatience is how long the system's resolver is waited for when istioctl's hosts file knows the name anyway.
	lookupPatience = 300 * time.Millisecond
	lookupTimeout  = 5 * time.Second
	// perAddress bounds one attempt at one address, so that a dead one does not eat the time of the next.
	perAddress = 4 * time.Second
)

// dialer reaches istiod. The system's own answer for its name comes first; istioctl's hosts file stands in where the system has
// none, or is slow to say so, so that nobody has to edit /etc/hosts.
type dialer struct {
	hosts  map[string][]netip.Addr // lower-case names without final dot
	lookup func(ctx context.Context, host string) ([]netip.Addr, error)
	dial   func(ctx context.Context, address string) (net.Conn, error)
}

func newDialer(hosts map[string][]netip.Addr) *dialer {
	var d net.Dialer
	return &dialer{
		hosts: hosts,
		lookup: func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		},
		dial: func(ctx context.Context, address string) (net.Conn, error) { return d.DialContext(ctx, "tcp", address) },
	}
}

// resolve returns the addresses to try for host, best first, without repetition.
func (d *dialer) resolve(ctx context.Context, host string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a}, nil
	}
	known := d.hosts[strings.ToLower(strings.TrimSuffix(host, "."))]
	patience := lookupTimeout
	if len(known) > 0 {
		patience = lookupPatience
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	addrs, err := d.lookup(ctx, host)
	if len(addrs) == 0 && len(known) == 0 {
		if err == nil {
			err = errors.New("no addresses")
		}
		return nil, fmt.Errorf("%s resolves neither by the system nor by istioctl's hosts file: %w", host, err)
	}
	var all []netip.Addr
	for _, a := range slices.Concat(addrs, known) {
		if a = a.Unmap(); !slices.Contains(all, a) {
			all = append(all, a)
		}
	}
	return all, nil
}

// Dial connects to the first address of host:port that answers.
func (d *dialer) Dial(ctx context.Context, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	addrs, err := d.resolve(ctx, host)
	if err != nil {
		return nil, err
	}
	var causes []error
	for _, a := range addrs {
		one, cancel := context.WithTimeout(ctx, perAddress)
		conn, err := d.dial(one, net.JoinHostPort(a.String(), port))
		cancel()
		if err == nil {
			return conn, nil
		}
		causes = append(causes, err)
	}
	return nil, errors.Join(causes...)
}
