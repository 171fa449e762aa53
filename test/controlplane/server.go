package controlplane

import (
	"crypto/tls"
	"errors"
	"fmt"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	securityapi "istio.io/api/security/v1alpha1"
)

// Start begins to serve, at the same address each time: a stopped control plane comes back with the authority, groups,
// entries and names it had, as istiod comes back to what Kubernetes has kept.
func (s *Server) Start() error {
	s.lifecycle.Lock()
	defer s.lifecycle.Unlock()
	s.mu.Lock()
	running, closed := s.running, s.closed
	s.mu.Unlock()
	if running || closed {
		return errors.New("control plane stand-in is already running or closed")
	}
	if err := s.gate.open(); err != nil {
		return fmt.Errorf("control plane stand-in: %w", err)
	}
	if err := s.startDebug(); err != nil {
		s.gate.close()
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running = true
	s.instance++
	for key, e := range s.entries { // istiod finds entries that were left before its time by a rare sweep
		if !e.LeftAt.IsZero() {
			instance := s.instance
			e.timer = time.AfterFunc(10*s.cfg.Grace, func() { s.removeEntry(key, e, instance) })
		}
	}
	s.wakeLocked()
	return nil
}

// Stop kills the control plane as kill -9 does: the port is closed, every connection reset, no goodbye. Entries stay as
// they are, because there is nobody to remove them. It returns when every stream has ended. A second Stop does nothing.
func (s *Server) Stop() {
	s.lifecycle.Lock()
	defer s.lifecycle.Unlock()
	s.stopLocked()
}

// stopLocked needs lifecycle.
func (s *Server) stopLocked() {
	s.mu.Lock()
	if !s.running {
		s.mu.Unlock()
		return
	}
	s.running = false
	for _, e := range s.entries {
		if e.timer != nil {
			e.timer.Stop()
			e.timer = nil
		}
	}
	s.wakeLocked()
	s.mu.Unlock()
	s.stopDebug()
	s.gate.close()
}

// Close stops the server for good and gives its port back.
func (s *Server) Close() {
	s.lifecycle.Lock()
	defer s.lifecycle.Unlock()
	s.stopLocked()
	s.gate.release()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
}

// Addr is the host:port of ADS and CA; valid once Start has returned, also while stopped.
func (s *Server) Addr() string { return s.gate.address() }

// newGRPCServer makes one generation of the gRPC server, with istiod's limits.
// Istio: pilot/pkg/grpc/grpc.go, ServerOptions.
func (s *Server) newGRPCServer() *grpc.Server {
	g := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: s.tlsConfig})),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: s.cfg.KeepaliveTime / 2}),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			Time: s.cfg.KeepaliveTime, Timeout: 10 * time.Second,
			MaxConnectionAge: s.cfg.MaxConnectionAge, MaxConnectionAgeGrace: s.cfg.MaxConnectionAgeGrace,
		}),
		grpc.MaxRecvMsgSize(4<<20),
		grpc.WaitForHandlers(true),
	)
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(g, discoveryService{s: s})
	securityapi.RegisterIstioCertificateServiceServer(g, certificateService{s: s})
	return g
}
