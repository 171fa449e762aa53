package identity

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// A requestError is a failed request for a certificate, said for the operator.
type requestError struct {
	failure failure
	another bool // another credential may pass where this one did not
	text    string
	cause   error
}

func (e *requestError) Error() string { return e.text }
func (e *requestError) Unwrap() error { return e.cause }

// A scene is what an explanation may name.
type scene struct {
	address, tokenFile, clusterID string
	who                           workload
	audience                      string
	timeout                       time.Duration
	now                           time.Time
}

// mend is the one command that brings a new token.
func (s scene) mend() string {
	command := fmt.Sprintf("kubectl create token %s -n %s --audience %s --duration 1h", s.who.serviceAccount, s.who.namespace, s.audience)
	if s.tokenFile == "" {
		return "name a token file and fill it with: " + command
	}
	return fmt.Sprintf("put the output of `%s` at %s", command, s.tokenFile)
}

// explain turns what went wrong with cred into a sentence, and decides what to do about it. Pure.
func explain(err error, cred proof, s scene) *requestError {
	e := &requestError{cause: err, failure: failedUnreachable}
	say := func(format string, args ...any) *requestError {
		e.text = fmt.Sprintf(format, args...)
		return e
	}
	var call *callError
	if !errors.As(err, &call) {
		return say("%v", err)
	}
	answer, _ := status.FromError(call.rpc)
	switch {
	case isUntrusted(call.local):
		return say("%v", call.local)
	case cred.cert != nil && strings.Contains(answer.Message(), "remote error: tls:"):
		e.failure, e.another = failedRefused, true
		return say("istiod broke off the TLS handshake over our certificate (%s): its roots have probably changed", alert(answer.Message()))
	case cred.cert == nil && strings.Contains(answer.Message(), "remote error: tls:"):
		return say("%s broke off the TLS handshake (%s): is this istiod's CA?", s.address, alert(answer.Message()))
	case call.local != nil && (answer.Code() == codes.Unavailable || answer.Code() == codes.DeadlineExceeded):
		return say("cannot reach istiod's CA at %s: %s", s.address, plainDial(call.local))
	}
	message := fmt.Sprintf("%.300q", answer.Message())
	switch answer.Code() {
	case codes.Unauthenticated:
		e.failure, e.another = failedRefused, true
		return say("%s", refused(cred, s))
	case codes.PermissionDenied:
		e.failure, e.another = failedRefused, true
		return say("istiod knows our %s but will not sign for it: %s", cred.name, message)
	case codes.ResourceExhausted:
		if strings.Contains(answer.Message(), "message larger than max") {
			return say("the answer of %s is larger than %d kB: is this istiod's CA?", s.address, maxAnswer>>10)
		}
		e.failure = failedOverloaded
		return say("istiod is overloaded and asks for patience: %s", message)
	case codes.DeadlineExceeded:
		return say("no answer from istiod's CA at %s within %s", s.address, span(s.timeout))
	case codes.Unavailable:
		// A server that refuses a certificate after the handshake (TLS 1.3) may reset the connection before its alert is read.
		e.another = cred.cert != nil
		return say("istiod's CA at %s is not available: %s", s.address, message)
	case codes.Unimplemented:
		return say("there is no CA at %s: set CA_ADDR to the one that signs (%s)", s.address, message)
	case codes.Canceled:
		return say("the request was given up")
	}
	return say("istiod's CA could not sign: %s: %s", answer.Code(), message)
}

// refused says why istiod answered UNAUTHENTICATED. Its answer is the same for every cause (Istio security/pkg/server/ca/server.go),
// so the reason is looked for in the credential itself.
func refused(cred proof, s scene) string {
	token := []byte(cred.token.reveal())
	if len(token) == 0 {
		return "istiod does not accept our certificate as a credential: its roots may have changed, or this CA takes tokens only"
	}
	of := ""
	if cred.source != "" && cred.source != SourceFile {
		of = " of " + cred.source
	}
	want := TokenWant{Audience: s.audience, Namespace: s.who.namespace, ServiceAccount: s.who.serviceAccount}
	if err := CheckToken(token, want, s.now); err != nil {
		return fmt.Sprintf("istiod refuses the token%s: %v; %s", of, err, s.mend())
	}
	info, _ := InspectToken(token, s.now)
	if info.ServiceAccount == "" {
		return fmt.Sprintf("istiod refuses the token%s: its subject %.100q (issuer %.100q) is no service account's: the API server must map it to system:serviceaccount:%s:%s (docs/identity.md)",
			of, info.Subject, info.Issuer, s.who.namespace, s.who.serviceAccount)
	}
	return fmt.Sprintf("istiod refuses the token"+of+" although its claims look right (issuer %.100q): "+
		"it was revoked, its service account is gone, or cluster %q does not know its issuer; %s", info.Issuer, s.clusterID, s.mend())
}

// alert is the peer's TLS alert within gRPC's message: "tls: expired certificate".
func alert(message string) string {
	_, text, _ := strings.Cut(message, "remote error: ")
	text, _, _ = strings.Cut(text, "\"")
	return text
}

// plainDial is err without the parts that repeat the address.
func plainDial(err error) string {
	var name *net.DNSError
	if errors.As(err, &name) {
		return fmt.Sprintf("its name %q does not resolve (%s): istioctl's hosts file maps it", name.Name, name.Err)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return "the connection was not accepted in time: is the port open along the way?"
	}
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err.Error()
	}
	return err.Error()
}
