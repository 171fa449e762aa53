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
	if err := removeState(cfg, false); err != nil {
		t.Error(err)
	}
	if after := tree(); after != before {
		t.Errorf("left\n%s\nwant\n%s", after, before)
	}
}

// What cannot be undone is not said to be, and a second undo finishes.
func TestAnUndoThatFailedIsFinishedLater(t *testing.T) {
	dir := t.TempDir()
	paths := bootstrap.Paths{ClusterEnv: filepath.Join(dir, "etc/cluster.env"), Token: filepath.Join(dir, "etc/token"), StateDir: filepath.Join(dir, "state")}
	if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(paths.ClusterEnv, []byte("OLD=1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	cfg := &bootstrap.Config{Root: "/", Paths: paths}
	if _, _, err := machineOf(cfg).put(bundle{clusterEnv: []byte("A=1\n"), token: []byte("t")}); err != nil {
		t.Fatal(err)
	}
	backup, aside := backupName(paths.ClusterEnv, 1), filepath.Join(dir, "aside")
	if err := os.Rename(backup, aside); err != nil {
		t.Fatal(err)
	}
	removed, restored, _, err := machineOf(cfg).undo()
	if err == nil || len(restored) != 0 || len(removed) != 1 || removed[0] != paths.Token {
		t.Errorf("without its backup: removed %q, restored %q, %v; want the token alone, and an error", removed, restored, err)
	}
	if err := removeState(cfg, err != nil); err != nil {
		t.Error(err)
	}
	if !stateLeft(cfg) {
		t.Fatal("the record is gone")
	}
	if err := os.Rename(aside, backup); err != nil {
		t.Fatal(err)
	}
	removed, restored, changed, err := machineOf(cfg).undo()
	if err != nil || len(restored) != 1 || len(removed)+len(changed) != 0 {
		t.Errorf("again: removed %q, restored %q, changed %q, %v; want the settings restored", removed, restored, changed, err)
	}
	if content, _ := os.ReadFile(paths.ClusterEnv); string(content) != "OLD=1\n" {
		t.Errorf("settings are %q", content)
	}
	if err := removeState(cfg, false); err != nil || stateLeft(cfg) {
		t.Errorf("state is left: %v", err)
	}
}
