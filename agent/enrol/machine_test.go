package enrol

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"wingman/bootstrap"
)

// /var/run is a link to /run on every machine: what join makes behind a link, leave finds by the other way, and takes away.
func TestFilesBehindLinksComeAndGo(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"run", "var/lib", "etc"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../run", filepath.Join(dir, "var/run")); err != nil {
		t.Fatal(err)
	}
	paths := bootstrap.DefaultPaths("/")
	for _, p := range []*string{&paths.ClusterEnv, &paths.MeshConfig, &paths.Hosts, &paths.Token, &paths.RootCert, &paths.StateDir, &paths.OutputCerts} {
		*p = filepath.Join(dir, *p)
	}
	cfg := &bootstrap.Config{Root: "/", Paths: paths}
	tree := func() string {
		var all []string
		if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			all = append(all, path)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return strings.Join(all, "\n")
	}
	before := tree()
	changed, backups, err := machineOf(cfg).put(bundle{clusterEnv: []byte("A=1\n"), token: []byte("t"), rootCert: []byte("r")})
	if err != nil || len(changed) != 3 || len(backups) != 0 {
		t.Fatalf("put: changed %q, backups %q, %v", changed, backups, err)
	}
	if info, err := os.Stat(paths.Token); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("token: %v, %v; want mode 0600", info, err)
	}
	removed, _, _, err := machineOf(cfg).undo()
	if err != nil || len(removed) != 3 {
		t.Errorf("undo: removed %q, %v", removed, err)
	}
	if err := removeState(cfg); err != nil {
		t.Error(err)
	}
	if after := tree(); after != before {
		t.Errorf("left\n%s\nwant\n%s", after, before)
	}
}
