package spire

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

const modulePath = "github.com/spiffe/spire/cmd/"

// programs are what is built.
var programs = []string{"spire-server", "spire-agent"}

// Binaries returns the folder of spire-server and spire-agent, built from the module in components when they are not in the cache yet: ten minutes of
// both cores when Go's build cache is cold, and a C compiler for the server's database. What the build says goes to out. The cache is that of
// test/mesh: $WINGMAN_CACHE, else wingman below the user's cache folder; a folder there is whole or absent.
func Binaries(ctx context.Context, out io.Writer) (dir string, err error) {
	module, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "wingman").Output()
	if err != nil {
		return "", fmt.Errorf("find the module wingman: %w", err)
	}
	src := filepath.Join(strings.TrimSpace(string(module)), "test/spire/components")
	h := sha256.New()
	fmt.Fprintln(h, runtime.Version(), runtime.GOARCH)
	for _, name := range []string{"go.mod", "go.sum"} {
		b, err := os.ReadFile(filepath.Join(src, name))
		if err != nil {
			return "", err
		}
		h.Write(b)
	}
	root, err := cacheRoot()
	if err != nil {
		return "", err
	}
	dir = filepath.Join(root, "spire-"+hex.EncodeToString(h.Sum(nil))[:12])
	lock, err := os.OpenFile(filepath.Join(root, "spire.lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", fmt.Errorf("lock the cache: %w", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return dir, err
	}
	partial := dir + ".partial"
	if err := errors.Join(os.RemoveAll(partial), os.Mkdir(partial, 0o755)); err != nil {
		return "", err
	}
	args := []string{"build", "-trimpath", "-ldflags", "-s -w", "-o", partial + "/"}
	for _, p := range programs {
		args = append(args, modulePath+p)
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = src, out, out
	cmd.Env = append(os.Environ(), "CGO_ENABLED=1")
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("build SPIRE: %w", err)
	}
	return dir, os.Rename(partial, dir)
}

func cacheRoot() (string, error) {
	root := os.Getenv("WINGMAN_CACHE")
	if root == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("find a cache folder, or set WINGMAN_CACHE: %w", err)
		}
		root = filepath.Join(user, "wingman")
	}
	root, err := filepath.Abs(root)
	if err != nil {
		return "", err
	}
	return root, os.MkdirAll(root, 0o755)
}
