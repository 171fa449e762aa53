package dnsproxy

import (
	"slices"

	"github.com/miekg/dns"
)

// A client completes a name by the search list of resolv.conf before it asks (forum.corp.example for forum), and Istio's
// agent answers such a question, for the first suffix, by a CNAME to the mesh's name, never asking upstream. That hides
// whatever the company really has by that name. Here the suffixes of the cluster's domain are answered at once, for nobody
// else speaks for them; for other suffixes upstream has the first word, and only if it knows no such name, or says nothing at
// all, does the client get the mesh's. Either way all suffixes count, not the first alone.

// clusterReply answers a name completed by a search suffix within the cluster's domain; nil if the name is none.
func (f *forwarder) clusterReply(t *Table, w waiter, req *dns.Msg) []byte {
	if t == nil || t.domain == nil {
		return nil
	}
	return f.completedReply(t, w, req, func(suffix []byte) bool { return isBelow(suffix, t.domain) })
}

// searchReply answers a name completed by any search suffix; nil if the name is none.
func (f *forwarder) searchReply(t *Table, w waiter) []byte {
	if t == nil {
		return nil
	}
	req, err := unpackQuery(w.msg)
	if err != nil || len(req.Question) != 1 {
		return nil
	}
	return f.completedReply(t, w, req, func([]byte) bool { return true })
}

func (f *forwarder) completedReply(t *Table, w waiter, req *dns.Msg, counts func(suffix []byte) bool) []byte {
	if req.Question[0].Qclass != dns.ClassINET {
		return nil
	}
	key, err := keyOf(req.Question[0].Name)
	if err != nil {
		return nil
	}
	s, target := t.completed(key, slices.DeleteFunc(f.searchList(), func(k []byte) bool { return !counts(k) }))
	if s == nil {
		return nil
	}
	return pack(t.answerCompleted(req, s, target), w.limit)
}

func (f *forwarder) searchList() [][]byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.conf.search)
}

// completed finds the mesh's name that key is after one of the suffixes is taken off.
func (t *Table) completed(key []byte, search [][]byte) (s *service, target []byte) {
	for _, suffix := range search {
		if len(suffix) >= len(key) || !isBelow(key, suffix) {
			continue
		}
		target = key[:len(key)-len(suffix)]
		if s, _ := t.find(target); s != nil {
			return s, target
		}
	}
	return nil, nil
}

// answerCompleted answers by a CNAME to the mesh's name, with the records it has (as Istio pkg/dns/client/dns.go does).
func (t *Table) answerCompleted(req *dns.Msg, s *service, target []byte) *dns.Msg {
	question := &req.Question[0]
	name := nameOf(target)
	reply := newReply(req, dns.RcodeSuccess)
	reply.Authoritative = true
	reply.Answer = []dns.RR{&dns.CNAME{
		Hdr:    dns.RR_Header{Name: question.Name, Rrtype: dns.TypeCNAME, Class: dns.ClassINET, Ttl: tableTTL},
		Target: name,
	}}
	if question.Qtype == dns.TypeCNAME || question.Qtype == dns.TypeANY {
		return reply // which has what was asked for (RFC 1034 section 3.6.2)
	}
	records := t.records(s, ruleExact, name, question.Qtype)
	if len(records) == 0 {
		reply.Ns = []dns.RR{soaOf(name)}
	}
	reply.Answer = append(reply.Answer, records...)
	return reply
}

// nonTerminalReply replaces an upstream's NXDOMAIN for a name that has names of the mesh below it: such a name exists, and to
// deny it would deny them too (RFC 8020 section 2). nil if it has none.
func (t *Table) nonTerminalReply(w waiter) []byte {
	end := skipName(w.msg, headerSize)
	if t == nil || end == 0 || !t.exists(lowered(w.msg[headerSize:end-1])) {
		return nil
	}
	req, err := unpackQuery(w.msg)
	if err != nil || len(req.Question) != 1 {
		return nil
	}
	reply := newReply(req, dns.RcodeSuccess)
	reply.Ns = []dns.RR{soaOf(req.Question[0].Name)}
	return pack(reply, w.limit)
}
