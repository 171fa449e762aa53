package xds

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
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
	Node func(context.Context) (*corev3.Node, error)
	// TLS returns the client configuration for the next stream, ServerName set.
	TLS func() *tls.Config
	// Token returns the bearer token to send, "" for none; optional. istiod accepts whichever of token and certificate passes.
	Token func() string
	// Dial opens the connection; optional.
	Dial func(ctx context.Context, address string) (net.Conn, error)

	// Subscriptions in the order they are sent; the first goes out with the node.
	Subscriptions []Subscription
	// OnState is told of every change of State().Phase; optional. It must not block.
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
	Since     time.Time `json:"since"`                // when Phase began
	Answered  bool      `json:"answered"`             // istiod answered on this stream
	Streams   int       `json:"streams"`              // streams opened so far
	LastError string    `json:"last_error,omitempty"` // why the last attempt or stream ended, if not gracefully; empty once istiod answered
	NACKs     int       `json:"nacks"`                // pushes refused so far
	LastNACK  string    `json:"last_nack,omitempty"`  // reason of the last refusal; empty once a later push was taken in
}

// Client keeps the stream. Make it with New.
type Client struct {
	cfg     Config
	log     *slog.Logger
	metrics metrics
	health  outbox
	wake    chan struct{} // buffered 1: skip the current wait

	mu    sync.Mutex // guards everything below
	state State
	inUse map[string]string // type → version of the push taken in last
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
		wake:    make(chan struct{}, 1),
		state:   State{Phase: PhaseIdle, Address: cfg.Address, Since: time.Now()},
		inUse:   map[string]string{},
	}, nil
}

// State returns a snapshot; safe at any time.
func (c *Client) State() State {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state
}

// ReportHealth makes h the verdict that istiod has: it is sent now if a stream stands and the verdict is another than the one sent
// last, and on each new stream. It never blocks.
func (c *Client) ReportHealth(h Health) { c.health.put(h) }

// HealthSent waits until istiod was sent the latest verdict, or ctx ends. It reports whether it was sent.
func (c *Client) HealthSent(ctx context.Context) bool { return c.health.wait(ctx) }

// Retry ends the wait before the next attempt: something changed that may let it pass, a new certificate say.
func (c *Client) Retry() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Run keeps the stream until ctx ends, and returns nil then. What ends a stream is never final.
func (c *Client) Run(ctx context.Context) error {
	defer c.setPhase(PhaseIdle, nil)
	var (
		b       backoff
		told    string    // cause that was logged last; the same cause again is not news
		downAt  time.Time // when the outage began; zero while a stream stands
		onReady = func() {
			if !downAt.IsZero() {
				c.log.Info("istiod is back", "address", c.cfg.Address, "after", time.Since(downAt).Round(time.Millisecond))
			}
			downAt, told = time.Time{}, ""
		}
	)
	for ctx.Err() == nil {
		began := time.Now()
		err := c.attempt(ctx, onReady)
		if ctx.Err() != nil {
			break
		}
		end, lived := classify(err), time.Since(began)
		wait := b.next(end, lived, jitter())
		c.metrics.ends.WithLabelValues(end.String()).Inc()
		if downAt.IsZero() {
			downAt = time.Now()
		}
		if end == endGraceful {
			c.setPhase(PhaseWaiting, nil)
			c.log.Debug("stream ended gracefully", "address", c.cfg.Address, "lived", lived.Round(time.Millisecond), "next", wait)
		} else {
			c.setPhase(PhaseWaiting, err)
			level := slog.LevelWarn
			if told == end.String()+err.Error() {
				level = slog.LevelDebug
			}
			told = end.String() + err.Error()
			c.log.Log(ctx, level, "no stream to istiod", "address", c.cfg.Address, "cause", err, "kind", end.String(), "next", wait.Round(time.Millisecond))
		}
		select {
		case <-ctx.Done():
		case <-c.wake:
		case <-time.After(wait):
		}
	}
	return nil
}

// attempt opens one stream and serves it to its end. up is called when istiod has answered on it.
func (c *Client) attempt(ctx context.Context, up func()) (err error) {
	c.setPhase(PhaseConnecting, nil)
	node, err := c.cfg.Node(ctx)
	if err != nil {
		return fmt.Errorf("make the node: %w", err)
	}
	facts := factsOf(node)
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

	md := metadata.MD{}
	if c.cfg.ClusterID != "" {
		md.Set("ClusterID", c.cfg.ClusterID)
	}
	if c.cfg.Token != nil {
		if token := c.cfg.Token(); token != "" {
			md.Set("authorization", "Bearer "+token)
		}
	}
	// The stream outlives ctx for a moment, so that the last words of a stop are still sent; conn.Close ends it in any case.
	streamCtx, cancel := context.WithCancel(metadata.NewOutgoingContext(context.WithoutCancel(ctx), md))
	defer cancel()
	stopConnecting := context.AfterFunc(ctx, cancel)
	w, err := c.open(streamCtx, conn)
	if err == nil {
		stopConnecting()
		err = c.serve(ctx, w, node, up)
	}
	if err == nil {
		return nil
	}
	if cause := dialErr.get(); cause != nil {
		err = cause
	}
	return explain(err, c.cfg.Address, facts)
}

func (c *Client) open(ctx context.Context, conn *grpc.ClientConn) (wire, error) {
	method := sotwMethod
	if c.cfg.Delta {
		method = deltaMethod
	}
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
	return wire{stream: s, delta: c.cfg.Delta}, err
}

func (c *Client) setPhase(p Phase, cause error) {
	c.mu.Lock()
	if c.state.Phase != p {
		c.state.Since = time.Now()
	}
	c.state.Phase = p
	switch p {
	case PhaseConnected:
		c.state.Streams++
	case PhaseWaiting, PhaseIdle:
		c.state.Answered = false
	}
	if cause != nil {
		c.state.LastError = cause.Error()
	} else if p == PhaseWaiting {
		c.state.LastError = ""
	}
	s := c.state
	c.mu.Unlock()
	connected := 0.0
	if p == PhaseConnected {
		connected = 1
	}
	c.metrics.connected.Set(connected)
	if c.cfg.OnState != nil {
		c.cfg.OnState(s)
	}
}

// lastError keeps the outcome of the newest dial.
type lastError struct {
	mu  sync.Mutex
	err error
}

func (l *lastError) set(err error) { l.mu.Lock(); l.err = err; l.mu.Unlock() }
func (l *lastError) get() error    { l.mu.Lock(); defer l.mu.Unlock(); return l.err }

// setAnswered notes that istiod answered on the present stream.
func (c *Client) setAnswered() {
	c.mu.Lock()
	c.state.Answered, c.state.LastError = true, ""
	s := c.state
	c.mu.Unlock()
	if c.cfg.OnState != nil {
		c.cfg.OnState(s)
	}
}

// refused notes a NACK and returns the version of that type that stays in use.
func (c *Client) refused(typeURL string, reason error) (inUse string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state.NACKs++
	c.state.LastNACK = reason.Error()
	return c.inUse[typeURL]
}

// accepted notes an ACK.
func (c *Client) accepted(typeURL, version string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state.LastNACK = ""
	c.inUse[typeURL] = version
}

// factsOf reads back from a node what error messages name.
func factsOf(n *corev3.Node) nodeFacts {
	f := n.GetMetadata().GetFields()
	return nodeFacts{
		id:        f["SERVICE_ACCOUNT"].GetStringValue(),
		namespace: f["NAMESPACE"].GetStringValue(),
		group:     f["AUTO_REGISTER_GROUP"].GetStringValue(),
	}
}
