package xds

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"wingman/agent/xds/discovery"
)

func TestClassify(t *testing.T) {
	refused := &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	for _, tc := range []struct {
		name string
		err  error
		want ending
	}{
		{"istiod ended the stream", io.EOF, endGraceful},
		{"connection age or restart of istiod", status.Error(codes.Unavailable, `closing transport due to: connection error: desc = "error reading from server: EOF", received prior goaway: code: NO_ERROR, debug data: "max_age"`), endGraceful},
		{"sent away for pinging too often", status.Error(codes.Unavailable, `closing transport due to: connection error: desc = "error reading from server: EOF", received prior goaway: code: ENHANCE_YOUR_CALM, debug data: "too_many_pings"`), endBroken},
		{"nobody listens", refused, endRefused},
		{"nobody listens at any of two addresses", errors.Join(refused, refused), endRefused},
		{"nobody listens, told by gRPC", status.Error(codes.Unavailable, `connection error: desc = "transport: Error while dialing: dial tcp 127.0.0.1:15012: connect: connection refused"`), endRefused},
		{"reset", status.Error(codes.Unavailable, "error reading from server: read: connection reset by peer"), endBroken},
		{"a gateway with nobody behind it, by reset", status.Error(codes.Unavailable, `connection error: desc = "transport: authentication handshake failed: read tcp 10.99.0.2:51490->10.99.0.1:15012: read: connection reset by peer"`), endRefused},
		{"a gateway with nobody behind it, by EOF", status.Error(codes.Unavailable, `connection error: desc = "transport: authentication handshake failed: EOF"`), endRefused},
		{"a certificate refused in the handshake", status.Error(codes.Unavailable, `connection error: desc = "transport: authentication handshake failed: remote error: tls: bad certificate"`), endBroken},
		{"a server certificate that we refuse", status.Error(codes.Unavailable, `connection error: desc = "transport: authentication handshake failed: tls: failed to verify certificate: x509: certificate signed by unknown authority"`), endBroken},
		{"a handshake that nobody answers", status.Error(codes.Unavailable, `connection error: desc = "transport: authentication handshake failed: context deadline exceeded"`), endBroken},
		{"reset after the handshake", status.Error(codes.Unavailable, `connection error: desc = "error reading server preface: read tcp 10.99.0.2:51490->10.99.0.1:15012: read: connection reset by peer"`), endBroken},
		{"EOF after the handshake", status.Error(codes.Unavailable, `connection error: desc = "error reading server preface: EOF"`), endBroken},
		{"time-out", context.DeadlineExceeded, endBroken},
		{"istiod's race with itself", status.Error(codes.Unknown, `failed updating WorkloadEntry a/b: Operation cannot be fulfilled on workloadentries.networking.istio.io "b"`), endGraceful},
		{"anything unknown", status.Error(codes.Unknown, "x"), endBroken},
		{"no WorkloadGroup", status.Error(codes.FailedPrecondition, "x"), endRejected},
		{"no credential passes", status.Error(codes.Unauthenticated, "x"), endRejected},
		{"wrapped rejection", fmt.Errorf("hint: %w", status.Error(codes.PermissionDenied, "x")), endRejected},
	} {
		if got := classify(tc.err); got != tc.want {
			t.Errorf("%s: classify(%v) = %v, want %v", tc.name, tc.err, got, tc.want)
		}
	}
}

func TestBackoff(t *testing.T) {
	ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	type step struct {
		end    ending
		lived  time.Duration
		random float64
		want   time.Duration
	}
	for _, tc := range []struct {
		name  string
		steps []step
	}{
		{"a graceful end is followed at once", []step{{endGraceful, time.Hour, 1, 0}, {endGraceful, time.Hour, 1, 0}}},
		{"a server that ends every stream at once is not followed at once for ever", []step{
			{endGraceful, 0, 1, 0}, {endGraceful, 0, 1, ms(100)}, {endGraceful, 0, 1, ms(200)}, {endGraceful, 0, 0, ms(200)},
			{endGraceful, 0, 1, ms(800)}, {endGraceful, 0, 1, time.Second}, {endGraceful, 0, 1, time.Second},
		}},
		{"a closed port is asked again within 600 ms", []step{
			{endRefused, 0, 1, ms(100)}, {endRefused, 0, 1, ms(200)}, {endRefused, 0, 1, ms(400)}, {endRefused, 0, 1, ms(600)},
			{endRefused, 0, 1, ms(600)}, {endRefused, 0, 0, ms(300)},
		}},
		{"a rejection waits longest", []step{{endRejected, 0, 1, time.Second}, {endRejected, 0, 1, 2 * time.Second}, {endRejected, 0, 0, 2 * time.Second}}},
		{"another kind of ending starts from the bottom", []step{{endBroken, 0, 1, ms(500)}, {endBroken, 0, 1, time.Second}, {endRefused, 0, 1, ms(100)}}},
		{"a stream that had settled starts from the bottom", []step{{endBroken, 0, 1, ms(500)}, {endBroken, 0, 1, time.Second}, {endBroken, settled, 1, ms(500)}}},
	} {
		var b backoff
		for i, s := range tc.steps {
			if got := b.next(s.end, s.lived, s.random); got != s.want {
				t.Errorf("%s: step %d: next(%v, %v, %v) = %v, want %v", tc.name, i, s.end, s.lived, s.random, got, s.want)
			}
		}
	}
	var b backoff
	for range 1000 { // no overflow after weeks without istiod
		if d := b.next(endBroken, 0, 1); d <= 0 || d > 15*time.Second {
			t.Fatalf("wait %v after many failures, want at most 15 s", d)
		}
	}
}

func TestExplain(t *testing.T) {
	node := nodeFacts{id: "forum-sa", namespace: "forum-services", group: "forum"}
	for _, tc := range []struct {
		name string
		err  error
		want string
	}{
		{"unknown group names it", status.Error(codes.FailedPrecondition, "no group"), "WorkloadGroup forum-services/forum"},
		{"certificate refused", status.Error(codes.Unavailable, "remote error: tls: bad certificate"), "refused this machine's certificate"},
		{"nothing to add", errors.New("reset"), "reset"},
	} {
		err := explain(tc.err, "istiod:15012", node)
		if !errors.Is(err, tc.err) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: explain(%v) = %v, want the cause and %q in it", tc.name, tc.err, err, tc.want)
		}
	}
}

func TestSameCauseHasAnotherPort(t *testing.T) {
	a := errors.New("write tcp 10.99.0.2:51490->10.99.0.1:15012: broken pipe")
	b := errors.New("write tcp 10.99.0.2:60002->10.99.0.1:15012: broken pipe")
	if sameCause(a) != sameCause(b) {
		t.Errorf("%q and %q, want the same", sameCause(a), sameCause(b))
	}
	if sameCause(a) == sameCause(errors.New("read tcp: connection reset")) {
		t.Error("two causes are taken for one")
	}
}

func TestMayBeRefusal(t *testing.T) {
	for _, tc := range []struct {
		name string
		err  error
		want bool
	}{
		{"TLS alert", status.Error(codes.Unavailable, "remote error: tls: unknown certificate authority"), true},
		{"the alert was lost", status.Error(codes.Unavailable, "write tcp 10.0.0.1:1->10.0.0.2:2: write: broken pipe"), true},
		{"a TLS alert in the handshake", status.Error(codes.Unavailable, `connection error: desc = "transport: authentication handshake failed: remote error: tls: bad certificate"`), true},
		{"reset after the handshake", status.Error(codes.Unavailable, `connection error: desc = "error reading server preface: read tcp 10.99.0.2:51490->10.99.0.1:15012: read: connection reset by peer"`), true},
		{"reset in the handshake", status.Error(codes.Unavailable, `connection error: desc = "transport: authentication handshake failed: read tcp 10.99.0.2:51490->10.99.0.1:15012: read: connection reset by peer"`), false},
		{"broken pipe in the handshake", status.Error(codes.Unavailable, `connection error: desc = "transport: authentication handshake failed: write tcp 10.99.0.2:51490->10.99.0.1:15012: write: broken pipe"`), false},
		{"a reset of a stream that was accepted", afterAnswer{status.Error(codes.Unavailable, "error reading from server: read tcp 10.99.0.2:1->10.99.0.1:2: read: connection reset by peer")}, false},
		{"an alert on a stream that was accepted", afterAnswer{status.Error(codes.Unavailable, "error reading from server: remote error: tls: revoked certificate")}, true},
		{"istiod says so", status.Error(codes.Unauthenticated, "authentication failure"), true},
		{"nobody there", syscall.ECONNREFUSED, false},
		{"no group", status.Error(codes.FailedPrecondition, "x"), false},
		{"connection age", status.Error(codes.Unavailable, "connection reset, received prior goaway: code: NO_ERROR"), false},
	} {
		if got := mayBeRefusal(classify(tc.err), tc.err); got != tc.want {
			t.Errorf("%s: mayBeRefusal(%v) = %v, want %v", tc.name, tc.err, got, tc.want)
		}
	}
}

// The east-west gateway accepts for an istiod that is not there, and hangs up when it meets the same: gRPC's real words for that.
func TestAGatewayWithNobodyBehindItIsAClosedPort(t *testing.T) {
	for _, tc := range []struct {
		name   string
		hangUp func(*net.TCPConn) error
	}{
		{"reset", func(c *net.TCPConn) error { return c.SetLinger(0) }},
		{"end", func(c *net.TCPConn) error {
			if err := c.CloseWrite(); err != nil {
				return err
			}
			_, err := io.Copy(io.Discard, c) // until the client hangs up too
			return err
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			served := make(chan error, 1)
			go func() {
				served <- func() error {
					conn, err := l.Accept()
					if err != nil {
						return err
					}
					defer conn.Close()
					if _, err := conn.Read(make([]byte, 1)); err != nil { // of the ClientHello
						return err
					}
					return tc.hangUp(conn.(*net.TCPConn))
				}()
			}()
			c, err := New(Config{
				Address:       l.Addr().String(),
				Node:          func(context.Context) (*discovery.Node, error) { return &discovery.Node{}, nil },
				TLS:           func() *tls.Config { return &tls.Config{ServerName: "istiod.istio-system.svc"} },
				Subscriptions: []Subscription{{TypeURL: TypeNameTable}},
			})
			if err != nil {
				t.Fatal(err)
			}
			err = c.attempt(t.Context(), nil)
			if end := classify(err); end != endRefused || mayBeRefusal(end, err) {
				t.Errorf("attempt = %v: %v, may be a refused certificate: %t; want refused, and no doubt of the certificate", err, end, mayBeRefusal(end, err))
			}
			if err := errors.Join(l.Close(), <-served); err != nil {
				t.Error(err)
			}
		})
	}
}
