// Package files puts the five files of istioctl under a root folder, for machines whose control plane is the stand-in.
//
// cluster.env, mesh.yaml and hosts are as istioctl wrote them for the workload forum of namespace forum-services; token and root are the
// stand-in's. What a test or the demo wants otherwise goes into wingman.yaml.
package files

import (
	_ "embed"
	"fmt"
	"os"
	"path/filepath"

	"wingman/test/controlplane"
)

//go:embed cluster.env
var clusterEnv string

//go:embed mesh.yaml
var meshYAML string

//go:embed hosts
var hosts string

// Where the files lie below a root.
const (
	ClusterEnv = "var/lib/istio/envoy/cluster.env"
	MeshConfig = "etc/istio/config/mesh"
	Hosts      = "var/lib/istio/envoy/hosts"
	Token      = "var/run/secrets/tokens/istio-token"
	RootCert   = "etc/certs/root-cert.pem"
	ResolvConf = "etc/resolv.conf"
	Wingman    = "etc/wingman/wingman.yaml"
)

// The workload the files are for.
const (
	Namespace      = "forum-services"
	ServiceAccount = "forum-sa"
	Group          = "forum"
	SPIFFEID       = "spiffe://cluster.local/ns/forum-services/sa/forum-sa"
)

// AddGroup tells a control plane of the WorkloadGroup that the files name.
func AddGroup(s *controlplane.Server) {
	s.AddGroup(controlplane.Group{Namespace: Namespace, Name: Group, ServiceAccount: ServiceAccount, Network: "vm-network"})
}

// Write puts the five files below root, with a token good for an hour, and a resolv.conf that names the given servers.
func Write(root string, s *controlplane.Server, resolvers ...string) error {
	var resolv string
	for _, r := range resolvers {
		resolv += "nameserver " + r + "\n"
	}
	for name, content := range map[string]string{
		ClusterEnv: clusterEnv,
		MeshConfig: meshYAML,
		Hosts:      hosts,
		RootCert:   string(s.RootPEM()),
		ResolvConf: resolv,
	} {
		if err := Put(root, name, content); err != nil {
			return err
		}
	}
	return WriteToken(root, s, controlplane.TokenOptions{})
}

// WriteToken replaces the token by a fresh one of the workload.
func WriteToken(root string, s *controlplane.Server, o controlplane.TokenOptions) error {
	o.Namespace, o.ServiceAccount = Namespace, ServiceAccount
	token, err := s.MintToken(o)
	if err != nil {
		return fmt.Errorf("mint token: %w", err)
	}
	return Put(root, Token, token)
}

// Put writes one file below root with mode 0600, and its folders.
func Put(root, name, content string) error {
	path := filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(content), 0o600)
}
