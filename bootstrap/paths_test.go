package bootstrap

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestPathsStayBelowRoot(t *testing.T) {
	m := machine{t: t, root: t.TempDir()}
	m.write("/var/lib/istio/config/mesh", "")
	for link, target := range map[string]string{
		"/etc/istio":    "/var/lib/istio", // as Istio's package makes it
		"/var/run":      "../run",
		"/etc/out":      "../../../../../outside",
		"/etc/loop":     "loop",
		"/etc/certs":    "/etc/pki/certs", // made later
		"/etc/trailing": "/var/lib/",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(m.root, link)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, filepath.Join(m.root, link)); err != nil {
			t.Fatal(err)
		}
	}
	for path, want := range map[string]string{
		"/etc/istio/config/mesh":    "/var/lib/istio/config/mesh",
		"/var/run/secrets/token":    "/run/secrets/token",
		"/etc/out/x":                "/outside/x",
		"/etc/loop/x":               "/etc/loop/x",
		"./etc/certs/root-cert.pem": "/etc/pki/certs/root-cert.pem",
		"../../etc/passwd":          "/etc/passwd",
		"/etc/istio/../hosts":       "/etc/hosts", // as written: Clean comes first, as in Go's own packages
		"/etc/trailing/x":           "/var/lib/x",
		"/not/there":                "/not/there",
		"":                          "/",
	} {
		if got := strings.TrimPrefix(under(m.root, path), m.root); got != strings.TrimSuffix(want, "/") {
			t.Errorf("%q below root is %q, want %q", path, got, want)
		}
	}
	t.Chdir(filepath.Dir(m.root))
	if got, want := under("./"+filepath.Base(m.root), "/etc/istio/x"), m.root+"/var/lib/istio/x"; got != want {
		t.Errorf("below a relative root: %q, want %q", got, want)
	}
	for _, root := range []string{"", "/", "//"} {
		if got := under(root, "./etc/certs"); got != "/etc/certs" {
			t.Errorf("below %q: %q", root, got)
		}
	}
}

// TestLoadFollowsIstiosLayout has mesh where Istio's package puts it, behind a link that would lead to this machine's own folder.
func TestLoadFollowsIstiosLayout(t *testing.T) {
	m := newMachine(t, map[string]string{meshConfig: "-", "/var/lib/istio/config/mesh": "defaultConfig: {meshId: behind-the-link}\n", clusterEnv: "A=1\n"})
	if err := os.Symlink("/var/lib/istio", filepath.Join(m.root, "/etc/istio")); err != nil {
		t.Fatal(err)
	}
	c, _ := m.load()
	if c.MeshID != "behind-the-link" {
		t.Errorf("mesh id %q", c.MeshID)
	}
}

func TestPathsAreComplete(t *testing.T) {
	c, _ := newMachine(t, nil).load()
	want := DefaultPaths(c.Root)
	if c.Paths != want {
		t.Errorf("istioctl's files moved the paths: %+v, want %+v", c.Paths, want)
	}
}
