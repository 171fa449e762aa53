package bootstrap

import (
	"os"
	"path/filepath"
	"strings"
)

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
	// WorkloadSocket is a SPIFFE Workload API that takes the place of istiod's CA; empty: none.
	WorkloadSocket string
	OutputCerts    string // folder where applications find key, chain and root; empty: nowhere
	ResolvConf     string
	EtcHosts       string
	Passwd         string
	Group          string
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
		RootCert:    fileUnder(root, "/etc/certs", "root-cert.pem"),
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
// neither ".." nor a symbolic link leads out: links mean there what they will mean once root is "/" (Istio's package makes
// /etc/istio one to /var/lib/istio). What does not exist yet stays as it is written.
func under(root, path string) string {
	path = filepath.Join("/", path)
	if root = absolute(root); root == "/" {
		return path
	}
	const most = 40 // links in a path, as in the kernel
	done, rest := "/", strings.Split(path[1:], "/")
	for links := 0; len(rest) > 0; {
		next := filepath.Join(done, rest[0]) // never above "/"
		rest = rest[1:]
		target, err := os.Readlink(filepath.Join(root, next))
		if err != nil || links == most {
			done = next
			continue
		}
		links++
		if filepath.IsAbs(target) {
			done = "/"
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	return filepath.Join(root, done)
}

// fileUnder is under for a file that may be our own link into the store: a relative link is left as it is, as it is where root is "/". What it leads to
// goes when a generation is put aside, and what stood in its place before it is found by its name.
func fileUnder(root, dir, name string) string {
	file := filepath.Join(under(root, dir), name)
	if target, err := os.Readlink(file); err == nil && !filepath.IsAbs(target) {
		return file
	}
	return under(root, filepath.Join(dir, name))
}

// absolute returns the folder that stands for "/": root itself, from the working folder if it is relative.
func absolute(root string) string {
	if root == "" {
		return "/"
	}
	if abs, err := filepath.Abs(root); err == nil {
		return abs
	}
	return filepath.Clean(root) // the working folder is gone
}
