// Package dnsproxy answers DNS for the names the mesh knows and forwards every other question, byte for byte, to the
// machine's own resolvers.
//
// It owns the name table, the UDP and TCP service on 15053, the way upstream (resolv.conf, followed as it changes) and
// the answers' cache. It leaves to others where names come from (agent hands in []Name and calls Server.Replace), where
// sockets come from (Listen, or systemd's FD store) and how port 53 is captured (package iptables).
//
//	client ─ UDP ─► udpWorker ─┐                      ┌─ hit: patched wire bytes, in the receive buffer itself
//	client ─ TCP ─► tcpConn ───┴► Table.fast ── miss ─┤
//	                                                  ├─ local: malformed, EDNS errors, PTR … (answerLocally, miekg/dns)
//	                                                  └─ forward: equal questions merged, bounded ─► upstream
//
// Goroutines: one per UDP socket (it reads, answers hits and never waits for anything), one per TCP listener and client's
// connection, one that reads all sockets and streams to upstreams, one that follows resolv.conf. A question in flight has none, but a timer. A table is
// immutable; a query reads one snapshot by an atomic pointer and takes no lock.
//
// Before the first Replace, and for as long as no control plane ever answers, every question goes upstream: the state of
// the mesh never turns a resolvable name into SERVFAIL.
//
// To agree with: Istio pkg/dns/client/dns.go (names, short forms, TTL, search-list answers). Where a resolver must do
// better than Istio's (EDNS, negative answers, PTR, every query type) the RFC is named at the code.
package dnsproxy
