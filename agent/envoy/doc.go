// Package envoy is what the agent knows about Envoy: its bootstrap file, where its program is, and how to ask its admin port.
//
// Bootstrap (pure) makes the file from the settings and the node; Write puts it where the supervisor finds it. Admin asks a
// running Envoy whether it is ready and how many connections it serves, and drains it. The rest stands below: package sds
// serves certificates to Envoy, package proxy is the supervisor behind `wingman proxy`, package peer opens sockets that only
// Envoy's user may use. The stream of configuration is package agent/xds.
//
// The file is written as JSON by hand, not by go-control-plane's bootstrap types: those would add megabytes to a daemon
// that never reads such a file. A test parses every file back through the types.
//
// Files: <run folder>/envoy/bootstrap.json, written by the agent and read by the supervisor. Ports, all Envoy's:
// 15000 admin, 15021 readiness, 15090 metrics; 15001, 15006 and 15008 come from istiod. No goroutines.
//
// To match: Istio pkg/bootstrap (settings to template), tools/packaging/common/envoy_bootstrap.json (the template),
// pkg/envoy/agent.go (drain), pilot/cmd/pilot-agent/status (what counts as ready).
package envoy
