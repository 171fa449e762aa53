// Package agent is the daemon: what starts when, what depends on what, and how it ends.
//
// It connects packages that know nothing of each other (bootstrap, bootstrap/identity, dnsproxy, health, iptables, systemd) and leaves to each
// what it owns. Run is the way in; OpenRules, Check, Client, DNSServer and Trial stand behind the other commands.
//
//	wait        files to join with (waiting.go)                      under systemd, on a machine that never joined
//	open        lock, DNS sockets, last table, join state            no network needed
//	live        DNS, admin socket, rules of a joined machine ► READY
//	member      identity ► address ► health, stream ► table ► joined  replaced by a reload or another address
//	shut down   stop: unhealthy, rules out, stream, DNS last          restart: everything stays for the next process
//
// Goroutines: Run's own; one for each task of three groups (services, which live as long as the daemon, the member's, and the supervisor's where it runs in
// this process), which wait for them. State that tasks share is behind Agent.mu and member.mu, of which neither is held while the other is taken, nor over a
// network call; Agent.remembering and member.telling are taken before them, locks of smaller parts after.
//
// Files: everything below the state and the run folder but the certificate store; see docs/architecture.md. Ports: 15053 by dnsproxy, 15020 by
// agent/status.
//
// To match: Istio pkg/istio-agent/agent.go and tools/packaging/common/istio-start.sh, as seen from outside.
package agent
