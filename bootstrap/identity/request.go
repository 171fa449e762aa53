package identity

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"
)

// requestTimeout bounds one call of the CA, dial and handshake included; less when little life is left (timeoutFor).
const requestTimeout = 10 * time.Second

// A request is what one round of asking the CA starts from. It is a snapshot: what changes meanwhile is for the next one.
type request struct {
	key    crypto.Signer // of a round that failed; nil: make one
	inHand *Certificate  // nil: none that lives
	offers []offer       // sources of tokens, in the order to try them
	copied bool          // inHand may be another machine's: tokens come first
	roots  anchors
	left   time.Duration // life left, 0: none
	over   time.Time     // when the certificate in hand ended; zero: it lives, or there is none
}

// An outcome is how a round ended.
type outcome struct {
	cert       *Certificate // nil: err says why
	roots      []*x509.Certificate
	credential string        // that the CA accepted
	source     string        // of the token, if it was one
	offers     []offer       // as they are after the round
	key        crypto.Signer // for the next round
	err        error
	failure    failure
	took       time.Duration
}

// ask goes through the credentials until the CA gives a certificate that stands the check: the certificate in hand, which lives as long as we do, then the
// tokens in the order of their sources. A token whose own claims speak against it comes last.
func (m *Manager) ask(ctx context.Context, r request) outcome {
	began := time.Now()
	out := outcome{key: r.key, offers: slices.Clone(r.offers)}
	if out.key == nil {
		out.key, out.err = m.cfg.Key.generate()
	}
	var csr []byte
	if out.err == nil {
		csr, out.err = newCSR(out.key, m.cfg.SPIFFEID)
	}
	if out.err != nil {
		return out
	}
	var problems []error
	var tried []proof
	// try reports whether to go on with another credential.
	try := func(cred proof) bool {
		tried = append(tried, cred)
		err := m.askWith(ctx, cred, csr, r, &out)
		if err == nil {
			out.failure, out.took = 0, time.Since(began)
			m.metrics.requests.WithLabelValues(cred.name, "ok").Inc()
			return false
		}
		m.metrics.requests.WithLabelValues(cred.name, err.failure.String()).Inc()
		if len(problems) == 0 || problems[0].Error() != err.Error() {
			problems = append(problems, err)
		}
		out.failure = err.failure
		return err.another
	}
	goOn := true
	if r.inHand != nil && !r.copied {
		goOn = try(proof{name: "certificate", cert: r.inHand.TLS()})
	}
	var unfit []proof
	for i := 0; goOn && i < len(out.offers); i++ {
		o := &out.offers[i]
		if !o.source.Local() {
			o.ask(ctx, m.now())
		}
		cred := proof{name: "token", token: o.token, source: o.source.Name()}
		switch {
		case o.err != nil || slices.ContainsFunc(slices.Concat(tried, unfit), cred.same):
		case CheckToken([]byte(o.token.reveal()), m.wantToken(), m.now()) != nil:
			unfit = append(unfit, cred)
		default:
			if goOn = try(cred); goOn {
				o.forget()
			}
		}
	}
	if goOn && r.inHand != nil && r.copied {
		goOn = try(proof{name: "certificate", cert: r.inHand.TLS()})
	}
	for i := 0; goOn && i < len(unfit); i++ {
		goOn = try(unfit[i])
	}
	switch {
	case out.cert != nil:
		return out
	case len(tried) == 0:
		out.failure = failedRefused
		certificate := "no living certificate"
		if !r.over.IsZero() {
			certificate = fmt.Sprintf("the certificate expired %s ago", span(m.now().Sub(r.over)))
		}
		problems = append(problems, fmt.Errorf("nothing to prove who we are with: %s, and %w; %s", certificate, missing(out.offers), m.scene(0).mend()))
	case tried[len(tried)-1].cert != nil && out.failure == failedRefused: // the certificate alone did not do
		if err := missing(out.offers); !errors.Is(err, ErrNoToken) {
			problems = append(problems, err)
		}
		problems = append(problems, errors.New(m.scene(0).mend()))
	}
	out.err = errors.Join(problems...)
	return out
}

// askWith makes one call and checks the answer. It fills in out when that is good.
func (m *Manager) askWith(ctx context.Context, cred proof, csr []byte, r request, out *outcome) *requestError {
	timeout := timeoutFor(r.left)
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	elements, err := m.create(ctx, cred, csr, func(peers []*x509.Certificate) error {
		return verifyServer(peers, m.cfg.ServerName, r.roots, m.cfg.RootFile, m.who.namespace, m.now())
	})
	if err != nil {
		return explain(err, cred, m.scene(timeout))
	}
	now := m.now()
	ans, err := checkAnswer(elements, out.key, m.cfg.SPIFFEID, r.roots, now)
	if err != nil {
		return &requestError{text: err.Error(), cause: err, failure: failedInvalid}
	}
	keyPEM, err := m.cfg.Key.encode(out.key)
	if err != nil {
		return &requestError{text: err.Error(), cause: err, failure: failedInvalid}
	}
	out.cert = newCertificate(m.cfg.SPIFFEID, out.key, keyPEM, ans.chain, now)
	out.roots, out.credential, out.source = ans.roots, cred.name, cred.source
	out.key = nil
	return nil
}

func (m *Manager) scene(timeout time.Duration) scene {
	return scene{
		address: m.cfg.CAAddress, tokenFile: m.fileToMend(), clusterID: m.cfg.ClusterID,
		who: m.who, audience: m.cfg.Audience, timeout: timeout, now: m.now(),
	}
}

// timeoutFor leaves time for another try within the life that is left.
func timeoutFor(left time.Duration) time.Duration {
	if left <= 0 {
		return requestTimeout
	}
	return min(requestTimeout, max(left/3, 2*time.Second))
}

// same reports whether two credentials are one token, which two sources can have.
func (c proof) same(other proof) bool {
	return c.cert == nil && other.cert == nil && c.token.reveal() == other.token.reveal()
}
