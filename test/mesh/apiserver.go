package mesh

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"wingman/test/mesh/kube"
	"wingman/test/mesh/proc"
)

const (
	apiServerAddr = "127.0.0.1:6443"

	// adminToken is a password of sorts: it opens an API server that listens on the loopback of a namespace.
	adminToken = "admin"

	tokenIssuer = "https://kubernetes.default.svc"
)

// keys are what the API server signs and is known by.
type keys struct {
	accounts *ecdsa.PrivateKey // signs service account tokens
	serving  *x509.Certificate // self-signed
}

// writeKeys makes the API server's keys, its token file, and a kubeconfig for the administrator.
func (m *Mesh) writeKeys(context.Context) (err error) {
	if m.keys.accounts, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return err
	}
	serving, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "kube-apiserver"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(24 * time.Hour),
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		IsCA:                  true,
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &serving.PublicKey, serving)
	if err != nil {
		return err
	}
	if m.keys.serving, err = x509.ParseCertificate(der); err != nil {
		return err
	}
	accountsPEM, err := keyPEM(m.keys.accounts)
	if err != nil {
		return err
	}
	servingPEM, err := keyPEM(serving)
	if err != nil {
		return err
	}
	for name, content := range map[string]string{
		"sa.key":     accountsPEM,
		"tls.key":    servingPEM,
		"tls.crt":    string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		"tokens.csv": adminToken + ",admin,admin,system:masters\n",
		"kubeconfig": fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: mesh
clusters: [{name: mesh, cluster: {server: "https://%s", certificate-authority: %s}}]
users: [{name: admin, user: {token: %s}}]
contexts: [{name: mesh, context: {cluster: mesh, user: admin}}]
`, apiServerAddr, m.file("tls.crt"), adminToken),
	} {
		if err := writeFile(m.file(name), content); err != nil {
			return err
		}
	}
	return nil
}

func keyPEM(key *ecdsa.PrivateKey) (string, error) {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return "", err
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})), nil
}

// startAPIServer starts kube-apiserver and waits until it is ready.
func (m *Mesh) startAPIServer(ctx context.Context) error {
	etcd := m.file("etcd")
	if err := os.MkdirAll(etcd, 0o700); err != nil {
		return err
	}
	p, err := m.launcher.Start(proc.Spec{
		Path: m.opts.Binaries.APIServer,
		Args: append([]string{
			"--bind-address=127.0.0.1", "--secure-port=6443",
			"--advertise-address=192.0.2.1", // a cluster would have one; loopback is refused
			"--endpoint-reconciler-type=none",
			"--tls-cert-file=" + m.file("tls.crt"), "--tls-private-key-file=" + m.file("tls.key"),
			"--token-auth-file=" + m.file("tokens.csv"),
			"--authorization-mode=AlwaysAllow",
			"--service-account-issuer=" + tokenIssuer,
			"--service-account-key-file=" + m.file("sa.key"), "--service-account-signing-key-file=" + m.file("sa.key"),
			"--api-audiences=" + tokenIssuer + "," + Audience,
			"--service-cluster-ip-range=10.96.0.0/16",
			"--disable-admission-plugins=ServiceAccount", // it would wait for tokens that no controller makes
			"--enable-priority-and-fairness=false",
		}, m.opts.APIServerArgs...),
		Env: environ(m.opts.Dir, map[string]string{"ETCD_DATA_DIR": etcd}),
		Dir: m.opts.Dir,
		Log: m.file("apiserver.log"),
	})
	if err != nil {
		return err
	}
	m.apiserver = p

	roots := x509.NewCertPool()
	roots.AddCert(m.keys.serving)
	tlsConfig := &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	probe := &http.Client{Transport: &http.Transport{TLSClientConfig: tlsConfig, DisableKeepAlives: true}, Timeout: time.Second}
	m.Kube = kube.New("https://"+apiServerAddr, adminToken, tlsConfig)
	err = awaitReady(ctx, p, func(ctx context.Context) error {
		return m.Kube.Ready(ctx, probe)
	})
	if err != nil {
		return fmt.Errorf("kube-apiserver: %w", err)
	}
	return nil
}

// installCRDs makes Istio's CustomResourceDefinitions and waits until the API server serves them.
func (m *Mesh) installCRDs(ctx context.Context) error {
	all, err := os.ReadFile(m.opts.Binaries.CRDs)
	if err != nil {
		return err
	}
	crds := kube.Ref{APIVersion: "apiextensions.k8s.io/v1", Kind: "CustomResourceDefinition"}
	docs := kube.Documents(string(all))
	g, gctx := errgroup.WithContext(ctx)
	for _, doc := range docs {
		g.Go(func() error {
			_, err := m.Kube.Create(gctx, crds, "", doc)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("install Istio's CRDs: %w", err)
	}
	_, err = m.Kube.Wait(ctx, crds, func(made []kube.Object) bool {
		established := 0
		for _, crd := range made {
			if status, _ := crd.Condition("Established"); status == "True" {
				established++
			}
		}
		return established == len(docs)
	})
	if err != nil {
		return errors.Join(errors.New("install Istio's CRDs: not established"), err)
	}
	return nil
}
