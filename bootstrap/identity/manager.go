package identity

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"wingman/bootstrap/identity/internal/credential"
)

// A Manager keeps one identity alive. Its methods are safe for concurrent use; all but Run and Renew return at once.
type Manager struct {
	cfg     Config
	who     workload
	sources []credential.Source
	sealer  *sealer
	policy  policy

	live  atomic.Pointer[live]
	state atomic.Pointer[State]

	ready     chan struct{}
	readyOnce sync.Once
	renewals  chan renewal
	bundles   chan []*x509.Certificate // holds one, the newest that Run has not taken in
	metrics   *metrics

	// Tests put other ones here before Run.
	create   createFunc
	now      func() time.Time
	disk     disk
	newWatch func(*slog.Logger) watch
	newClock func(*slog.Logger) clockWatch
	asleep   func() time.Duration // since the boot
}

// A live is what others read without a lock: replaced whole, never changed.
type live struct {
	cert  *Certificate // nil: none yet
	roots anchors
	pool  *x509.CertPool
}

// A renewal is a call of Renew that waits.
type renewal struct{ done chan error }

// New checks cfg, every problem at once, and allocates. It reads and starts nothing.
func New(cfg Config) (*Manager, error) {
	cfg, who, err := cfg.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("identity settings: %w", err)
	}
	metrics, err := newMetrics(cfg.Metrics)
	if err != nil {
		return nil, fmt.Errorf("identity metrics: %w", err)
	}
	m := &Manager{
		cfg: cfg, who: who,
		policy: policy{ratio: cfg.GraceRatio, jitter: cfg.GraceJitter},
		create: (&caClient{
			address: cfg.CAAddress, serverName: cfg.ServerName, clusterID: cfg.ClusterID,
			certSigner: cfg.CertSigner, ttl: cfg.TTL, dial: cfg.Dial,
		}).create,
		ready: make(chan struct{}), renewals: make(chan renewal), bundles: make(chan []*x509.Certificate, 1), metrics: metrics,
		now: wallClock, disk: systemDisk, newWatch: newWatch, newClock: newClockWatch, asleep: suspended,
	}
	m.sealer = &sealer{on: cfg.Seal, file: cfg.SealKey}
	m.sources = cfg.sources(m.sealer)
	m.live.Store(&live{pool: x509.NewCertPool()})
	m.state.Store(&State{
		Phase: None, Health: Degraded, SPIFFEID: cfg.SPIFFEID,
		StoreDir: filepath.Join(cfg.StateDir, storeName), OutputDir: cfg.OutputDir, Tokens: []TokenState{}, Roots: []RootState{}, Issuer: cfg.issuer(),
	})
	return m, nil
}

// Ready is closed once there is a usable certificate, from disk or from the CA.
func (m *Manager) Ready() <-chan struct{} { return m.ready }

// Current is the newest certificate, nil before the first. It may have expired when no CA could be reached for its whole life.
func (m *Manager) Current() *Certificate { return m.live.Load().cert }

// Roots is the trust bundle in use: the root file's and those of the CA's answers. Empty before Run has read the root file. Do not change it.
func (m *Manager) Roots() *x509.CertPool { return m.live.Load().pool }

// Token is the token to send beside a certificate: the first of a file whose claims do not speak against it, else the first of a file. Programs and clouds
// are not asked. The error wraps ErrNoToken when there is none: then send none, a certificate will do. It wraps ErrNotJWT when the
// content of a file could not even be sent. An expired token is returned: only istiod's clock counts.
func (m *Manager) Token() (string, error) {
	var first string
	why := fmt.Errorf("%w: no token file is named", ErrNoToken)
	for _, s := range m.sources {
		if !s.Local() {
			continue
		}
		token, err := s.Token(context.Background())
		if err != nil {
			if !errors.Is(err, ErrNoToken) || s.Name() == SourceFile {
				why = err
			}
			continue
		}
		if _, err := InspectToken([]byte(token.JWT()), m.now()); err == nil {
			return token.JWT(), nil
		}
		first = cmp.Or(first, token.JWT())
	}
	if first != "" {
		return first, nil
	}
	return "", why
}

// ClientTLS is for dialling istiod under Config.ServerName: see ClientTLSFor.
func (m *Manager) ClientTLS() *tls.Config { return m.ClientTLSFor(m.cfg.ServerName) }

// ClientTLSFor is for dialling istiod under another name than the CA's. Each handshake shows the certificate that is newest then, or
// none when there is none that lives, and checks istiod's certificate against the roots of that moment: neither a renewal
// nor a change of roots needs a new config. What the check finds is said in one sentence. TLS 1.2 and later.
func (m *Manager) ClientTLSFor(serverName string) *tls.Config {
	return clientTLS(serverName,
		func() *tls.Certificate {
			if c := m.Current(); c.usable(m.now()) {
				return c.TLS()
			}
			return nil
		},
		func(peers []*x509.Certificate) error {
			return verifyServer(peers, serverName, m.live.Load().roots.without(fromFederated), m.cfg.RootFile, m.who.namespace, m.now())
		})
}

// Renew asks for a new certificate now and waits for the outcome; a request under way counts. It needs a running Run.
func (m *Manager) Renew(ctx context.Context) error {
	r := renewal{done: make(chan error, 1)}
	select {
	case m.renewals <- r:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-r.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// State is what `cert show` prints, as of the last step, at most half a minute ago; Health is judged now.
func (m *Manager) State() State {
	s := *m.state.Load()
	if c := m.Current(); c != nil {
		s.Health = m.policy.health(c.lifeAt(m.now()), m.now())
	}
	return s
}

// wallClock is the clock that certificates are dated by. Without Go's monotonic reading, which would make differences of it blind to a
// suspend and to a clock that was set.
func wallClock() time.Time { return time.Now().Round(0) }
