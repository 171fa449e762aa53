package xds

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// ending says how a stream, or the attempt at one, came to its end. It decides how soon the next attempt comes.
type ending int

const (
	// endGraceful: istiod asked to come back (connection age, its own restart, plain end of stream).
	endGraceful ending = iota + 1
	// endRefused: nobody is there now, or nobody behind the gateway. Asking again costs next to nothing, and istiod's return should be noticed at once.
	endRefused
	// endBroken: time-outs, resets, TLS, anything unnamed.
	endBroken
	// endRejected: istiod is there and says no; a person or a new credential has to change something.
	endRejected
)

func (e ending) String() string {
	return [...]string{"none", "graceful", "refused", "broken", "rejected"}[e]
}

// classify maps the error that ended a stream.
func classify(err error) ending {
	switch {
	case err == nil, errors.Is(err, io.EOF):
		return endGraceful
	case errors.Is(err, syscall.ECONNREFUSED):
		return endRefused
	}
	switch status.Code(err) {
	case codes.Unknown:
		// istiod still writes "disconnected" of the stream before into the entry, and loses the race against itself.
		if strings.Contains(err.Error(), "Operation cannot be fulfilled") {
			return endGraceful
		}
	case codes.Unauthenticated, codes.PermissionDenied, codes.FailedPrecondition, codes.InvalidArgument, codes.Unimplemented:
		return endRejected
	case codes.Unavailable:
		msg := status.Convert(err).Message()
		switch {
		// grpc-go tells of a GOAWAY only in the text of the error (internal/transport/http2_client.go). NO_ERROR is what a
		// server sends for its connection age and for a graceful stop; ENHANCE_YOUR_CALM and others are not graceful.
		case strings.Contains(msg, "received prior goaway: code: NO_ERROR"):
			return endGraceful
		case strings.Contains(msg, "connection refused"), hungUpInHandshake(msg):
			return endRefused
		}
	}
	return endBroken
}

// hungUpInHandshake reports whether the connection went in the TLS handshake without a word: a gateway accepts, finds nobody behind it and hangs up. Who
// refuses a certificate there sends an alert. The text is grpc-go's (internal/transport/http2_client.go).
func hungUpInHandshake(msg string) bool {
	_, cause, found := strings.Cut(msg, "authentication handshake failed: ")
	return found && !strings.Contains(cause, "tls: ") &&
		(strings.Contains(cause, "connection reset by peer") || strings.Contains(cause, "broken pipe") || strings.Contains(cause, "EOF"))
}

// sameCause reduces an error to what stays the same when it happens again: numbers, ports above all, do not.
func sameCause(err error) string {
	return strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' {
			return -1
		}
		return r
	}, err.Error())
}

// mayBeRefusal reports whether a new certificate could make a difference. A server that refuses the certificate of a TLS 1.3 client does so after the
// handshake: its alert is lost when our first write meets the closed connection. A connection that goes in the handshake is endRefused.
//
// Nor does one that istiod had answered on: an istiod that dies would have every machine ask for a certificate at once.
func mayBeRefusal(end ending, err error) bool {
	if status.Code(err) == codes.Unauthenticated {
		return true
	}
	msg := err.Error()
	if errors.As(err, new(afterAnswer)) {
		return end == endBroken && strings.Contains(msg, "remote error: tls:")
	}
	return end == endBroken && (strings.Contains(msg, "remote error: tls:") || strings.Contains(msg, "broken pipe") || strings.Contains(msg, "connection reset"))
}

// afterAnswer is the end of a stream that istiod had answered on.
type afterAnswer struct{ error }

func (e afterAnswer) Unwrap() error { return e.error }

// Limits of the wait before the next attempt, by ending.
var waits = map[ending]struct{ first, most time.Duration }{
	endGraceful: {0, time.Second},
	endRefused:  {100 * time.Millisecond, 600 * time.Millisecond}, // a stream is to be back within a second of the port being open
	endBroken:   {500 * time.Millisecond, 15 * time.Second},
	endRejected: {time.Second, 30 * time.Second},
}

// settled is how long a stream must have lived for the next wait to start from the bottom again.
const settled = 10 * time.Second

// backoff computes waits between attempts. The zero value is ready.
type backoff struct {
	last ending
	n    int // attempts in a row that ended as last, minus one
}

// next returns how long to wait after a stream that ended so and had lived that long: doubling from the first wait of its kind
// to the greatest one, the upper half of it at random so that many VMs do not come back in step. random is in [0,1).
func (b *backoff) next(e ending, lived time.Duration, random float64) time.Duration {
	if e == b.last && lived < settled {
		b.n = min(b.n+1, 16)
	} else {
		b.n = 0
	}
	b.last = e
	w := waits[e]
	if w.first == 0 {
		if b.n == 0 {
			return 0
		}
		// A server that ends every stream at once is not being graceful any more.
		w.first = 50 * time.Millisecond
	}
	d := min(w.first<<b.n, w.most)
	return d/2 + time.Duration(random*float64(d/2))
}

func jitter() float64 { return rand.Float64() }

// explain adds what an operator can do to errors whose text alone does not say it. It keeps the cause. What is wrong with istiod's
// certificate is said by the check that TLS was given (identity.Manager.ClientTLSFor).
func explain(err error, address string, node nodeFacts) error {
	if strings.Contains(err.Error(), "remote error: tls:") {
		return fmt.Errorf("istiod at %s refused this machine's certificate: %w", address, err)
	}
	switch status.Code(err) {
	case codes.FailedPrecondition:
		return fmt.Errorf("istiod does not register this VM: does WorkloadGroup %s/%s exist? %w", node.namespace, node.group, err)
	case codes.Unauthenticated:
		return fmt.Errorf("istiod accepts neither this machine's certificate nor its token: %w", err)
	case codes.PermissionDenied:
		return fmt.Errorf("istiod does not let this identity be %s in namespace %s: %w", node.id, node.namespace, err)
	}
	return err
}

// nodeFacts is what explain needs to know of the node that was sent.
type nodeFacts struct{ id, namespace, group string }
