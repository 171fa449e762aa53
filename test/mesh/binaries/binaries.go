// Package binaries builds the real control plane from its Go modules, fetches the real Envoy, and keeps both in a cache.
//
// What is built, and from which versions, is the module in test/mesh/components: its go.mod pins Istio, Kubernetes and etcd
// apart from the product's own dependencies, so that a change there neither reaches the daemon nor is caused by it. Envoy is
// a wheel of the Python package index, pinned by hash in components/envoy.txt.
//
// The cache is $WINGMAN_CACHE, else wingman below the user's cache folder. A folder there is named by the hash of all that
// went into it and appears by one rename: it is whole or absent. One process at a time fills the cache, others wait for it.
package binaries

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Set holds the absolute paths of everything that a real mesh is made of.
type Set struct {
	APIServer  string // kube-apiserver with etcd in the same process; see components/kube-apiserver
	Istiod     string // pilot-discovery
	Istioctl   string
	PilotAgent string
	Envoy      string // unmodified, from the wheel

	CRDs           string // Istio's CustomResourceDefinitions, one YAML stream (manifests/charts/base/files)
	EnvoyBootstrap string // pilot-agent's template (tools/packaging/common/envoy_bootstrap.json), for ISTIO_BOOTSTRAP
	StartScript    string // what Istio's package runs on a VM (tools/packaging/common/istio-start.sh)

	Versions []string // what was built and fetched: "module version" each
}

// Get returns the cached binaries, building and fetching what is missing: minutes when the Go build cache is cold. What it
// runs and what that says goes to out. The working folder must lie in the module wingman/test/mesh.
func Get(ctx context.Context, out io.Writer) (Set, error) {
	c, err := openCache(ctx, out)
	if err != nil {
		return Set{}, err
	}
	defer c.unlock()
	mesh, err := c.controlPlane(ctx)
	if err != nil {
		return Set{}, fmt.Errorf("build the control plane: %w", err)
	}
	envoy, err := c.envoy(ctx)
	if err != nil {
		return Set{}, fmt.Errorf("fetch Envoy: %w", err)
	}
	versions, err := Versions(ctx)
	if err != nil {
		return Set{}, err
	}
	return Set{
		APIServer:      filepath.Join(mesh, "kube-apiserver"),
		Istiod:         filepath.Join(mesh, "istiod"),
		Istioctl:       filepath.Join(mesh, "istioctl"),
		PilotAgent:     filepath.Join(mesh, "pilot-agent"),
		Envoy:          envoy,
		CRDs:           filepath.Join(mesh, "crds.yaml"),
		EnvoyBootstrap: filepath.Join(mesh, "envoy_bootstrap.json"),
		StartScript:    filepath.Join(mesh, "istio-start.sh"),
		Versions:       versions,
	}, nil
}

// GetEnvoy is Get for Envoy alone, which takes seconds: suites that need no control plane use it. It returns the program's path.
func GetEnvoy(ctx context.Context, out io.Writer) (string, error) {
	c, err := openCache(ctx, out)
	if err != nil {
		return "", err
	}
	defer c.unlock()
	program, err := c.envoy(ctx)
	if err != nil {
		return "", fmt.Errorf("fetch Envoy: %w", err)
	}
	return program, nil
}

// cache is the folder of binaries while this process alone may fill it.
type cache struct {
	builder
	root   string
	unlock func()
}

func openCache(ctx context.Context, out io.Writer) (*cache, error) {
	src, err := componentsDir(ctx)
	if err != nil {
		return nil, err
	}
	root, err := Root()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(root, 0o755); err != nil {
		return nil, fmt.Errorf("make the cache: %w", err)
	}
	unlock, err := lock(filepath.Join(root, "mesh.lock"))
	if err != nil {
		return nil, err
	}
	return &cache{builder{src: src, out: out}, root, unlock}, nil
}

// controlPlane returns the folder of what is built from Go modules.
func (c *cache) controlPlane(ctx context.Context) (dir string, err error) {
	key, err := hashOf(c.src, fmt.Sprintln(layout, runtime.Version(), runtime.GOARCH, targets, istioFiles, linkFlags), istioInputs...)
	if err != nil {
		return "", err
	}
	return filled(filepath.Join(c.root, "mesh-"+key), func(dir string) error { return c.buildControlPlane(ctx, dir) })
}

// envoy returns the program.
func (c *cache) envoy(ctx context.Context) (program string, err error) {
	key, err := hashOf(c.src, fmt.Sprintln(layout), envoyPin)
	if err != nil {
		return "", err
	}
	dir, err := filled(filepath.Join(c.root, "envoy-"+key), func(dir string) error { return c.fetchEnvoy(ctx, dir) })
	return filepath.Join(dir, "envoy"), err
}

// Root is the cache: $WINGMAN_CACHE, or wingman in the user's cache folder ($XDG_CACHE_HOME, ~/.cache).
func Root() (string, error) {
	if dir := os.Getenv("WINGMAN_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find a cache folder, or set WINGMAN_CACHE: %w", err)
	}
	return filepath.Join(dir, "wingman"), nil
}

// componentsDir finds the sources of the binaries beside the go.mod that the working folder belongs to.
func componentsDir(ctx context.Context) (string, error) {
	mod, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("find test/mesh by go env GOMOD: %w", err)
	}
	dir := filepath.Join(filepath.Dir(strings.TrimSpace(string(mod))), "components")
	if _, err := os.Stat(filepath.Join(dir, "go.mod")); err != nil {
		return "", fmt.Errorf("find test/mesh/components, is the working folder in test/mesh: %w", err)
	}
	return dir, nil
}

// hashOf names what the given files of src make in a given way.
func hashOf(src, way string, names ...string) (string, error) {
	h := sha256.New()
	fmt.Fprintln(h, way)
	for _, name := range names {
		b, err := os.ReadFile(filepath.Join(src, name))
		if err != nil {
			return "", fmt.Errorf("hash the sources: %w", err)
		}
		fmt.Fprintf(h, "%s %d\n", name, len(b))
		h.Write(b)
	}
	return hex.EncodeToString(h.Sum(nil))[:12], nil
}

// filled returns dir, filled by fill in a folder beside it that is renamed at the end. A folder that exists is whole.
func filled(dir string, fill func(dir string) error) (string, error) {
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	tmp := dir + ".partial" // the lock is held: a partial folder is left over from a process that died
	if err := os.RemoveAll(tmp); err != nil {
		return "", err
	}
	if err := os.Mkdir(tmp, 0o755); err != nil {
		return "", err
	}
	if err := fill(tmp); err != nil {
		return "", errors.Join(err, os.RemoveAll(tmp))
	}
	return dir, os.Rename(tmp, dir)
}

// lock waits for the exclusive lock on a file; the kernel lets go of it when the process dies.
func lock(name string) (unlock func(), err error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock the cache: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock the cache: flock %s: %w", name, err)
	}
	return func() { f.Close() }, nil
}
