// Package xds keeps the VM's one ADS stream to istiod.
//
// It owns the stream: dialling, the node sent with the first request, the subscriptions of the agent itself, their ACKs and
// NACKs, health reports, and coming back after the stream ends. What a push means belongs to the handler that the agent gives
// for its type; what healthy means belongs to package health.
//
// One life of the stream:
//
//	dial ─► first request: node + NameTable ─► other types ─► first answer ─► health ─► pushes: handle, then ACK or NACK …
//	  ▲                                                                                      │
//	  └────────── wait: none after a graceful close, else back-off with jitter ◄─────────────┘
//
// Goroutines: the caller of Run, and one reader per stream. Delta and state-of-the-world are two implementations of wire; all
// that is above them is the same.
//
// To match: Istio pkg/istio-agent/xds_proxy.go and xds_proxy_delta.go (what the agent sends), pilot/pkg/xds/ads.go and
// delta.go (what istiod does with it).
package xds
