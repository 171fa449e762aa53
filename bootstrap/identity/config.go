package identity

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// A Config says whose identity it is, who issues it and where it is kept. SPIFFEID, CAAddress, RootFile and StateDir must be set.
type Config struct {
	CAAddress   string        // host:port of the CA. Istio: CA_ADDR
	ServerName  string        // name expected in the CA's certificate; "" means the host of CAAddress. Istio: ISTIOD_SAN
	SPIFFEID    string        // spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT
	ClusterID   string        // gRPC metadata ClusterID. Istio: ISTIO_META_CLUSTER_ID
	CertSigner  string        // request metadata CertSigner. Istio: ISTIO_META_CERT_SIGNER
	Audience    string        // what tokens are asked for, and expected in their aud; "" means DefaultAudience
	TTL         time.Duration // life to ask for, at least a second; zero means 24 h. Istio: SECRET_TTL
	GraceRatio  float64       // renew when this share of the life is left; zero means 0.5. Istio: SECRET_GRACE_PERIOD_RATIO
	GraceJitter float64       // zero means 0.01, negative means none. Istio: SECRET_GRACE_PERIOD_RATIO_JITTER
	Key         KeyOptions

	TokenFile string // JWT; may appear, change and vanish at any time. "" means none
	// Machine is where this runs; the zero value means that copies of the store are not noticed.
	Machine Machine
	// Credentials says where else tokens come from; the zero value means TokenFile alone.
	Credentials Credentials
	// WorkloadSocket is a SPIFFE Workload API to take certificates from instead of asking the CA; no token is used then. "" means none. Istio:
	// WORKLOAD_IDENTITY_SOCKET_FILE
	WorkloadSocket string
	RootFile       string // PEM, what istiod's certificate chains to; may be OutputDir/root-cert.pem
	StateDir       string // the store lies in its folder "identity"
	Seal           bool   // key and token at rest are sealed
	SealKey        string // file of the key that seals; "" means none: what is sealed cannot be read
	RunDir         string // on a tmpfs: with Seal, what OutputDir's links lead to lies in its folder "identity"
	OutputDir      string // where applications and pilot-agent look for the three PEM files; "" means nowhere. Istio: OUTPUT_CERTS
	// OtherDir is where another agent's key and chain are to be taken over from, and left as they are; "" means OutputDir.
	OtherDir string
	// Groups get copies of their own below OutputDir, see the package page; LookupGroup finds a gid, and must be set where there are groups.
	Groups      []string
	LookupGroup func(name string) (gid uint32, err error)

	// Dial connects to the CA; nil means a plain TCP dial by the system's resolver.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
	// OnChange is told of every certificate that comes into use, and of the same one with other roots, from Run's goroutine; never of
	// an expired one. It must not block.
	OnChange func(*Certificate)
	Log      *slog.Logger          // nil discards
	Metrics  prometheus.Registerer // nil means none
}

// withDefaults is c with defaults filled in, or every problem of it at once.
func (c Config) withDefaults() (Config, workload, error) {
	var problems []error
	refuse := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	host, port, err := net.SplitHostPort(c.CAAddress)
	if n, portErr := strconv.Atoi(port); err != nil || host == "" || portErr != nil || n < 1 || n > 65535 {
		refuse("CA address %q: expected host:port", c.CAAddress)
	}
	who, err := parseSPIFFEID(c.SPIFFEID)
	if err != nil {
		problems = append(problems, err)
	}
	if err := c.Key.validate(); err != nil {
		problems = append(problems, err)
	}
	setDefault(&c.ServerName, host)
	setDefault(&c.Audience, DefaultAudience)
	setDefault(&c.TTL, 24*time.Hour)
	setDefault(&c.GraceRatio, 0.5)
	setDefault(&c.GraceJitter, 0.01)
	c.GraceJitter = max(c.GraceJitter, 0)
	if c.TTL < time.Second {
		refuse("certificate life %v: expected at least 1 s", c.TTL)
	}
	if !(c.GraceRatio > 0 && c.GraceRatio < 1) {
		refuse("grace ratio %v: expected more than 0 and less than 1", c.GraceRatio)
	}
	if !(c.GraceJitter < 1) {
		refuse("grace jitter %v: expected less than 1", c.GraceJitter)
	}
	for _, path := range []struct {
		what, value string
		must        bool
	}{{"state folder", c.StateDir, true}, {"token file", c.TokenFile, false}, {"systemd credential", c.Credentials.Systemd, false}, {"seal key", c.SealKey, false}, {"run folder", c.RunDir, c.Seal && c.OutputDir != ""}, {"root file", c.RootFile, true}, {"output folder", c.OutputDir, false}, {"folder of another agent", c.OtherDir, false}, {"Workload API socket", c.WorkloadSocket, false}} {
		if path.value == "" && path.must || path.value != "" && !filepath.IsAbs(path.value) {
			refuse("%s %q: expected an absolute path", path.what, path.value)
		}
	}
	problems = append(problems, c.Credentials.validate()...)
	if c.Dial == nil {
		c.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", addr)
		}
	}
	if c.OnChange == nil {
		c.OnChange = func(*Certificate) {}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c, who, errors.Join(problems...)
}

// issuer says where certificates come from, "" for istiod's CA.
func (c Config) issuer() string {
	if c.WorkloadSocket == "" {
		return ""
	}
	return "SPIFFE Workload API at " + c.WorkloadSocket
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}
