package controlplane

import (
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// CAReply says how the CA answers a request it would otherwise grant.
type CAReply string

// The replies of a broken CA.
const (
	CANormal         CAReply = ""
	CAError          CAReply = "error"           // CAFault.Code, before anybody is authenticated
	CAHang           CAReply = "hang"            // nothing, until the caller gives up
	CAOneCertificate CAReply = "one certificate" // the leaf without its root
	CAEmpty          CAReply = "empty"           // no certificate at all
	CAWrongOrder     CAReply = "wrong order"     // root first
	CAGarbage        CAReply = "garbage"         // two elements that are no certificates
	CAOtherKey       CAReply = "other key"       // a certificate for a key the caller does not have
	CAOtherIdentity  CAReply = "other identity"  // spiffe://DOMAIN/ns/kube-system/sa/intruder
	CAForeignRoot    CAReply = "foreign root"    // a leaf that does not chain to the root beside it
)

// CAFault is one way for the CA to fail.
type CAFault struct {
	Reply CAReply
	// Code is CAError's status, such as codes.Unavailable, codes.ResourceExhausted or codes.PermissionDenied.
	Code codes.Code
	// Validity replaces the life of the certificate, also that of a normal reply; negative makes an expired one.
	Validity time.Duration
	// Times is how many requests fail before the CA is well again; zero means until the next SetCA.
	Times int
}

// Faults are levers. Each stays where it was put until it is moved again; a fresh server has none in effect.
type Faults struct {
	s *Server

	mu      sync.Mutex // guards everything below
	ca      CAFault
	left    int // requests that ca still spoils, if ca.Times is set
	caDelay time.Duration
	delay   time.Duration
	muted   map[string]bool // type URLs without answers
	refusal error           // of new streams
}

// Refuse closes the port, so that the kernel refuses connections, or opens it again. Connections that are up stay.
func (f *Faults) Refuse(on bool) error {
	if on {
		f.s.gate.refuse()
		return nil
	}
	return f.s.gate.allow()
}

// Hang leaves new connections without an answer, not even to the TLS hello, or stops doing so. Those that hung stay hung:
// see DropConnections.
func (f *Faults) Hang(on bool) { f.s.gate.hang(on) }

// DropConnections resets every TCP connection, and with it every stream, without a goodbye. New ones are accepted.
func (f *Faults) DropConnections() { f.s.gate.reset() }

// DrainConnections ends every connection as istiod does when it shuts down or a connection has reached its greatest age:
// GOAWAY at once, and streams that are still open after grace are closed. New connections are accepted.
func (f *Faults) DrainConnections(grace time.Duration) { f.s.gate.drain(grace) }

// EndStreams ends every ADS stream with a status and leaves the connections up; codes.OK ends them without an error.
func (f *Faults) EndStreams(code codes.Code, message string) {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	for _, st := range f.s.streams {
		select {
		case st.cut <- status.Error(code, message):
		default: // it is ending already
		}
	}
}

// RefuseStreams answers every new ADS stream with a status, such as codes.Unavailable "server is not ready to serve
// discovery information" or codes.ResourceExhausted; codes.OK accepts them again.
func (f *Faults) RefuseStreams(code codes.Code, message string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refusal = status.Error(code, message)
}

// Delay holds back every ADS answer and every push by d; CADelay does it for the CA. Zero ends it.
func (f *Faults) Delay(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.delay = d
}

// CADelay holds back every reply of the CA by d.
func (f *Faults) CADelay(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.caDelay = d
}

// Mute leaves requests for these types without an answer; none means all types are answered again.
func (f *Faults) Mute(typeURLs ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.muted = setOf(typeURLs)
}

// SetCA sets how the CA fails; the zero CAFault makes it well.
func (f *Faults) SetCA(c CAFault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ca, f.left = c, c.Times
}

// RevokeTokens makes every token minted so far worthless, though its claims still look good.
func (f *Faults) RevokeTokens() error { return f.s.tokens.rekey() }

// RotateRoot gives the CA a new root. With overlap the trust bundle holds the old root too, and the serving certificate
// is accepted by clients that know only the old one; without, those clients can no longer connect, and certificates of
// the old root are worthless. Connections stay up.
func (f *Faults) RotateRoot(overlap bool) error {
	return f.s.replaceAuthority(func(a *authority) (*authority, error) { return a.rotated(overlap) })
}

// ExpireServing gives the server a certificate that ended a minute ago; RenewServing heals it.
func (f *Faults) ExpireServing() error {
	return f.s.replaceAuthority(func(a *authority) (*authority, error) { return a.withServingExpiry(time.Now().Add(-time.Minute)) })
}

// RenewServing gives the server a fresh certificate by the current root.
func (f *Faults) RenewServing() error {
	return f.s.replaceAuthority(func(a *authority) (*authority, error) { return a.withServingExpiry(time.Now().Add(servingLife)) })
}

func (s *Server) replaceAuthority(next func(*authority) (*authority, error)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, err := next(s.authority)
	if err != nil {
		return err
	}
	s.authority = a
	s.changeLocked(ProxyConfig)
	return nil
}

// takeCA returns the fault and delay for one request of the CA and counts it.
func (f *Faults) takeCA() (CAFault, time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ca.Times == 0 {
		return f.ca, f.caDelay
	}
	if f.left == 0 {
		return CAFault{}, f.caDelay
	}
	f.left--
	return f.ca, f.caDelay
}

func (f *Faults) streamError() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.refusal
}

func (f *Faults) discovery(typeURL string) (mute bool, delay time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.muted[typeURL], f.delay
}
