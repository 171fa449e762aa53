// Package proxy keeps an Envoy running: the supervisor behind `wingman proxy`.
//
// It is a process of its own, so that the agent can restart and crash without a connection noticing. It owns Envoy's process
// from its start to its end, and what a start needs: a lock, so that no two Envoys serve the same machine; a look at the ports, so
// that a stranger on them is named; file limits; pipes for Envoy's output. The bootstrap file is the agent's (package envoy).
//
//	            cannot start                             no answer for HangTimeout
//	          ┌──────────────┐                        ┌──────────────────────────► hanging ─┐ SIGABRT, SIGKILL
//	          ▼              │                        │                                     │
//	       waiting ──► (start) ──► starting ──► live ─┤ ended                               │
//	          ▲                       │               ▼                                     │
//	          └──────── back-off ◄────┴───────────────┴─────────────────────────────────────┘
//
//	stop:     live ──► draining ──► stopping (SIGTERM, SIGKILL) ──► stopped      any other phase skips the draining
//	replace:  live ──► handover ──► stopping ──► back-off, for no time ──► (start)
//
// A replacement is tried before and judged after, and taken back where it does not do (replacement).
//
// What happens next is decided by machine.step, which is pure; Supervisor does it. Goroutines: Run's own, and for each Envoy one
// that starts it and waits for it (on a thread of its own: Envoy dies with that thread), two that read its output, one that asks
// its admin port, and one while it drains or its successor is tried; one serves the control socket. Run waits for all of them.
//
// Files, in RunDir: lock (held by the supervisor and inherited by Envoy, so that an Envoy left over holds it; a second mark on it is the
// supervisor's alone, and tells the agent that one lives), state.json (what the agent goes by), control.sock (takes wishes for another Envoy), bootstrap.json (only where the agent
// has not made one). Ports: none of its own.
//
// To match: Istio pkg/envoy/proxy.go (flags) and pkg/envoy/agent.go (drain on stop).
package proxy
