package dnsproxy

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/miekg/dns"
)

// Explanation says how a question was answered and why, in the JSON of `wingman dns query --explain`.
type Explanation struct {
	Name         string  `json:"name"`
	Type         string  `json:"type"`
	TableVersion string  `json:"tableVersion"` // "" without a table
	Rule         string  `json:"rule"`         // exact, short form, wildcard, address, search list, non-terminal, localhost; "" if not the mesh's
	Host         string  `json:"host,omitempty"`
	Registry     string  `json:"registry,omitempty"`
	Suffix       string  `json:"searchSuffix,omitempty"` // of the search list that was taken off the name
	Answer       Outcome `json:"answer"`
	Without      Outcome `json:"withoutAgent"` // what the upstream resolvers say to the same question
}

// Outcome is an answer and where it came from.
type Outcome struct {
	Source   string        `json:"source"` // as in the metrics
	Rcode    string        `json:"rcode"`
	Records  []string      `json:"records,omitempty"` // zone file format
	Errors   []string      `json:"errors,omitempty"`  // extended errors (RFC 8914)
	Upstream string        `json:"upstream,omitempty"`
	Took     time.Duration `json:"tookNanoseconds"`
}

// trace is what a flight notes for Explain.
type trace struct {
	raw    bool // the upstream's answer as it is, the mesh not consulted
	from   source
	server string
}

// Explain asks the server a question as a client would, and upstream the same question, and tells both answers. It blocks
// until both are there, at most ForwardTimeout each.
func (s *Server) Explain(ctx context.Context, name string, qtype uint16) (Explanation, error) {
	name = dns.Fqdn(name)
	key, err := keyOf(name)
	if err != nil {
		return Explanation{}, err
	}
	t := s.Table()
	e := Explanation{Name: name, Type: dns.Type(qtype).String(), TableVersion: t.Version()}
	e.tell(t, key, s.forward.searchList())

	msg := new(dns.Msg).SetQuestion(name, qtype).SetEdns0(maxUDP, false)
	if e.Answer, err = s.try(ctx, msg, t, trace{}); err != nil {
		return e, err
	}
	if e.Rule == "" && e.Answer.Source == fromMesh.String() {
		e.Rule = string(ruleNonTerminal)
	}
	e.Without, err = s.try(ctx, msg, nil, trace{raw: true})
	return e, err
}

// tell fills in by which rule the table knows the key.
func (e *Explanation) tell(t *Table, key []byte, search [][]byte) {
	svc, by := t.resolve(key)
	switch {
	case svc != nil:
		e.Rule = string(by)
	case isLocalhost(key):
		e.Rule = string(ruleLocalhost)
	case t != nil:
		var target []byte
		if svc, target = t.completed(key, search); svc != nil {
			e.Rule, e.Suffix = string(ruleSearch), nameOf(key[len(target):])
		}
	}
	if svc != nil {
		e.Host, e.Registry = svc.Host, svc.Registry
	}
}

// try puts one question through the way of a client's.
func (s *Server) try(ctx context.Context, question *dns.Msg, t *Table, note trace) (Outcome, error) {
	question.Id = randomID()
	msg, err := question.Pack()
	if err != nil {
		return Outcome{}, fmt.Errorf("question %s: %w", question.Question[0].Name, err)
	}
	began := time.Now()
	later := make(chanReplier, 1)
	w := waiter{msg: msg, limit: maxTCP, via: overTCP, to: later, trace: &note}
	if note.raw {
		q := newUpstreamQuery(msg)
		s.forward.ask(w, &q)
	} else if d := s.decide(t, msg, overTCP); d.ask != nil {
		s.forward.ask(w, d.ask)
	} else {
		note.from = d.from
		later <- d.reply
	}
	s.forward.flush()
	select {
	case <-ctx.Done():
		return Outcome{}, ctx.Err()
	case reply := <-later:
		return outcome(reply, note, time.Since(began))
	}
}

func outcome(reply []byte, note trace, took time.Duration) (Outcome, error) {
	m := new(dns.Msg)
	if err := m.Unpack(reply); err != nil {
		return Outcome{}, fmt.Errorf("answer: %w", err)
	}
	o := Outcome{Source: note.from.String(), Rcode: dns.RcodeToString[m.Rcode], Upstream: note.server, Took: took}
	for _, rr := range m.Answer {
		o.Records = append(o.Records, rr.String())
	}
	if opt := m.IsEdns0(); opt != nil {
		for _, option := range opt.Option {
			if ede, ok := option.(*dns.EDNS0_EDE); ok {
				o.Errors = append(o.Errors, ede.String())
			}
		}
	}
	return o, nil
}

// chanReplier hands an answer to whoever asked within this process. It has room for it.
type chanReplier chan []byte

func (c chanReplier) reply(msg []byte) { c <- msg }

// rotation is a number to choose the first address by: random, for a counter would run in step with clients that ask for A
// and AAAA in turn.
func rotation() uint32 { return rand.Uint32() }
