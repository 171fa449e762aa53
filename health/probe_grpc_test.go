package health

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// grpcHealth answers by service name, and notes who asked.
type grpcHealth struct {
	grpc_health_v1.UnimplementedHealthServer
	agent, from chan string
}

func (g *grpcHealth) Check(ctx context.Context, req *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	p, _ := peer.FromContext(ctx)
	g.agent <- strings.Join(md.Get("user-agent"), ",")
	g.from <- p.Addr.(*net.TCPAddr).IP.String()
	states := map[string]grpc_health_v1.HealthCheckResponse_ServingStatus{
		"":        grpc_health_v1.HealthCheckResponse_SERVING,
		"up":      grpc_health_v1.HealthCheckResponse_SERVING,
		"down":    grpc_health_v1.HealthCheckResponse_NOT_SERVING,
		"unknown": grpc_health_v1.HealthCheckResponse_SERVICE_UNKNOWN,
	}
	if s, ok := states[req.GetService()]; ok {
		return &grpc_health_v1.HealthCheckResponse{Status: s}, nil
	}
	if req.GetService() == "broken" {
		return nil, status.Error(codes.Internal, "no\ndisk")
	}
	return nil, status.Error(codes.NotFound, "unknown service")
}

func TestGRPCAnswers(t *testing.T) {
	start := func(register bool) (*grpcHealth, uint16) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		server := grpc.NewServer()
		health := &grpcHealth{agent: make(chan string, 1), from: make(chan string, 1)}
		if register {
			grpc_health_v1.RegisterHealthServer(server, health)
		}
		go server.Serve(l)
		t.Cleanup(server.Stop)
		return health, portOf(l.Addr())
	}
	health, port := start(true)
	_, bare := start(false)
	for _, tt := range []struct {
		name, service, want string
	}{
		{"the server as a whole", "", ""},
		{"a service that serves", "up", ""},
		{"one that does not", "down", ` service "down": NOT_SERVING`},
		{"one it does not know, by status", "unknown", ` service "unknown": SERVICE_UNKNOWN`},
		{"one it does not know, by error", "other", ` service "other": the server's health service does not know this service`},
		{"one that fails", "broken", ` service "broken": Internal: no | disk`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want := tt.want
			if want != "" {
				want = fmt.Sprintf("gRPC 127.0.0.1:%d%s", port, want)
			}
			if got := ask(t, Probe{GRPC: &GRPC{Port: port, Service: tt.service}}, "127.0.0.1"); got != want {
				t.Errorf("got  %q\nwant %q", got, want)
			}
			if agent := <-health.agent; !strings.HasPrefix(agent, "istio-probe/1.0") {
				t.Errorf("user agent %q, want istio-probe/1.0 first", agent)
			}
			if from := <-health.from; from != "127.0.0.6" {
				t.Errorf("came from %s, want 127.0.0.6", from)
			}
		})
	}
	want := fmt.Sprintf("gRPC 127.0.0.1:%d: the server does not implement grpc.health.v1.Health: register its health service, or probe with tcpSocket", bare)
	if got := ask(t, Probe{GRPC: &GRPC{Port: bare}}, "127.0.0.1"); got != want {
		t.Errorf("without a health service:\ngot  %q\nwant %q", got, want)
	}
}
