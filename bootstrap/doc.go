// Package bootstrap turns the files of a machine into one Config, and the Config into the node that istiod sees.
//
// It owns the reading, merging and checking of istioctl's five files, the operator's sidecar.env and the agent's own
// wingman.yaml; the node's id and metadata; the choice of the instance address; the lookup of users. It leaves alone: the token
// and the certificates (package identity, below), every connection, and what to do about a problem.
//
//	mesh.yaml ── defaultConfig ──► proxyConfig ──────────► PROXY_CONFIG ─┐
//	                └ proxyMetadata ┐        ▲ PROXY_CONFIG               │
//	sidecar.env ─► cluster.env ─────┴► variables ─┐                       ├─► Node
//	wingman.yaml ── keys ─────────────────────────┴► settings ─► Config ──┘
//
// Values, weakest first: built-in, mesh.yaml, sidecar.env, cluster.env, wingman.yaml. The table in settings.go describes each
// setting once: its key in wingman.yaml, Istio's names for it, what it may be, where it goes; docs/settings.md is made from it.
// Every value remembers the file and line that set it (Config.Settings), every problem names them (Problems).
//
// Env files are read by the shell's grammar and never executed: what is not an assignment is refused. Variables that are no
// settings of ours are kept: ISTIO_META_* and ISTIO_METAJSON_* go to the node's metadata, as in pilot-agent. Fields of mesh.yaml
// that are unknown here are kept too, in PROXY_CONFIG.
//
// There are no goroutines. Load reads files, InstanceAddrs asks the kernel by netlink, LookupUser and LookupGroup read passwd and
// group; everything else is pure. A Config does not change and may be used by many goroutines.
//
// To agree with, in Istio: tools/packaging/common/istio-start.sh (variables and their order), pilot/cmd/pilot-agent/options (names
// and defaults), pkg/config/mesh/mesh.go (ProxyConfig), pkg/bootstrap/config.go (node), tools/istio-iptables/pkg/cmd/root.go (rules).
package bootstrap
