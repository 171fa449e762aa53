package mesh

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
)

// Istioctl runs istioctl as the administrator and returns its standard output.
func (m *Mesh) Istioctl(ctx context.Context, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, m.opts.Binaries.Istioctl, append([]string{"--kubeconfig", m.file("kubeconfig")}, args...)...)
	cmd.Env = environ(m.opts.Dir, nil)
	cmd.Dir = m.opts.Dir
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("istioctl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// WorkloadEntryConfigure has istioctl write the five files of a machine into dir (istioctl x workload entry configure):
// cluster.env, mesh.yaml, hosts, istio-token (one hour), root-cert.pem. istiod is to be reached at address; group must exist.
func (m *Mesh) WorkloadEntryConfigure(ctx context.Context, namespace, group string, address netip.Addr, dir string) error {
	if _, err := m.Root(ctx, namespace); err != nil { // istioctl does not wait for it
		return err
	}
	_, err := m.Istioctl(ctx, "x", "workload", "entry", "configure", "--name", group, "--namespace", namespace,
		"--clusterID", ClusterID, "--ingressIP", address.String(), "--autoregister", "--output", dir)
	return err
}
