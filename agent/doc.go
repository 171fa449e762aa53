// Package agent is the daemon: what starts when, what depends on what, and how it ends.
//
// It connects packages that know nothing of each other (bootstrap, bootstrap/identity, dnsproxy, health, iptables, systemd) and leaves to each
// what it owns. Run is the way in; OpenRules, Check, Client and DNSServer stand behind the other commands.
//
//	open        lock, DNS sockets, last table, join state            no network needed
//	live        DNS, admin socket, rules of a joined machine ► READY
//	member      identity ► address ► health, stream ► table ► joined  replaced by a reload or another address
//	shut down   stop: unhealthy, rules out, stream, DNS last          restart: everything stays for the next process
//
// Goroutines: Run's own; one for each task of two groups (services, which live as long as the daemon, and the member's), which wait for them.
// State that tasks share is behind Agent.mu and member.mu; no lock is held while another is taken, and none over a network call.
//
// Files: everything below the state and the run folder but the certificate store; see docs/architecture.md. Ports: 15053 by dnsproxy, 15020 by
// agent/status.
//
// To match: Istio pkg/istio-agent/agent.go and tools/packaging/common/istio-start.sh, as seen from outside.
package agent
