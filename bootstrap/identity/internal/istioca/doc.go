// Package istioca is the certificate service of istiod on the wire: its two messages and its one call.
//
// Istio's own package, istio.io/api/security/v1alpha1, gives its messages a JSON form by the library before protojson, which costs the program
// 90 kB and is never used. That the two agree on the wire is a test.
package istioca

import (
	"context"

	"google.golang.org/grpc"
)

//go:generate protoc --go_out=../../../.. --go_opt=module=wingman -I ../../../.. bootstrap/identity/internal/istioca/ca.proto

// Create calls istio.v1.auth.IstioCertificateService/CreateCertificate. The error is a gRPC status.
func Create(ctx context.Context, conn grpc.ClientConnInterface, in *CertificateRequest) (*CertificateResponse, error) {
	out := &CertificateResponse{}
	return out, conn.Invoke(ctx, "/istio.v1.auth.IstioCertificateService/CreateCertificate", in, out, grpc.StaticMethod())
}
