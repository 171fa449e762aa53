// Package iptables decides which traffic of the machine goes to Envoy and to the DNS proxy, and keeps the kernel to it.
//
// Plan turns the configuration and facts of the host into Rules, purely. An Applier puts Rules into the network namespace
// it is called in: through iptables-restore (the nft or the legacy flavour, whichever the machine uses), or natively as one
// nftables table when the commands are missing. It reads them back (Status, Diff) and takes them out (Remove). Nothing is
// remembered outside the kernel: what is ours is known by its names, ISTIO_* and WINGMAN_*, and by our memory chains.
//
// The chains ISTIO_* and their rules equal, line for line, what Istio's tool makes (tools/istio-iptables/pkg/capture/run.go),
// because people and tools know them. What we add stands in chains of our own, which a packet meets first:
//
//	PREROUTING ─► WINGMAN_CONTAINERS (DNS of bridges) ─► WINGMAN_INBOUND (guards) ─► ISTIO_INBOUND ─► ISTIO_IN_REDIRECT ─► :15006
//	OUTPUT ─────► WINGMAN_OUTPUT (guards) ─► ISTIO_OUTPUT ─► ISTIO_OUTPUT_DNS ─► :15053
//	                                                     └─► ISTIO_REDIRECT ──► :15001
//
// Without Envoy (LevelDNS) only OUTPUT ─► ISTIO_OUTPUT ─► ISTIO_OUTPUT_DNS exists. No guard, no lock-out: SSH, the agent's
// own traffic, cloud metadata and DHCP never reach Istio's chains (guards.go says why each).
//
// A Keeper keeps the kernel to a plan that may change, and puts back what others take out (keeper.go). Try puts rules in on trial: a process of its own
// takes them back unless somebody confirms (trial.go). Snapshot remembers what is there, Istio's own rules too, for whoever puts others in their place.
//
// Left to others: what to capture (bootstrap), when (agent), and listening on the ports. Goroutines: Keeper.Run's, and those that watch for it. Files: none,
// but iptables-legacy takes /run/xtables.lock, and WriteSSHReport writes what root alone can find out about sshd. Privileges: CAP_NET_ADMIN and CAP_NET_RAW.
package iptables
