package mesh

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"wingman/test/mesh/kube"
	"wingman/test/mesh/proc"
)

// istiodEnv is what the istiod of the charts gets where it matters to VMs, and what replaces the pod it would run in.
func istiodEnv() map[string]string {
	return map[string]string{
		"POD_NAME":            "istiod-0", // the same after a restart: it then still holds its leader leases
		"POD_NAMESPACE":       SystemNamespace,
		"CLUSTER_ID":          ClusterID,
		"REVISION":            "default",
		"PILOT_CERT_PROVIDER": "istiod",
		"TOKEN_AUDIENCES":     Audience,
		"PILOT_ENABLE_WORKLOAD_ENTRY_AUTOREGISTRATION": "true",
		"PILOT_ENABLE_WORKLOAD_ENTRY_HEALTHCHECKS":     "true",
	}
}

// rootConfigMap is where istiod publishes its root in each namespace.
const rootConfigMap = "istio-ca-root-cert"

// StartIstiod starts istiod, which must be stopped, and returns once it is ready.
func (m *Mesh) StartIstiod(ctx context.Context) error {
	if m.istiod != nil {
		return errors.New("start istiod: it runs already")
	}
	dir := m.file("istiod")
	for name, content := range map[string]string{"mesh": m.opts.MeshConfig, "meshNetworks": m.networks()} {
		if err := writeFile(filepath.Join(dir, "etc/istio/config", name), content); err != nil {
			return fmt.Errorf("start istiod: %w", err)
		}
	}
	env := istiodEnv()
	maps.Copy(env, m.opts.IstiodEnv)
	p, err := m.launcher.Start(proc.Spec{
		Path: m.opts.Binaries.Istiod,
		Args: append([]string{"discovery", "--kubeconfig", m.file("kubeconfig"), "--clusterID", ClusterID}, m.opts.IstiodArgs...),
		Env:  environ(dir, env),
		Dir:  dir,
		Log:  m.file("istiod.log"),
	})
	if err != nil {
		return err
	}
	m.istiod = p
	probe := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Second}
	err = awaitReady(ctx, p, func(ctx context.Context) error {
		_, err := httpGet(ctx, probe, fmt.Sprintf("http://127.0.0.1:%d/ready", readinessPort))
		return err
	})
	if err != nil {
		return fmt.Errorf("istiod: %w", err)
	}
	return nil
}

// StopIstiod ends istiod as Kubernetes does: SIGTERM, then up to 10 s in which it closes its streams.
func (m *Mesh) StopIstiod(ctx context.Context) error {
	if m.istiod == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	err := m.istiod.Stop(ctx)
	m.istiod = nil
	return err
}

// KillIstiod ends istiod with SIGKILL.
func (m *Mesh) KillIstiod() {
	if m.istiod != nil {
		m.istiod.Kill()
		m.istiod = nil
	}
}

// FreezeIstiod stops istiod from running (SIGSTOP) with its sockets open, and ThawIstiod lets it go on.
func (m *Mesh) FreezeIstiod() error { return m.istiod.Signal(syscall.SIGSTOP) }

// ThawIstiod ends FreezeIstiod.
func (m *Mesh) ThawIstiod() error { return m.istiod.Signal(syscall.SIGCONT) }

// IstiodLog is the file that has the output of every istiod of this mesh.
func (m *Mesh) IstiodLog() string { return m.file("istiod.log") }

// Root waits for the root certificates that istiod publishes in a namespace, and returns them as PEM.
func (m *Mesh) Root(ctx context.Context, namespace string) ([]byte, error) {
	const key = "root-cert.pem"
	ref := kube.Ref{APIVersion: "v1", Kind: "ConfigMap", Namespace: namespace, Name: rootConfigMap}
	made, err := m.Kube.Wait(ctx, ref, func(o []kube.Object) bool { return len(o) == 1 && o[0].String("data", key) != "" })
	if err != nil {
		return nil, fmt.Errorf("read istiod's root: %w", err)
	}
	return []byte(made[0].String("data", key)), nil
}

// ReplaceCA restarts istiod with a new self-signed CA, and waits until its root is published in the given namespaces.
func (m *Mesh) ReplaceCA(ctx context.Context, namespaces ...string) error {
	m.KillIstiod()
	gone := []kube.Ref{{APIVersion: "v1", Kind: "Secret", Namespace: SystemNamespace, Name: "istio-ca-secret"}}
	for _, ns := range namespaces {
		gone = append(gone, kube.Ref{APIVersion: "v1", Kind: "ConfigMap", Namespace: ns, Name: rootConfigMap})
	}
	for _, ref := range gone {
		if err := m.Kube.Delete(ctx, ref); err != nil {
			return fmt.Errorf("replace the CA: %w", err)
		}
	}
	if err := m.StartIstiod(ctx); err != nil {
		return fmt.Errorf("replace the CA: %w", err)
	}
	for _, ns := range namespaces {
		if _, err := m.Root(ctx, ns); err != nil {
			return fmt.Errorf("replace the CA: %w", err)
		}
	}
	return nil
}

// SetMeshConfig replaces the mesh configuration of the running istiod, which takes it up by itself within a second or so.
func (m *Mesh) SetMeshConfig(ctx context.Context, yaml string) error {
	m.opts.MeshConfig = yaml
	if err := m.applyBase(ctx); err != nil {
		return fmt.Errorf("set mesh config: %w", err)
	}
	name := m.file("istiod/etc/istio/config/mesh")
	if err := writeFile(name+".new", yaml); err != nil {
		return fmt.Errorf("set mesh config: %w", err)
	}
	return os.Rename(name+".new", name)
}
