package vm

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"wingman/systemd/units"
)

// Build compiles a command of this repository for machines, as a release is, and returns the program's path.
func Build(t testing.TB, pkg string) string { t.Helper(); return build(t, pkg, "") }

// BuildRelease is Wingman from this checkout under another version: another file, as an upgrade brings.
func BuildRelease(t testing.TB, version string) string {
	t.Helper()
	return build(t, "wingman/cmd/wingman", " -X main.release="+version)
}

func build(t testing.TB, pkg, ldflags string) string {
	t.Helper()
	Require(t)
	to := filepath.Join(t.TempDir(), filepath.Base(pkg))
	cmd := exec.Command("go", "build", "-tags=grpcnotrace", "-trimpath", "-ldflags=-s -w"+ldflags, "-o", to, pkg)
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0")
	must(t, cmd)
	return to
}

// Install puts a program onto a machine as /usr/bin/wingman, with everything that its package brings, as after a first
// installation. The machine is off, or boots or restarts the unit before the program is used.
func (m *Machine) Install(program string) {
	m.t.Helper()
	m.CopyIn(program, "/usr/bin/wingman", 0o755)
	m.Write("/etc/tmpfiles.d/certs.conf", "d /etc/certs 0755 istio-proxy istio-proxy -\n", 0o644) // in the place of the package's script
	for _, f := range units.Files() {
		m.Write(f.Path, f.Content, f.Mode)
	}
}

// Enable makes a unit start at boot, on a machine that is off.
func (m *Machine) Enable(unit string) {
	m.t.Helper()
	must(m.t, exec.Command("systemctl", "--root="+m.root, "--quiet", "enable", unit))
}

// Wingman returns the program to test: WINGMAN_BIN, or one built from this checkout.
func Wingman(t testing.TB) string {
	t.Helper()
	Require(t)
	if path := os.Getenv("WINGMAN_BIN"); path != "" {
		return path
	}
	return Build(t, "wingman/cmd/wingman")
}

// Envoy returns the real Envoy: WINGMAN_ENVOY, or the one in the cache that test/mesh keeps, which is downloaded the first time.
func Envoy(t testing.TB) string {
	t.Helper()
	Require(t)
	if path := os.Getenv("WINGMAN_ENVOY"); path != "" {
		return path
	}
	fetch := exec.Command("go", "run", "./cmd/fetch", "-only", "envoy")
	fetch.Dir = "../mesh"
	out, err := fetch.Output()
	if err != nil {
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
			t.Fatalf("%s: %v\n%s", fetch, err, exit.Stderr)
		}
		t.Fatalf("%s: %v", fetch, err)
	}
	return strings.TrimSpace(string(out))
}
