package istioca

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/structpb"
	security "istio.io/api/security/v1alpha1"
)

// What we write Istio reads and the other way round, byte by byte the same.
func TestTheMessagesAreIstiosOnTheWire(t *testing.T) {
	metadata := &structpb.Struct{Fields: map[string]*structpb.Value{"CertSigner": structpb.NewStringValue("example.com/signer")}}
	for _, tc := range []struct {
		name         string
		ours, istios proto.Message
	}{
		{"request", &CertificateRequest{Csr: "csr", ValidityDuration: 86400, Metadata: metadata},
			&security.IstioCertificateRequest{Csr: "csr", ValidityDuration: 86400, Metadata: metadata}},
		{"response", &CertificateResponse{CertChain: []string{"leaf", "root"}}, &security.IstioCertificateResponse{CertChain: []string{"leaf", "root"}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ours, istios := encode(t, tc.ours), encode(t, tc.istios)
			if diff := cmp.Diff(istios, ours); diff != "" {
				t.Errorf("bytes (-Istio +ours):\n%s", diff)
			}
			if diff := cmp.Diff(fields(tc.istios), fields(tc.ours)); diff != "" {
				t.Errorf("fields (-Istio +ours): does a newer Istio have one more?\n%s", diff)
			}
		})
	}
}

func encode(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// fields tells each field's name, kind and number of elements.
func fields(m proto.Message) map[protoreflect.FieldNumber]string {
	all := map[protoreflect.FieldNumber]string{}
	list := m.ProtoReflect().Descriptor().Fields()
	for i := range list.Len() {
		f := list.Get(i)
		all[f.Number()] = f.Cardinality().String() + " " + f.Kind().String() + " " + string(f.Name())
	}
	return all
}
