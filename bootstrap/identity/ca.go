package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/structpb"

	"wingman/bootstrap/identity/internal/istioca"
)

// maxAnswer bounds a CA's answer; a chain with a few roots has 10 kB.
const maxAnswer = 1 << 20

// A caClient asks istiod's CA for certificates. It holds no connection: a certificate a day is not worth one.
type caClient struct {
	address, serverName, clusterID, certSigner string
	ttl                                        time.Duration
	dial                                       func(ctx context.Context, addr string) (net.Conn, error)
}

// A createFunc asks a CA for a certificate: see caClient.create.
type createFunc func(ctx context.Context, cred proof, csr []byte, verify func([]*x509.Certificate) error) ([]string, error)

// A proof is one way to prove who we are.
type proof struct {
	name   string           // "certificate" or "token"; a metric label
	cert   *tls.Certificate // shown in the TLS handshake; nil: none
	token  hidden[string]   // sent as a header
	source string           // of the token
}

// create calls istio.v1.auth.IstioCertificateService/CreateCertificate once, over a connection of its own, within ctx.
// It returns the PEM elements of the chain as they came. The error is a *callError with what gRPC cannot carry.
func (c *caClient) create(ctx context.Context, cred proof, csr []byte, verify func([]*x509.Certificate) error) ([]string, error) {
	// gRPC flattens the errors of dial and handshake to text; the first cause is kept here as it was.
	var local atomic.Pointer[error]
	note := func(err error) error {
		if err != nil {
			local.Store(&err)
		}
		return err
	}
	config := clientTLS(c.serverName, func() *tls.Certificate { return cred.cert },
		func(peers []*x509.Certificate) error {
			if err := verify(peers); err != nil {
				return note(&untrustedError{err})
			}
			return nil
		})
	conn, err := grpc.NewClient("passthrough:///"+c.address,
		grpc.WithTransportCredentials(credentials.NewTLS(config)),
		grpc.WithContextDialer(func(dialCtx context.Context, addr string) (net.Conn, error) {
			if deadline, ok := ctx.Deadline(); ok { // leave time to say that it was the dial
				var cancel context.CancelFunc
				dialCtx, cancel = context.WithTimeout(dialCtx, time.Until(deadline)/2)
				defer cancel()
			}
			conn, err := c.dial(dialCtx, addr)
			return conn, note(err)
		}),
		grpc.WithNoProxy(), grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)),
	)
	if err != nil {
		return nil, &callError{rpc: err}
	}
	defer conn.Close()

	header := metadata.MD{}
	if c.clusterID != "" {
		header.Set("ClusterID", c.clusterID)
	}
	if token := cred.token.reveal(); token != "" {
		header.Set("authorization", "Bearer "+token)
	}
	signer := map[string]*structpb.Value{"CertSigner": structpb.NewStringValue(c.certSigner)}
	reply, err := istioca.Create(metadata.NewOutgoingContext(ctx, header), conn, &istioca.CertificateRequest{
		Csr: string(csr), ValidityDuration: int64(c.ttl / time.Second), Metadata: &structpb.Struct{Fields: signer},
	})
	if err != nil {
		failed := &callError{rpc: err}
		if cause := local.Load(); cause != nil {
			failed.local = *cause
		}
		return nil, failed
	}
	return reply.GetCertChain(), nil
}

// A callError is a failed call: rpc is gRPC's status, local the error of our own dial or check of istiod's certificate, if any.
type callError struct{ rpc, local error }

func (e *callError) Error() string {
	if e.local != nil {
		return e.local.Error()
	}
	return e.rpc.Error()
}

func (e *callError) Unwrap() []error { return []error{e.rpc, e.local} }

// untrustedError is a handshake that we broke off because of istiod's certificate.
type untrustedError struct{ reason error }

func (e *untrustedError) Error() string { return e.reason.Error() }

func isUntrusted(err error) bool {
	var e *untrustedError
	return errors.As(err, &e)
}
