package identity

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// errSourceRenews is what Renew says where certificates come from a SPIFFE Workload API.
var errSourceRenews = errors.New("certificates come from a SPIFFE Workload API, which renews them by itself: there is nothing to ask it for")

// viaSocket names the Workload API where a credential is named: in State and in metrics.
const viaSocket = "workload-api"

// socketPause lies between two attempts to reach the Workload API. It is on this machine: asking costs next to nothing.
const socketPause = time.Second

// A delivery is what the Workload API said: an identity with its roots, or why there is none.
type delivery struct {
	key       crypto.Signer
	chain     []*x509.Certificate
	own       []*x509.Certificate // the bundle of our trust domain
	federated []*x509.Certificate // those of others
	err       error
	failure   failure
}

// followSocket keeps the stream of the Workload API at Config.WorkloadSocket open until ctx ends, and delivers what it says. What is not taken
// makes way for what comes after it, so the last word counts. The channel is never closed; done is once nobody writes to it any more.
func (m *Manager) followSocket(ctx context.Context) (deliveries chan delivery, done chan struct{}) {
	deliveries, done = make(chan delivery, 1), make(chan struct{})
	go func() {
		defer close(done)
		w := socketWatch{m: m, out: deliveries}
		for ctx.Err() == nil {
			client, err := workloadapi.New(ctx, workloadapi.WithAddr("unix://"+m.cfg.WorkloadSocket), workloadapi.WithBackoffStrategy(w),
				workloadapi.WithDialOptions(grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: socketPause / 5, Multiplier: 2, MaxDelay: socketPause}})))
			if err == nil {
				err = client.WatchX509Context(ctx, w) // comes back for what go-spiffe will not try again
				client.Close()
			}
			w.OnX509ContextWatchError(err)
			select {
			case <-ctx.Done():
			case <-time.After(socketPause):
			}
		}
	}()
	return deliveries, done
}

// A socketWatch turns what go-spiffe tells into deliveries.
type socketWatch struct {
	m   *Manager
	out chan delivery
}

func (w socketWatch) put(d delivery) {
	for {
		select {
		case w.out <- d:
			return
		case <-w.out: // nobody has looked at it yet
		}
	}
}

func (w socketWatch) OnX509ContextUpdate(c *workloadapi.X509Context) {
	var d delivery
	mine := slices.IndexFunc(c.SVIDs, func(s *x509svid.SVID) bool { return s.ID.String() == w.m.cfg.SPIFFEID })
	if mine < 0 {
		var ids []string
		for _, s := range c.SVIDs {
			ids = append(ids, s.ID.String())
		}
		w.put(delivery{failure: failedRefused, err: fmt.Errorf("the SPIFFE Workload API at %s gives %s, expected %s: %s",
			w.m.cfg.WorkloadSocket, quoteAll(ids), w.m.cfg.SPIFFEID, w.m.entryCommand())})
		return
	}
	svid := c.SVIDs[mine]
	d.key, d.chain = svid.PrivateKey, svid.Certificates
	for _, b := range c.Bundles.Bundles() {
		if b.TrustDomain() == svid.ID.TrustDomain() {
			d.own = append(d.own, b.X509Authorities()...)
		} else {
			d.federated = append(d.federated, b.X509Authorities()...)
		}
	}
	w.put(d)
}

func (w socketWatch) OnX509ContextWatchError(err error) {
	if status.Code(err) == codes.Canceled || errors.Is(err, context.Canceled) {
		return
	}
	w.put(w.m.explainSocket(err))
}

// socketWatch is its own back-off strategy.
func (w socketWatch) NewBackoff() workloadapi.Backoff { return w }
func (socketWatch) Next() time.Duration               { return socketPause }
func (socketWatch) Reset()                            {}

// entryCommand is what an operator registers this workload with.
func (m *Manager) entryCommand() string {
	return fmt.Sprintf("spire-server entry create -parentID AGENT -spiffeID %s -selector unix:uid:%d", m.cfg.SPIFFEID, os.Geteuid())
}

// explainSocket turns what failed between us and the Workload API into one sentence with the next step.
func (m *Manager) explainSocket(err error) delivery {
	path := m.cfg.WorkloadSocket
	say := func(f failure, format string, args ...any) delivery {
		return delivery{failure: f, err: fmt.Errorf(format, args...)}
	}
	message := status.Convert(err).Message()
	switch _, there := os.Stat(path); {
	case status.Code(err) == codes.PermissionDenied:
		return say(failedRefused, "the SPIFFE agent at %s knows no identity for this process (%.200s): %s", path, message, m.entryCommand())
	case status.Code(err) == codes.Unimplemented:
		return say(failedRefused, "%s serves no SPIFFE Workload API (%.200s): name the socket of a SPIRE agent", path, message)
	case errors.Is(there, fs.ErrNotExist):
		return say(failedUnreachable, "no SPIFFE Workload API at %s: is the SPIRE agent running, with this socket_path?", path)
	case errors.Is(there, fs.ErrPermission), strings.Contains(message, "permission denied"):
		return say(failedRefused, "this process (uid %d) may not open %s: its folder and the socket must be open to it", os.Geteuid(), path)
	case strings.Contains(message, "connection refused"):
		return say(failedUnreachable, "nobody listens at %s: the SPIRE agent is not running", path)
	}
	return say(failedUnreachable, "the SPIFFE Workload API at %s: %.300s", path, err.Error())
}

// deliver takes in what the Workload API said.
func (r *runner) deliver(d delivery, now time.Time) event {
	err := d.err
	var c *Certificate
	roots := r.roots.withSource(fromSPIFFE, d.own).withSource(fromFederated, d.federated)
	if err == nil {
		if c, err = r.checkDelivered(d, roots, now); err != nil {
			err, d.failure = fmt.Errorf("the SPIFFE Workload API at %s: %w", r.cfg.WorkloadSocket, err), failedInvalid
		}
	}
	if err != nil {
		r.metrics.requests.WithLabelValues(viaSocket, d.failure.String()).Inc()
		r.requestFailed(err, now)
		return event{kind: evFailed, failure: d.failure}
	}
	r.metrics.requests.WithLabelValues(viaSocket, "ok").Inc()
	r.origin(r.cfg.Machine) // the agent there has attested this machine
	r.said.LastError, r.said.LastErrorAt, r.said.Credential, r.said.Clock = "", time.Time{}, viaSocket, ""
	r.said.Source = ""
	if old := r.Current(); old == nil || old.Serial != c.Serial || !sameKey(old.chain[0], d.key) {
		r.cfg.Log.Info("certificate received", "certificate", c, "credential", viaSocket)
	} else {
		c = old // the stream began anew, or only roots changed
		if roots.equal(r.roots) {
			return event{kind: evIssued, life: c.lifeAt(now)}
		}
	}
	r.use(c, roots, now)
	return event{kind: evIssued, life: c.lifeAt(now)}
}

// checkDelivered holds an identity of the Workload API to what one of the CA is held to; only our own trust domain may vouch for it.
func (r *runner) checkDelivered(d delivery, roots anchors, now time.Time) (*Certificate, error) {
	chain, err := checkIssued(d.chain, d.key, r.cfg.SPIFFEID, roots.without(fromFederated), now)
	if err != nil {
		return nil, err
	}
	keyPEM, err := r.cfg.Key.encode(d.key)
	if err != nil {
		return nil, err
	}
	return newCertificate(r.cfg.SPIFFEID, d.key, keyPEM, chain, now), nil
}
