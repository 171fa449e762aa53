// Package controlplane is a small stand-in for istiod: certificate authority, ADS and registration of virtual
// machines over the real protos, in one process, for `make demo` and for tests that need a control plane in milliseconds.
//
// It owns what a VM's agent can see of istiod: TLS with a certificate for istiod.istio-system.svc, CreateCertificate for
// callers with a token or a client certificate, the delta and state-of-the-world ADS streams with the rules of
// pilot/pkg/xds/{ads,delta}.go for who gets an answer, the WorkloadEntry of each connected VM (pilot/pkg/autoregistration)
// and its Healthy condition. It leaves out what no agent sees: Kubernetes, the generation of Envoy's configuration
// (resources are what a test puts in), several replicas. package contract holds the tests that it and the real istiod
// must both pass; where the two disagree, istiod is right and this package is mended.
//
// Files: server.go (start and stop), gate.go (the port and the gRPC servers behind it), authority.go (roots, signing), token.go (JWTs),
// authn.go (who calls), ca.go (CreateCertificate), node.go (what a stream says of itself), registry.go (WorkloadEntries),
// watch.go (who gets an answer; pure), stream.go (one ADS stream), names.go (tables and resources), events.go (what
// happened, and waiting for it), faults.go (levers), debug.go (JSON over HTTP on loopback).
//
// Goroutines: one accept loop, gRPC's own, two for each stream, one timer for each entry in its grace period. Everything
// they share is behind Server.mu. Stop waits for all of them.
package controlplane

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/anypb"

	"wingman/agent/xds/nds"
)

// Config is what a stand-in is made with. The zero value is a working istiod with its defaults on a free port of 127.0.0.1.
type Config struct {
	// Addr is the host:port to serve ADS and CA on. Empty means a free port of 127.0.0.1.
	Addr string
	// DebugAddr is a loopback host:port for JSON over HTTP (see DebugAddr of Server). Empty means none.
	DebugAddr string
	// TrustDomain of every identity; empty means cluster.local.
	TrustDomain string
	// ServerNames are the DNS names in the serving certificate; none means istiod.istio-system.svc.
	ServerNames []string
	// Clusters are the ClusterID headers a token may come with, besides none at all; empty means any.
	// istiod refuses tokens from clusters it has no kubeconfig for.
	Clusters []string
	// Grace is how long an entry outlives its last stream; zero means 10 s.
	// Istio: PILOT_WORKLOAD_ENTRY_GRACE_PERIOD.
	Grace time.Duration
	// CertTTL is the life of a certificate whose request names none; zero means 24 h. Istio: DEFAULT_WORKLOAD_CERT_TTL.
	CertTTL time.Duration
	// MaxCertTTL is the longest life that may be asked for; zero means 90 days. Istio: MAX_WORKLOAD_CERT_TTL.
	MaxCertTTL time.Duration
	// MaxConnectionAge ends each connection gracefully after about this time (gRPC adds a jitter of 10%);
	// zero means never. Istio: --keepaliveMaxServerConnectionAge.
	MaxConnectionAge time.Duration
	// MaxConnectionAgeGrace is what streams still have after that; zero means 10 s, as istiod.
	MaxConnectionAgeGrace time.Duration
	// KeepaliveTime is how often the server pings an idle client; a client that pings more often than every half of it
	// is sent away. Zero means 30 s. Istio: --keepaliveInterval.
	KeepaliveTime time.Duration
	// MultiRoot answers PCDS with the trust bundle; without it PCDS gets no answer, as istiod without ISTIO_MULTIROOT_MESH.
	MultiRoot bool
	// Intermediate signs with a CA below the root, as a plugged-in CA does: reply chains then have three elements.
	Intermediate bool
	// RSA makes CA keys RSA 2048, as istiod's self-signed CA does. The default is ECDSA P-256, made in a millisecond.
	RSA bool
	// Log gets a line for each event; nil discards.
	Log *slog.Logger
}

// withDefaults returns c with every unset field at istiod's default.
func (c Config) withDefaults() Config {
	c.Addr = cmp.Or(c.Addr, "127.0.0.1:0")
	c.TrustDomain = cmp.Or(c.TrustDomain, "cluster.local")
	if len(c.ServerNames) == 0 {
		c.ServerNames = []string{"istiod.istio-system.svc"}
	}
	c.Grace = cmp.Or(c.Grace, 10*time.Second)
	c.CertTTL = cmp.Or(c.CertTTL, 24*time.Hour)
	c.MaxCertTTL = cmp.Or(c.MaxCertTTL, 90*24*time.Hour)
	c.MaxConnectionAgeGrace = cmp.Or(c.MaxConnectionAgeGrace, 10*time.Second)
	c.KeepaliveTime = cmp.Or(c.KeepaliveTime, 30*time.Second)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

func (c Config) validate() error {
	var errs []error
	if _, _, err := net.SplitHostPort(c.Addr); err != nil {
		errs = append(errs, fmt.Errorf("address %q: %w", c.Addr, err))
	}
	if strings.ContainsAny(c.TrustDomain, "/: ") {
		errs = append(errs, fmt.Errorf("trust domain %q: want a bare name", c.TrustDomain))
	}
	for name, d := range map[string]time.Duration{
		"grace": c.Grace, "certificate life": c.CertTTL, "longest certificate life": c.MaxCertTTL, "keepalive time": c.KeepaliveTime,
	} {
		if d <= 0 {
			errs = append(errs, fmt.Errorf("%s %s: want more than zero", name, d))
		}
	}
	return errors.Join(errs...)
}

// Server is one stand-in control plane. All methods are safe for concurrent use.
type Server struct {
	cfg    Config
	log    *slog.Logger
	gate   *gate
	tokens *issuer
	faults *Faults

	lifecycle sync.Mutex // held over Start, Stop and Close; taken before mu

	mu        sync.Mutex // guards everything below
	changed   chan struct{}
	authority *authority
	running   bool
	closed    bool
	instance  int // counts Starts: entries made by an earlier one are not removed by this one's streams
	debug     *debugServer
	groups    map[objectKey]Group
	entries   map[objectKey]*entry
	streams   map[uint64]*stream
	streamSeq uint64
	names     *nds.NameTable
	resources map[string]map[string]*anypb.Any // type URL, resource name
	version   int                              // of everything that can be pushed; counts changes
	events    []Event
}

// New makes a stand-in with a fresh root and token issuer. It opens nothing: see Start.
func New(cfg Config) (*Server, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("control plane stand-in: %w", err)
	}
	auth, err := newAuthority(cfg)
	if err != nil {
		return nil, fmt.Errorf("make certificate authority: %w", err)
	}
	tokens, err := newIssuer()
	if err != nil {
		return nil, fmt.Errorf("make token issuer: %w", err)
	}
	s := &Server{
		cfg:       cfg,
		log:       cfg.Log,
		tokens:    tokens,
		changed:   make(chan struct{}),
		authority: auth,
		groups:    map[objectKey]Group{},
		entries:   map[objectKey]*entry{},
		streams:   map[uint64]*stream{},
		names:     &nds.NameTable{},
		resources: map[string]map[string]*anypb.Any{},
		version:   1,
	}
	s.faults = &Faults{s: s}
	s.gate = newGate(cfg.Addr, s.newGRPCServer)
	return s, nil
}

// RootPEM is the trust bundle that clients need: one root, or the new one and the old one during an overlapping rotation.
func (s *Server) RootPEM() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.authority.bundlePEM()
}

// ServerName is the first DNS name in the serving certificate.
func (s *Server) ServerName() string { return s.cfg.ServerNames[0] }

// Grace is how long an entry outlives its last stream.
func (s *Server) Grace() time.Duration { return s.cfg.Grace }

// Faults are the levers that make this control plane misbehave.
func (s *Server) Faults() *Faults { return s.faults }

// objectKey names a namespaced object.
type objectKey struct{ namespace, name string }

func (k objectKey) String() string { return k.namespace + "/" + k.name }
