// Package mesh runs the real control plane of a mesh for tests: kube-apiserver with etcd, Istio's CRDs, istiod, istioctl.
//
// Start brings it up in the caller's network namespace, at the ports it has in a cluster: the API server at
// 127.0.0.1:6443, istiod at 15010, 15012, 15014, 15017 and 8080 of every address. Package machine gives tests a namespace
// where those are free. Everything it writes lies in one folder: apiserver.log, istiod.log, kubeconfig, working folders.
//
// What a cluster has and this has not: controllers other than istiod (no endpoints made from pods, no default service
// account in a new namespace), the Istio charts' webhooks, and authorization: every authenticated caller may do everything.
package mesh

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"wingman/test/mesh/binaries"
	"wingman/test/mesh/kube"
	"wingman/test/mesh/proc"
)

// What the control plane is called. The five files of istioctl, tokens and certificates carry these names.
const (
	TrustDomain     = "cluster.local"
	ClusterID       = "west-cluster"
	MeshID          = "usmesh"
	SystemNamespace = "istio-system"
	DiscoveryHost   = "istiod.istio-system.svc" // in istiod's certificate
	DiscoveryPort   = 15012                     // ADS and CA over TLS
	Audience        = "istio-ca"                // of tokens that istiod accepts
)

// Ports of istiod that tests read.
const (
	monitoringPort = 15014
	readinessPort  = 8080
)

// DefaultMeshConfig is what Options.MeshConfig replaces.
const DefaultMeshConfig = `trustDomain: ` + TrustDomain + `
defaultConfig:
  discoveryAddress: ` + DiscoveryHost + `:15012
  meshId: ` + MeshID + `
`

// Options say how a control plane is set up. The zero value is istiod with its defaults, but for what VMs need.
type Options struct {
	Binaries binaries.Set // from binaries.Get; required

	// Dir holds logs and state; required, and short: etcd's sockets lie there (a socket's path has 108 bytes).
	Dir string

	MeshConfig   string            // YAML of the mesh ConfigMap; empty: DefaultMeshConfig
	MeshNetworks string            // YAML of meshNetworks; empty: none
	IstiodEnv    map[string]string // over the settings in istiodEnv
	IstiodArgs   []string          // more arguments, such as --keepaliveMaxServerConnectionAge=10s
	CACerts      CACerts           // the CA that istiod signs with; none: istiod makes one of its own
	// APIServerArgs are more arguments of kube-apiserver, such as --authentication-config=FILE.
	APIServerArgs []string

	// Objects is a YAML stream applied before istiod starts. Namespace istio-system is there already.
	Objects string
}

// Mesh is a running control plane.
type Mesh struct {
	Kube *kube.Client // as an administrator

	opts      Options
	launcher  *proc.Launcher
	keys      keys
	apiserver *proc.Process
	istiod    *proc.Process // nil while stopped
}

// Start brings a control plane up and returns once istiod is ready. ctx bounds the start alone.
func Start(ctx context.Context, o Options) (*Mesh, error) {
	o.MeshConfig = cmp.Or(o.MeshConfig, DefaultMeshConfig)
	launcher, err := proc.NewLauncher(nil)
	if err != nil {
		return nil, err
	}
	m := &Mesh{opts: o, launcher: launcher}
	for _, step := range []func(context.Context) error{m.writeKeys, m.startAPIServer, m.installCRDs, m.applyBase, m.applyObjects, m.mountCACerts, m.StartIstiod} {
		if err := step(ctx); err != nil {
			return nil, errors.Join(fmt.Errorf("start the mesh: %w", err), m.Close())
		}
	}
	return m, nil
}

// stopTimeout bounds what a program may take after SIGTERM before it is killed.
const stopTimeout = 15 * time.Second

// Close ends the control plane. Files stay. It may be called more than once.
func (m *Mesh) Close() error {
	defer m.launcher.Close()
	if m.istiod != nil {
		m.istiod.Kill() // SIGTERM would drain its connections for seconds
	}
	if m.apiserver == nil {
		return nil
	}
	m.apiserver.Kill()
	m.istiod, m.apiserver = nil, nil
	return nil
}

// applyBase makes what istiod and istioctl expect in the cluster.
func (m *Mesh) applyBase(ctx context.Context) error {
	base := fmt.Sprintf(`
apiVersion: v1
kind: Namespace
metadata: {name: %[1]s}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: default, namespace: %[1]s}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: %[1]s}
data:
  mesh: |
%[2]s
  meshNetworks: |
%[3]s
`, SystemNamespace, indent(m.opts.MeshConfig), indent(m.networks()))
	return m.Kube.Apply(ctx, base)
}

func (m *Mesh) applyObjects(ctx context.Context) error { return m.Kube.Apply(ctx, m.opts.Objects) }

func (m *Mesh) networks() string { return cmp.Or(m.opts.MeshNetworks, "networks: {}\n") }

func indent(s string) string {
	return "    " + strings.ReplaceAll(strings.TrimSpace(s), "\n", "\n    ")
}

// pollInterval is how often a program that says nothing when it is ready is asked.
const pollInterval = 10 * time.Millisecond

// awaitReady asks until ready answers nil, and gives up when ctx ends or the program does.
func awaitReady(ctx context.Context, p *proc.Process, ready func(context.Context) error) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-p.Done():
			return fmt.Errorf("it ended before it was ready: %w", cmp.Or(p.Err(), errors.New("status 0")))
		case <-ctx.Done():
			return fmt.Errorf("not ready: %w (last answer: %w); the log ends:\n%s", ctx.Err(), err, p.Tail(20))
		}
	}
}

// Debug reads a page of istiod's monitoring port, such as /debug/syncz or /metrics.
func (m *Mesh) Debug(ctx context.Context, path string) ([]byte, error) {
	return httpGet(ctx, http.DefaultClient, fmt.Sprintf("http://127.0.0.1:%d%s", monitoringPort, path))
}

func httpGet(ctx context.Context, client *http.Client, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	res, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", url, err)
	}
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("get %s: %s: %s", url, res.Status, strings.TrimSpace(string(body)))
	}
	return body, nil
}

// file is a path in the mesh's folder.
func (m *Mesh) file(elem ...string) string {
	return filepath.Join(append([]string{m.opts.Dir}, elem...)...)
}

func writeFile(name, content string) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	return os.WriteFile(name, []byte(content), 0o600)
}

// environ is a whole environment: the path of system programs, a home, and the given variables.
func environ(home string, vars map[string]string) []string {
	env := []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + home}
	for k, v := range maps.All(vars) {
		env = append(env, k+"="+v)
	}
	return env
}
