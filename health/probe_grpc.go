package health

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// grpcCheck asks grpc.health.v1.Health/Check (https://github.com/grpc/grpc/blob/master/doc/health-checking.md).
type grpcCheck struct {
	host    string
	port    uint16
	service string
}

func newGRPCCheck(g GRPC, defaultHost string) *grpcCheck {
	return &grpcCheck{host: defaultHost, port: g.Port, service: g.Service}
}

func (c *grpcCheck) kind() string { return "grpc" }

func (c *grpcCheck) target() string {
	target := "gRPC " + net.JoinHostPort(c.host, strconv.Itoa(int(c.port)))
	if c.service != "" {
		target += " service " + strconv.Quote(c.service)
	}
	return target
}

func (c *grpcCheck) run(ctx context.Context) error {
	within := allowance(ctx)
	var (
		mu     sync.Mutex // gRPC dials from a goroutine of its own
		dialed bool
		failed error
	)
	conn, err := grpc.NewClient("passthrough:///"+net.JoinHostPort(c.host, strconv.Itoa(int(c.port))),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUserAgent(userAgent),
		grpc.WithDisableServiceConfig(),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			conn, err := systemDialer.connect(ctx, c.host, c.port)
			mu.Lock()
			defer mu.Unlock()
			dialed, failed = err == nil, err
			return conn, err
		}),
	)
	if err != nil {
		return fmt.Errorf("%s: %w", c.target(), err)
	}
	defer conn.Close()
	answer, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: c.service})
	mu.Lock()
	defer mu.Unlock()
	switch code := status.Code(err); {
	case err == nil && answer.GetStatus() == grpc_health_v1.HealthCheckResponse_SERVING:
		return nil
	case err == nil:
		return fmt.Errorf("%s: %s", c.target(), answer.GetStatus())
	case failed != nil:
		return fmt.Errorf("%s: %s", c.target(), plain(failed, within, false))
	case code == codes.DeadlineExceeded:
		return fmt.Errorf("%s: %s", c.target(), plain(context.DeadlineExceeded, within, dialed))
	case code == codes.Unimplemented:
		return fmt.Errorf("%s: the server does not implement grpc.health.v1.Health: register its health service, or probe with tcpSocket", c.target())
	case code == codes.NotFound:
		return fmt.Errorf("%s: the server's health service does not know this service", c.target())
	default:
		return fmt.Errorf("%s: %s: %s", c.target(), code, oneLine(status.Convert(err).Message()))
	}
}
