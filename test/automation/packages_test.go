package automation

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"wingman/test/vm"
)

// Versions of the packages that tests install over each other.
const (
	oldVersion = "1.0.0"
	newVersion = "1.1.0"
)

// built are the packages of both versions, for this computer's architecture, made once for all tests.
var built struct {
	once sync.Once
	dir  string
	err  error
}

func TestMain(m *testing.M) {
	status := m.Run()
	if built.dir != "" {
		os.RemoveAll(built.dir)
	}
	os.Exit(status)
}

// packageOf returns the package of a version and kind ("deb", "rpm").
func packageOf(t *testing.T, version, kind string) string {
	t.Helper()
	vm.Require(t)
	built.once.Do(func() {
		if built.dir, built.err = os.MkdirTemp("", "wingman-packages-"); built.err != nil {
			return
		}
		built.err = build(built.dir)
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	found, err := filepath.Glob(filepath.Join(built.dir, version, "wingman*."+kind))
	if err != nil || len(found) != 1 {
		t.Fatalf("packaging/build.sh left %q of kind %s, want one file (%v)", found, kind, err)
	}
	return found[0]
}

// build makes the packages of the old version as a release does, and from the same parts those of the new one, for which the version alone is another.
func build(dir string) error {
	old, arch := filepath.Join(dir, oldVersion), runtime.GOARCH
	commands := []*exec.Cmd{exec.Command("sh", "../../packaging/build.sh", arch)}
	commands[0].Env = append(commands[0].Environ(), "VERSION="+oldVersion, "DIST="+old, "KINDS=deb rpm")
	for _, kind := range []string{"deb", "rpm"} {
		commands = append(commands, exec.Command("sh", "-euc", `
			cd ../..
			mkdir -p "$1/$3"
			sed "s/^version: .*/version: $3/; s/compression: xz/compression: gzip/" "$1/$2/$4/nfpm.yaml" >"$1/$3/nfpm.yaml"
			go run "$(sed -n 's/^nfpm=//p' packaging/common.sh)" package --config "$1/$3/nfpm.yaml" --packager "$5" --target "$1/$3/"`,
			"sh", dir, oldVersion, newVersion, arch, kind))
	}
	for _, cmd := range commands {
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", cmd, err, out)
		}
	}
	return nil
}

// envoyPackage makes the .deb of wingman-envoy for this computer.
func envoyPackage(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command("sh", "../../packaging/envoy/build.sh", runtime.GOARCH)
	cmd.Env = append(cmd.Environ(), "DIST="+dir, "KINDS=deb")
	run(t, cmd)
	found, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(found) != 1 {
		t.Fatalf("packaging/envoy/build.sh left %q, want one file (%v)", found, err)
	}
	return found[0]
}

// standIn makes a .deb of this name with nothing in it.
func standIn(t *testing.T, name, arch string) string {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "tree/DEBIAN/control"), fmt.Sprintf("Package: %s\nVersion: 2.0.0-1\nArchitecture: %s\nMaintainer: Test <test@example.com>\nDescription: stands in for the real one\n", name, arch))
	deb := filepath.Join(dir, name+".deb")
	run(t, exec.Command("dpkg-deb", "--build", "--root-owner-group", "-Znone", filepath.Join(dir, "tree"), deb))
	return deb
}

// run runs a command and returns what it said; the test ends with that when it does not succeed.
func run(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return string(out)
}

// tool is a program that setup.sh automation installs.
func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%v (test/setup/setup.sh automation installs it)", err)
	}
	return path
}

// write puts a file into the test's own folders, and makes those.
func write(t *testing.T, file, content string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func sorted(list []string) []string { return slices.Sorted(slices.Values(list)) }
