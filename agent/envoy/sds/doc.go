// Package sds serves certificates to Envoy: the secret discovery service on a unix socket.
//
// It owns the streams, what each has been sent, and the files that names point to. Where the workload's own identity comes from
// is the agent's business: a Source says what is current, Refresh says that it changed.
//
//	default          this workload's certificate and key
//	ROOTCA           what peers' certificates chain to
//	file-cert:C~K    certificate and key from two files, file-root:F roots from one; file-root:system the machine's own
//
// A secret that is not there yet is waited for, and pushed when it comes. A name that can never be one is answered as removed
// where the protocol can say so (incremental), and left open where it cannot. What changed is pushed within milliseconds;
// something broken, as a certificate whose key has not been replaced yet, is never pushed: Envoy keeps the last good one.
//
// Goroutines: Run's, gRPC's, and two for each stream. What they share is behind store.mu. Files: the socket. No ports. Keys are
// in memory and on the socket only: never in a log, a metric or an error.
//
// The messages are written by hand (wire.go): go-control-plane's types for secrets would add a quarter of a megabyte. Tests read
// them with those types.
//
// To match: Istio security/pkg/nodeagent/sds/sdsservice.go, pkg/security (SdsCertificateConfigFromResourceName), and the xDS
// protocol (envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol).
package sds
