package join

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"strings"
	"testing"
	"time"

	"wingman/test/mesh"
	"wingman/test/mesh/testbed"
)

// A mesh of several roots: what stands in meshConfig's caCertificates reaches the machine's root-cert.pem by PCDS, without a new certificate or a
// restart, and goes again when it is taken out.
func TestTheMeshsTrustBundleReachesTheMachine(t *testing.T) {
	env := maps.Clone(shortGrace)
	env["ISTIO_MULTIROOT_MESH"] = "true"
	bed := testbed.New(t, mesh.Options{IstiodEnv: env})
	vm := bed.VM(t, testbed.Forum)
	vm.App(t, 8080)
	vm.StartAgent(t)
	before := vm.AwaitStatus(t, "the agent joins", joined)

	other := otherRoot(t)
	config := mesh.DefaultMeshConfig + "caCertificates:\n- pem: |\n    " + strings.ReplaceAll(strings.TrimSpace(other), "\n", "\n    ") + "\n"
	trusts := func(want bool) func(testbed.Status) error {
		return func(s testbed.Status) error {
			bundle, err := vm.Run(t.Context(), "/bin/cat", "/etc/certs/root-cert.pem")
			if err != nil {
				return err
			}
			if got := strings.Contains(bundle, strings.TrimSpace(other)); got != want {
				return fmt.Errorf("the other root is in root-cert.pem: %v, want %v", got, want)
			}
			if strings.Count(bundle, "BEGIN CERTIFICATE") < 1 {
				return errors.New("root-cert.pem is empty")
			}
			if s.Identity.Serial != before.Identity.Serial {
				return errors.New("the certificate is another one")
			}
			return nil
		}
	}
	if err := bed.Mesh.SetMeshConfig(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	vm.AwaitStatus(t, "the other root is trusted", trusts(true))
	t.Logf("in root-cert.pem %v after the mesh config was written", time.Since(began).Round(time.Millisecond))
	if err := bed.Mesh.SetMeshConfig(t.Context(), mesh.DefaultMeshConfig); err != nil {
		t.Fatal(err)
	}
	vm.AwaitStatus(t, "it was taken out", trusts(false))
}

// otherRoot is a root that has nothing to do with this mesh.
func otherRoot(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(77), Subject: pkix.Name{Organization: []string{"other.mesh"}}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}
