package sds

import (
	"crypto/sha256"
	"encoding/hex"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/anypb"
)

// secretType is the only type served here.
const secretType = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"

// Field numbers of envoy/extensions/transport_sockets/tls/v3/{secret,common}.proto and envoy/config/core/v3/base.proto.
const (
	secretName              protowire.Number = 1
	secretTLSCertificate    protowire.Number = 2
	secretValidationContext protowire.Number = 4
	certificateChain        protowire.Number = 1
	certificatePrivateKey   protowire.Number = 2
	validationTrustedCA     protowire.Number = 1
	dataSourceInlineBytes   protowire.Number = 2
)

// secret is a value of a resource, ready to be sent.
type secret struct {
	any     *anypb.Any // shared, never changed
	version string     // of the content: equal contents have equal versions, also after a restart
}

// certificateSecret holds a certificate chain and its key, both PEM.
func certificateSecret(name string, chain, key []byte) secret {
	cert := message(certificateChain, inline(chain))
	cert = append(cert, message(certificatePrivateKey, inline(key))...)
	return newSecret(name, secretTLSCertificate, cert)
}

// rootsSecret holds the certificates to trust, PEM.
func rootsSecret(name string, roots []byte) secret {
	return newSecret(name, secretValidationContext, message(validationTrustedCA, inline(roots)))
}

func newSecret(name string, field protowire.Number, value []byte) secret {
	b := append(message(secretName, []byte(name)), message(field, value)...)
	sum := sha256.Sum256(b)
	return secret{any: &anypb.Any{TypeUrl: secretType, Value: b}, version: hex.EncodeToString(sum[:8])}
}

// inline is a DataSource with the bytes in it.
func inline(b []byte) []byte { return message(dataSourceInlineBytes, b) }

// message is a field with a length.
func message(n protowire.Number, b []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, n, protowire.BytesType), b)
}
