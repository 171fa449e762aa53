package hcl

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// terraform is the module that is tested.
const terraform = "../../../packaging/terraform"

// buildTofu builds OpenTofu of go.mod, unless it is in the cache already, and returns its path.
var buildTofu = sync.OnceValues(func() (string, error) {
	cache := os.Getenv("WINGMAN_CACHE")
	if cache == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("find a cache folder (set WINGMAN_CACHE): %w", err)
		}
		cache = filepath.Join(dir, "wingman")
	}
	var pinned bytes.Buffer
	for _, name := range []string{"go.mod", "go.sum"} {
		content, err := os.ReadFile(name)
		if err != nil {
			return "", err
		}
		pinned.Write(content)
	}
	hash := sha256.Sum256(pinned.Bytes())
	program, err := filepath.Abs(filepath.Join(cache, fmt.Sprintf("tofu-%x", hash[:6])))
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(program); err == nil {
		return program, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	work, err := os.MkdirTemp(cache, "making-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	made := filepath.Join(work, "tofu")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", made, "github.com/opentofu/opentofu/cmd/tofu")
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%s: %w\n%s", cmd, err, out)
	}
	return program, os.Rename(made, program)
})

// tofu runs it in a folder, without anything of this computer's own settings, and returns what it says.
func tofu(t *testing.T, dir string, argv ...string) (string, error) {
	t.Helper()
	program, err := buildTofu()
	if err != nil {
		t.Fatal(err)
	}
	empty := filepath.Join(t.TempDir(), "tofurc")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, argv...)
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "TF_CLI_CONFIG_FILE=" + empty, "CHECKPOINT_DISABLE=1", "NO_COLOR=1", "TF_IN_AUTOMATION=1"}
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("tofu %s: %w\n%s%s", strings.Join(argv, " "), err, out.String(), errs.String())
	}
	return out.String(), nil
}

func mustTofu(t *testing.T, dir string, argv ...string) string {
	t.Helper()
	out, err := tofu(t, dir, argv...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// copied returns a copy of the module, as a registry or an absolute path gives it: nothing beside it is there.
func copied(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "module")
	if err := os.CopyFS(dir, os.DirFS(terraform)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// The module by OpenTofu's own eyes: form, validity, and the tests in its folder tests.
func TestModule(t *testing.T) {
	dir := copied(t)
	mustTofu(t, dir, "fmt", "-check", "-diff", "-recursive", ".")
	mustTofu(t, dir, "init", "-backend=false")
	mustTofu(t, dir, "validate")
	out := mustTofu(t, dir, "test", "-no-color")
	if !strings.Contains(out, "17 passed, 0 failed") {
		t.Errorf("tofu test says\n%s", out)
	}
}
