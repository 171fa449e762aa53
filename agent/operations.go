package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"wingman/agent/status"
	"wingman/bootstrap"
	"wingman/dnsproxy"
)

// errNoMember means that nothing of the membership stands yet.
var errNoMember = errors.New("the daemon is still starting: ask again in a second")

// explanation is the DNS proxy's, and how programs' questions come to it where no rule sends all of them.
type explanation struct {
	dnsproxy.Explanation
	Resolved string `json:"systemdResolved,omitempty"`
}

// operations are what the admin socket can be asked.
func (a *Agent) operations() status.Operations {
	return status.Operations{
		Status: a.report,
		Table:  a.names,
		Query: func(ctx context.Context, name, qtype string, explain bool) (status.DNSAnswer, error) {
			name = reverseOf(name, qtype)
			answer, err := query(ctx, listenAddrs(a.config())[0], name, qtype)
			if err != nil || !explain {
				return answer, err
			}
			why := explanation{}
			if why.Explanation, err = a.dns.Explain(ctx, name, dns.StringToType[strings.ToUpper(qtype)]); err != nil {
				return answer, fmt.Errorf("explain: %w", err)
			}
			if a.resolved != nil {
				why.Resolved = a.resolved.covered(name)
			}
			answer.Explain = why
			return answer, nil
		},
		Renew:   a.renew,
		Drain:   a.drain,
		Undrain: a.undrain,
		Health:  func() any { return a.verdicts.all() },
	}
}

// renew gets a new certificate now. A member that makes way meanwhile, as after a reload, hands the question on to its successor.
func (a *Agent) renew(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, renewTimeout)
	defer cancel()
	for {
		a.mu.Lock()
		m, next := a.member, a.nextMember
		a.mu.Unlock()
		if m == nil {
			return errNoMember
		}
		asking, giveUp := context.WithCancel(ctx)
		unfollow := context.AfterFunc(m.term, giveUp)
		err := m.identity.Renew(asking)
		unfollow()
		giveUp()
		if err == nil || m.term.Err() == nil || ctx.Err() != nil {
			return err
		}
		select {
		case <-next:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// gatherer collects the daemon's metrics and those of the membership in force.
func (a *Agent) gatherer() prometheus.Gatherer {
	return prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) {
		all := prometheus.Gatherers{a.metrics}
		if m := a.currentMember(); m != nil {
			all = append(all, m.metrics)
		}
		return all.Gather()
	})
}

func (a *Agent) currentMember() *member {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.member
}

func (a *Agent) isJoined() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.joined != nil
}

func (a *Agent) config() *bootstrap.Config {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.cfg
}

// names lists the table in use, and what is left out of it.
func (a *Agent) names(match string) ([]status.DNSName, error) {
	table := a.dns.Table()
	names, err := table.Names(match)
	if err != nil {
		return nil, fmt.Errorf("match %q: %w", match, err)
	}
	list := make([]status.DNSName, 0, len(names))
	for _, n := range names {
		d := status.DNSName{Host: n.Host, Namespace: n.Namespace, Registry: n.Registry, Addresses: []string{}}
		for _, addr := range n.Addrs {
			d.Addresses = append(d.Addresses, addr.String())
		}
		list = append(list, d)
	}
	for _, l := range table.LeftOut(match) {
		at, there := slices.BinarySearchFunc(list, l.Host, func(d status.DNSName, host string) int { return strings.Compare(d.Host, host) })
		if !there {
			list = slices.Insert(list, at, status.DNSName{Host: l.Host, Addresses: []string{}})
		}
		list[at].LeftOut = l.Why
	}
	return list, nil
}
