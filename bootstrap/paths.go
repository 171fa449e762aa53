package bootstrap

import "path/filepath"

// Paths are the files and folders of the agent: absolute, below Root.
type Paths struct {
	ClusterEnv  string // istioctl's cluster.env
	SidecarEnv  string // the operator's own variables, read before cluster.env
	MeshConfig  string // istioctl's mesh.yaml
	Hosts       string // istioctl's hosts file
	Token       string // istioctl's istio-token
	RootCert    string // istioctl's root-cert.pem
	ProvCert    string // folder of a provisioned certificate (key.pem, cert-chain.pem); empty: none
	WingmanYAML string // the agent's own settings; need not exist
	StateDir    string // certificates, last name table, join state; survives a reboot
	RunDir      string // sockets; gone after a reboot
	OutputCerts string // folder where applications find key, chain and root; empty: nowhere
	ResolvConf  string
	EtcHosts    string
	Passwd      string
	Group       string
}

// DefaultPaths returns where the files are when no setting says otherwise. root "" or "/" is the machine itself.
func DefaultPaths(root string) Paths {
	at := func(path string) string { return under(root, path) }
	return Paths{
		ClusterEnv:  at("/var/lib/istio/envoy/cluster.env"),
		SidecarEnv:  at("/var/lib/istio/envoy/sidecar.env"),
		MeshConfig:  at("/etc/istio/config/mesh"),
		Hosts:       at("/var/lib/istio/envoy/hosts"),
		Token:       at("/var/run/secrets/tokens/istio-token"),
		RootCert:    at("/etc/certs/root-cert.pem"),
		ProvCert:    at("/etc/certs"),
		WingmanYAML: at("/etc/wingman/wingman.yaml"),
		StateDir:    at("/var/lib/wingman"),
		RunDir:      at("/run/wingman"),
		OutputCerts: at("/etc/certs"),
		ResolvConf:  at("/etc/resolv.conf"),
		EtcHosts:    at("/etc/hosts"),
		Passwd:      at("/etc/passwd"),
		Group:       at("/etc/group"),
	}
}

// under places path below root. A relative path starts at root, as pilot-agent's "./etc/certs" does at its working folder "/";
// no number of ".." leaves root.
func under(root, path string) string {
	if root == "" {
		root = "/"
	}
	return filepath.Join(root, filepath.Join("/", path))
}
