package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"wingman/bootstrap"
	"wingman/bootstrap/identity"
)

// reachTimeout bounds the attempt at one server.
const reachTimeout = 10 * time.Second

// Reach asks whether istiod and its CA can be reached from here as the daemon would: by the system's resolver or istioctl's hosts file, and with a
// certificate that chains to roots (PEM, of the file Paths.RootCert). The error holds one sentence for each server that cannot.
func Reach(ctx context.Context, cfg *bootstrap.Config, roots []byte) error {
	d := newDialer(cfg.Hosts)
	problems := []error{reachOne(ctx, d, "istiod", cfg, cfg.Discovery, roots)}
	if cfg.CA != cfg.Discovery {
		problems = append(problems, reachOne(ctx, d, "the CA", cfg, cfg.CA, roots))
	}
	return errors.Join(problems...)
}

func reachOne(ctx context.Context, d *dialer, what string, cfg *bootstrap.Config, at bootstrap.Endpoint, roots []byte) error {
	ctx, cancel := context.WithTimeout(ctx, reachTimeout)
	defer cancel()
	tlsConfig, err := identity.ServerTLS(at.ServerName, roots, cfg.Paths.RootCert, cfg.Namespace)
	if err != nil {
		return fmt.Errorf("root-cert.pem: %w", err)
	}
	conn, err := d.Dial(ctx, at.Address)
	if err != nil {
		return fmt.Errorf("%s cannot be reached at %s: %w%s", what, at.Address, err, reachHint(err))
	}
	defer conn.Close()
	if err := tls.Client(conn, tlsConfig).HandshakeContext(ctx); err != nil {
		return fmt.Errorf("%s at %s (%s): %w", what, at.Address, conn.RemoteAddr(), err)
	}
	return nil
}

// reachHint is the next step, where one is known.
func reachHint(err error) string {
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns):
		return ": istioctl's hosts file gets its address with istioctl x workload entry configure --ingressIP"
	case errors.Is(err, syscall.ECONNREFUSED):
		return ": nothing serves there: look at the east-west gateway, or istiod's service"
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT), errors.Is(err, syscall.EHOSTUNREACH):
		return ": look for a firewall between this machine and the east-west gateway"
	}
	return ""
}
