package units

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"wingman/test/netns"
)

// install lays out a root folder with our files, the commands they name, and the units of systemd itself.
func install(t *testing.T) (root string) {
	t.Helper()
	root = t.TempDir()
	write := func(path, content string, mode fs.FileMode) {
		t.Helper()
		to := filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range Files() {
		write(f.Path, f.Content, f.Mode)
	}
	for _, command := range []string{"/usr/bin/wingman", "/bin/kill", "/bin/sh"} {
		write(command, "#!/bin/sh\n", 0o755)
	}
	own := "/lib/systemd/system" // also where /lib is a link to /usr/lib
	units, err := os.ReadDir(own)
	if err != nil {
		netns.Skip(t, "systemd is not installed")
	}
	for _, u := range units {
		if filepath.Ext(u.Name()) == ".wants" {
			continue
		}
		content, err := os.ReadFile(filepath.Join(own, u.Name()))
		if err == nil && !strings.HasPrefix(u.Name(), "wingman") {
			write(filepath.Join("/usr/lib/systemd/system", u.Name()), string(content), 0o644)
		}
	}
	return root
}

func services(t *testing.T) (names []string) {
	t.Helper()
	for _, f := range Files() {
		if filepath.Ext(f.Path) == ".service" {
			names = append(names, filepath.Base(f.Path))
		}
	}
	if len(names) == 0 {
		t.Fatal("there are no services")
	}
	return names
}

func TestSystemdFindsNoFault(t *testing.T) {
	analyze := netns.Tool(t, "systemd-analyze")
	root := install(t)
	for _, unit := range append(services(t), "istio-mesh-ready.target") {
		out, err := exec.Command(analyze, "verify", "--man=no", "--root="+root, filepath.Join(root, "/usr/lib/systemd/system", unit)).CombinedOutput()
		if err != nil || len(out) > 0 {
			t.Errorf("%s: %v\n%s", unit, err, out)
		}
	}
}

func TestServicesAreHardened(t *testing.T) {
	analyze := netns.Tool(t, "systemd-analyze")
	root := install(t)
	for _, unit := range services(t) {
		out, err := exec.Command(analyze, "security", "--no-pager", "--offline=yes", "--threshold=20", filepath.Join(root, "/usr/lib/systemd/system", unit)).CombinedOutput()
		if err != nil { // also when the exposure is above the threshold: 2.0
			t.Errorf("%s: %v\n%s", unit, err, out)
		}
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		t.Log(lines[len(lines)-1])
	}
}

// What TPROXY needs beside is still hardened, and is all that a drop-in changes.
func TestTheProxyWithTPROXYIsHardened(t *testing.T) {
	analyze := netns.Tool(t, "systemd-analyze")
	root := install(t)
	unit := filepath.Join(root, "/usr/lib/systemd/system/wingman-proxy.service")
	dropIn, err := files.ReadFile("tproxy.conf")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(unit+".d", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(unit+".d/tproxy.conf", dropIn, 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(analyze, "verify", "--man=no", "--root="+root, unit).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%v\n%s", err, out)
	}
	out, err := exec.Command(analyze, "security", "--no-pager", "--offline=yes", "--threshold=20", "--root="+root, "wingman-proxy.service").CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if !strings.Contains(string(out), "CAP_NET_ADMIN") || !strings.Contains(string(out), "✗ PrivateUsers=") {
		t.Errorf("the drop-in was not read:\n%s", out)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	t.Log(lines[len(lines)-1])
}

// A file that is not in the list would be in no package.
func TestEachFileIsInstalled(t *testing.T) {
	entries, err := files.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := len(Files()), len(entries); got != want {
		t.Errorf("%d files are installed, want all %d", got, want)
	}
}

func TestTheGuardIsShell(t *testing.T) {
	if out, err := exec.Command("sh", "-n", "crash-guard").CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
