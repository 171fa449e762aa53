package xds

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"net"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"

	"wingman/agent/xds/discovery"
)

// Timings of a stream.
const (
	// keepaliveTime is what Istio's agent sends; istiod answers more than twice that rate with GOAWAY.
	keepaliveTime    = 30 * time.Second
	keepaliveTimeout = 10 * time.Second
	// connectTimeout bounds one attempt: TCP, TLS and HTTP/2 settings.
	connectTimeout = 10 * time.Second
	// firstAnswerWait is how long health waits for a first answer. A control plane that serves no NameTable never gives one.
	firstAnswerWait = time.Second
	// goodbyeWait bounds how long a stop waits until istiod has read what was sent.
	goodbyeWait = time.Second
)

// A Subscription is a type the agent asks for and the function that takes its pushes in.
type Subscription struct {
	TypeURL string
	// Handle takes a push in, completely or not at all. Its error refuses the push: istiod gets a NACK with that text, and the
	// handler goes on with what it had. Pushes come one at a time; Handle must not block for long.
	Handle func(Push) error
}

// Config is all that a Client needs. Every field without "optional" must be set.
type Config struct {
	Address   string // istiod's discovery address, host:port
	ClusterID string // gRPC metadata ClusterID; optional
	Delta     bool   // incremental xDS rather than state of the world

	// Node makes the node of the next stream; istiod reads it once a stream.
	Node func(context.Context) (*discovery.Node, error)
	// TLS returns the client configuration for the next stream, ServerName set.
	TLS func() *tls.Config
	// Token returns the bearer token to send, "" for none; optional. istiod accepts whichever of token and certificate passes.
	Token func() string
	// Dial opens the connection; optional.
	Dial func(ctx context.Context, address string) (net.Conn, error)

	// Subscriptions in the order they are sent; the first goes out with the node.
	Subscriptions []Subscription
	// Fit returns what fits istiod's pushes to the Envoy whose first request this is (a DeltaDiscoveryRequest or a DiscoveryRequest),
	// nil when it takes them as they are. Optional.
	Fit func(first []byte, delta bool) Fitter
	// OnRefused is told when istiod may have refused this machine's certificate: a new one may pass. Optional; it must not block.
	OnRefused func()
	// OnState is told of every change of State().Phase, one after the other in their order; optional. It must not block, nor wait for this Client.
	OnState func(State)

	Log     *slog.Logger          // optional
	Metrics prometheus.Registerer // optional
}

// Phase names where a Client stands.
type Phase string

// Phases of a Client.
const (
	PhaseIdle       Phase = "idle"       // before Run and after it
	PhaseConnecting Phase = "connecting" // an attempt is under way
	PhaseConnected  Phase = "connected"  // the first request was sent on a stream that stands
	PhaseWaiting    Phase = "waiting"    // the last attempt failed; the next one comes by itself
)

// State is a snapshot of a Client.
type State struct {
	Phase     Phase     `json:"phase"`
	Address   string    `json:"address"`
	Since     time.Time `json:"since"`               // when Phase began
	Answered  bool      `json:"answered"`            // istiod answered on this stream
	Envoy     bool      `json:"envoy"`               // the stream is Envoy's, the agent's types go along with it
	Streams   int       `json:"streams"`             // streams opened so far
	LastError string    `json:"lastError,omitempty"` // why the last attempt or stream ended, if not gracefully; empty once istiod answered
	Rejected  bool      `json:"rejected,omitempty"`  // istiod is there and says no: somebody has to change something
	DownSince time.Time `json:"downSince,omitzero"`  // when the stream was lost, or first tried for; zero while one stands
	NACKs     int       `json:"nacks"`               // pushes refused so far
	LastNACK  string    `json:"lastNack,omitempty"`  // reason of the last refusal; empty once a later push was taken in
	// Of pushes that Envoy refused: how many, and the type and reason of those that it has not taken in a later version.
	EnvoyNACKs int               `json:"envoyNacks"`
	EnvoyNACK  map[string]string `json:"envoyNack,omitempty"`
}

// Client keeps the stream. Make it with New.
type Client struct {
	cfg     Config
	log     *slog.Logger
	metrics metrics
	health  outbox
	opening chan struct{} // holds one: whoever opens a stream, until istiod has answered it

	mostUnread int // bytes that pile up for an Envoy that does not read

	telling sync.Mutex // held while OnState is called; taken before mu

	mu        sync.Mutex // guards everything below
	state     State
	inUse     map[string]string // type → version of the push taken in last
	primary   *session          // the newest that istiod has answered; nil: none stands
	opened    uint64            // counts sessions in the order of their opening
	envoys    int               // streams of Envoy: while there is one the agent opens none of its own
	own       func()            // ends the agent's own attempt; nil: there is none
	turn      chan struct{}     // closed and replaced when primary ends, and when Envoy's last stream does
	wake      chan struct{}     // closed and replaced by Retry
	envoyLeft time.Time         // when Envoy's last stream ended
	parted    bool              // istiod saw the end of the last primary
	said      string            // cause of the outage that was logged last; empty: none was
	untold    []State           // for OnState, oldest first

	envoyWaits backoff   // of all attempts for Envoy, whichever of its streams they are for
	envoyNext  time.Time // the next of them comes no earlier
}

// New checks cfg. It opens nothing.
func New(cfg Config) (*Client, error) {
	if _, _, err := net.SplitHostPort(cfg.Address); err != nil {
		return nil, fmt.Errorf("istiod's address: %w", err)
	}
	if cfg.Node == nil || cfg.TLS == nil || len(cfg.Subscriptions) == 0 {
		return nil, errors.New("xds client needs a node, a TLS configuration and a subscription")
	}
	if cfg.Dial == nil {
		var d net.Dialer
		cfg.Dial = func(ctx context.Context, address string) (net.Conn, error) { return d.DialContext(ctx, "tcp", address) }
	}
	return &Client{
		cfg:     cfg,
		log:     cmp.Or(cfg.Log, slog.New(slog.DiscardHandler)),
		metrics: newMetrics(cfg.Metrics),
		health:  newOutbox(),
		state:   State{Phase: PhaseIdle, Address: cfg.Address, Since: time.Now()},
		inUse:   map[string]string{},
		opening: make(chan struct{}, 1),
		turn:    make(chan struct{}),
		wake:    make(chan struct{}),

		mostUnread: mostUnread,
	}, nil
}

// State returns a snapshot; safe at any time.
func (c *Client) State() State {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stateLocked()
}

func (c *Client) stateLocked() State {
	s := c.state
	s.EnvoyNACK = maps.Clone(s.EnvoyNACK)
	return s
}

// ReportHealth makes h the verdict that istiod has: it is sent now if a stream stands and the verdict is another than the one sent
// last, and on each new stream. It never blocks.
func (c *Client) ReportHealth(h Health) { c.health.put(h) }

// HealthSent waits until istiod was sent the latest verdict, or ctx ends. It reports whether it was sent.
func (c *Client) HealthSent(ctx context.Context) bool { return c.health.wait(ctx) }

// Retry ends the wait before the next attempt: something changed that may let it pass, a new certificate say.
func (c *Client) Retry() {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.wake)
	c.wake = make(chan struct{})
	c.envoyNext = time.Time{}
}

// woken is closed by the next Retry.
func (c *Client) woken() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.wake
}

// Run keeps the agent's own stream until ctx ends, and returns nil then. What ends a stream is never final. While Envoy's stream carries the
// agent's types, Run waits.
func (c *Client) Run(ctx context.Context) error {
	defer c.setPhase(PhaseIdle, nil)
	var b backoff
	for c.waitTurn(ctx) {
		began, woken := time.Now(), c.woken()
		err := c.attemptOwn(ctx)
		if ctx.Err() != nil {
			break
		}
		if errors.Is(err, errSuperseded) {
			continue
		}
		end, lived := classify(err), time.Since(began)
		c.failed(end, err)
		select {
		case <-ctx.Done():
		case <-woken:
		case <-time.After(b.next(end, lived, jitter())):
		}
	}
	return nil
}

// errSuperseded ends a session whose successor has been answered, and an attempt that Envoy's came before.
var errSuperseded = errors.New("a newer stream has taken over")

// attemptOwn is attempt for the agent alone. An Envoy that comes while it is being opened ends it.
func (c *Client) attemptOwn(parent context.Context) error {
	ctx, cut := context.WithCancel(parent)
	defer cut()
	c.mu.Lock()
	c.own = cut
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.own = nil
		c.mu.Unlock()
	}()
	err := c.attempt(ctx, nil)
	if ctx.Err() != nil && parent.Err() == nil {
		return errSuperseded
	}
	return err
}

// attempt opens one stream and serves it to its end: for Envoy, or for the agent alone when e is nil.
func (c *Client) attempt(parent context.Context, e *envoy) (err error) {
	ctx, cut := context.WithCancel(parent)
	defer cut()
	// One after the other. istiod takes the end of a stream for the end of the machine only if no other was opened after it: an entry whose newest stream ends
	// before an older one would never be removed (changeWorkloadEntryStateToDisconnected in pilot/pkg/autoregistration).
	select {
	case c.opening <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	stands := sync.OnceFunc(func() { <-c.opening })
	defer stands()
	if e == nil && c.envoyIsHere() {
		return errSuperseded
	}
	c.setPhase(PhaseConnecting, nil)
	node, err := c.cfg.Node(ctx)
	if err != nil {
		return fmt.Errorf("make the node: %w", err)
	}
	var dialErr lastError // grpc-go flattens the dialler's error into text; the cause is needed to tell refused from broken
	conn, err := grpc.NewClient("passthrough:///"+c.cfg.Address,
		grpc.WithTransportCredentials(credentials.NewTLS(c.cfg.TLS())),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			conn, err := c.cfg.Dial(ctx, address)
			dialErr.set(err)
			return conn, err
		}),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: connectTimeout}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(math.MaxInt32), grpc.ForceCodecV2(codec{})),
		grpc.WithNoProxy(),
	)
	if err != nil {
		return err
	}
	defer conn.Close()

	// The stream outlives ctx for a moment, so that the last words of a stop are still sent; conn.Close ends it in any case.
	streamCtx, cancel := context.WithCancel(metadata.NewOutgoingContext(context.WithoutCancel(ctx), c.callMetadata()))
	defer cancel()
	stopConnecting := context.AfterFunc(ctx, cancel)
	w := wire{delta: c.cfg.Delta}
	if e != nil {
		w.delta = e.delta
	}
	method := sotwMethod
	if w.delta {
		method = deltaMethod
	}
	w.stream, err = conn.NewStream(streamCtx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
	if err == nil {
		stopConnecting()
		s := newSession(c, w, e, cut, stands)
		if err = s.serve(ctx, node); err != nil && s.answered {
			err = afterAnswer{err}
		}
	}
	switch cause := dialErr.get(); {
	case ctx.Err() != nil && parent.Err() == nil:
		return errSuperseded
	case err == nil:
		return nil
	case cause != nil:
		err = cause
	}
	return explain(err, c.cfg.Address, factsOf(node))
}

// callMetadata is what istiod reads beside the messages.
func (c *Client) callMetadata() metadata.MD {
	md := metadata.MD{}
	if c.cfg.ClusterID != "" {
		md.Set("ClusterID", c.cfg.ClusterID)
	}
	if c.cfg.Token != nil {
		if token := c.cfg.Token(); token != "" {
			md.Set("authorization", "Bearer "+token)
		}
	}
	return md
}
