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
// Envoy speaks through the same Client (Gate): each stream that it opens gets a fresh one to istiod, which carries Envoy's messages as
// bytes and the agent's types beside them; the agent's own stream ends once that one is answered, and is opened again when Envoy stays away.
//
// Files: client.go (attempts), session.go (one stream), envoy.go (Envoy's side), state.go (which session counts), wire.go and frame.go (messages),
// outbox.go (the verdict), ending.go (how streams end, when to try again).
//
// Goroutines: the caller of Run, one reader and one writer for each stream to istiod; gRPC's and two more for each of Envoy's.
//
// To match: Istio pkg/istio-agent/xds_proxy.go and xds_proxy_delta.go (what the agent sends), pilot/pkg/xds/ads.go and
// delta.go (what istiod does with it).
package xds
