package testbed

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/miekg/dns"

	"wingman/test/mesh/machine"
)

// Lookup asks the machine's resolver, as resolv.conf names it, for an A record, the way an application does: by UDP to port 53
// of that server. Whether the agent or the server answers is the capture rules' business.
func (v *VM) Lookup(ctx context.Context, name string) (*dns.Msg, error) {
	return lookup(ctx, v.Machine, name)
}

func lookup(ctx context.Context, m *machine.Machine, name string) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	c, err := m.Dial(ctx, "udp", netip.AddrPortFrom(m.Gateway(), 53).String())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return exchange(ctx, c, name)
}

func exchange(ctx context.Context, c net.Conn, name string) (*dns.Msg, error) {
	if deadline, ok := ctx.Deadline(); ok {
		if err := c.SetDeadline(deadline); err != nil {
			return nil, err
		}
	}
	q := new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.TypeA)
	conn := dns.Conn{Conn: c}
	if err := conn.WriteMsg(q); err != nil {
		return nil, fmt.Errorf("ask for %s: %w", name, err)
	}
	r, err := conn.ReadMsg()
	if err != nil {
		return nil, fmt.Errorf("answer for %s: %w", name, err)
	}
	return r, nil
}

// address takes the one address out of an answer.
func address(r *dns.Msg) (string, error) {
	if r.Rcode != dns.RcodeSuccess || len(r.Answer) != 1 {
		return "", fmt.Errorf("%s with %v, want one record", dns.RcodeToString[r.Rcode], r.Answer)
	}
	a, ok := r.Answer[0].(*dns.A)
	if !ok {
		return "", fmt.Errorf("answer is %v, want an A record", r.Answer)
	}
	return a.A.String(), nil
}

// Resolves returns nil when the machine's applications get exactly this address for a name.
func (v *VM) Resolves(ctx context.Context, name, want string) error {
	r, err := v.Lookup(ctx, name)
	if err != nil {
		return err
	}
	got, err := address(r)
	if err != nil || got != want {
		return fmt.Errorf("%s: want %s, got %q: %w", name, want, got, err)
	}
	return nil
}
