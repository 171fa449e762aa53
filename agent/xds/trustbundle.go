package xds

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
)

// TypeProxyConfig carries settings for agents (PCDS), of which istiod fills in the trust bundle alone; Envoy knows nothing of it. istiod answers only
// with ISTIO_MULTIROOT_MESH=true: ask, never wait for it (Istio pilot/pkg/xds/pcds.go).
const TypeProxyConfig = "type.googleapis.com/istio.mesh.v1alpha1.ProxyConfig"

// caCertificatesPEM is the number of ca_certificates_pem in istio.io/api mesh/v1alpha1/proxy.proto. The generated type would bring all of the mesh's
// settings into the program for this one field.
const caCertificatesPEM protowire.Number = 34

// TrustBundle returns the trust anchors of a PCDS push, PEM each, as istiod wrote them; none when the push holds none.
func TrustBundle(p Push) ([]string, error) {
	switch n := len(p.Resources); {
	case n == 0:
		return nil, nil
	case n > 1:
		return nil, fmt.Errorf("push has %d proxy configurations, expected 1", n)
	}
	if got := p.Resources[0].GetTypeUrl(); got != TypeProxyConfig {
		return nil, fmt.Errorf("push holds a %q, expected %q", got, TypeProxyConfig)
	}
	var pems []string
	for b := p.Resources[0].GetValue(); len(b) > 0; {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return nil, fmt.Errorf("proxy configuration: %w", protowire.ParseError(n))
		}
		b = b[n:]
		if number == caCertificatesPEM && kind == protowire.BytesType {
			value, n := protowire.ConsumeBytes(b)
			if n < 0 {
				return nil, fmt.Errorf("trust anchor %d of the proxy configuration: %w", len(pems)+1, protowire.ParseError(n))
			}
			pems, b = append(pems, string(value)), b[n:]
			continue
		}
		if n = protowire.ConsumeFieldValue(number, kind, b); n < 0 {
			return nil, fmt.Errorf("field %d of the proxy configuration: %w", number, protowire.ParseError(n))
		}
		b = b[n:]
	}
	return pems, nil
}
