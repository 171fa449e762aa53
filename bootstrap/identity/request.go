package identity

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"time"
)

// requestTimeout bounds one call of the CA, dial and handshake included; less when little life is left (timeoutFor).
const requestTimeout = 10 * time.Second

// A request is what one round of asking the CA starts from. It is a snapshot: what changes meanwhile is for the next one.
type request struct {
	key    crypto.Signer // of a round that failed; nil: make one
	inHand *Certificate  // nil: none that lives
	token  hidden[string]
	none   error // why there is no token; nil when there is one
	roots  anchors
	left   time.Duration // life left, 0: none
	over   time.Time     // when the certificate in hand ended; zero: it lives, or there is none
}

// An outcome is how a round ended.
type outcome struct {
	cert       *Certificate // nil: err says why
	roots      []*x509.Certificate
	credential string
	behind     time.Duration // this machine's clock, behind the CA's; 0: not known to be
	key        crypto.Signer // for the next round
	err        error
	failure    failure
	took       time.Duration
}

// credentials are the ways to prove who we are, in the order to try them: the certificate lives as long as we do, the token an hour.
func (r request) credentials() []credential {
	var list []credential
	if r.inHand != nil {
		list = append(list, credential{name: "certificate", cert: r.inHand.TLS()})
	}
	if r.token.reveal() != "" {
		list = append(list, credential{name: "token", token: r.token})
	}
	return list
}

// ask goes through the credentials until the CA gives a certificate that stands the check.
func (m *Manager) ask(ctx context.Context, r request) outcome {
	began := time.Now()
	out := outcome{key: r.key}
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
	creds := r.credentials()
	if len(creds) == 0 {
		out.failure = failedRefused
		certificate := "no living certificate"
		if !r.over.IsZero() {
			certificate = fmt.Sprintf("the certificate expired %s ago", span(m.now().Sub(r.over)))
		}
		out.err = fmt.Errorf("nothing to prove who we are with: %s, and %w; %s", certificate, r.none, m.scene(0).mend())
		return out
	}
	var problems []error
	for _, cred := range creds {
		err := m.askWith(ctx, cred, csr, r, &out)
		if err == nil {
			out.failure, out.took = 0, time.Since(began)
			m.metrics.requests.WithLabelValues(cred.name, "ok").Inc()
			return out
		}
		m.metrics.requests.WithLabelValues(cred.name, err.failure.String()).Inc()
		if len(problems) == 0 || problems[0].Error() != err.Error() {
			problems = append(problems, err)
		}
		out.failure = err.failure
		if !err.another {
			break
		}
	}
	if r.none != nil && out.failure == failedRefused { // the certificate alone did not do
		problems = append(problems, errors.New(m.scene(0).mend()))
	}
	out.err = errors.Join(problems...)
	return out
}

// askWith makes one call and checks the answer. It fills in out when that is good.
func (m *Manager) askWith(ctx context.Context, cred credential, csr []byte, r request, out *outcome) *requestError {
	timeout := timeoutFor(r.left)
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	elements, err := m.ca.create(ctx, cred, csr, func(peers []*x509.Certificate) error {
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
	out.roots, out.credential, out.behind, out.key = ans.roots, cred.name, clockBehind(ans.chain[0], now), nil
	return nil
}

func (m *Manager) scene(timeout time.Duration) scene {
	return scene{
		address: m.cfg.CAAddress, tokenFile: m.cfg.TokenFile, clusterID: m.cfg.ClusterID,
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
