package identity

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// What ensure does to a folder RemoveOutput takes back; what is somebody else's stays.
func TestRemoveOutput(t *testing.T) {
	old := time.Now().Add(-time.Hour)
	for _, tc := range []struct {
		name   string
		before map[string]string // content; "-> x" is a link
		since  map[string]string // put there after ensure
		want   map[string]string
	}{
		{"nothing was there", nil, nil, nil},
		{"the operator's root", map[string]string{rootFile: "root"}, nil, map[string]string{rootFile: "root"}},
		{"the files of pilot-agent", map[string]string{keyFile: "k", chainFile: "c", rootFile: "root"}, nil, map[string]string{keyFile: "k", chainFile: "c", rootFile: "root"}},
		{"somebody else's link, and file", map[string]string{keyFile: "-> /elsewhere", "ca.pem": "x"}, nil, map[string]string{keyFile: "-> /elsewhere", "ca.pem": "x"}},
		{"a file put in the place of our link", map[string]string{rootFile: "root"}, map[string]string{rootFile: "newer"},
			map[string]string{rootFile: "newer", rootFile + keptSuffix: "root"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir, store := filepath.Join(t.TempDir(), "certs"), filepath.Join(t.TempDir(), storeName)
			put := func(files map[string]string) {
				t.Helper()
				for name, content := range files {
					path := filepath.Join(dir, name)
					if err := os.RemoveAll(path); err != nil {
						t.Fatal(err)
					}
					if to, ok := strings.CutPrefix(content, "-> "); ok {
						if err := os.Symlink(to, path); err != nil {
							t.Fatal(err)
						}
						continue
					}
					putFile(t, path, content)
					if err := os.Chtimes(path, old, old); err != nil {
						t.Fatal(err)
					}
				}
			}
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			put(tc.before)
			o := output{dir: dir, store: store, disk: systemDisk}
			root := filepath.Join(dir, rootFile)
			_ = o.ensure(root, []byte(tc.before[rootFile]), time.Now()) // somebody else's link is an error
			if !OutputLink(root) {
				t.Fatal("there is no link of ours to take back")
			}
			put(tc.since)
			for range 2 {
				if _, err := RemoveOutput(dir); err != nil {
					t.Fatal(err)
				}
			}
			var got []string
			entries, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				content, err := os.ReadFile(filepath.Join(dir, e.Name()))
				if to, linkErr := os.Readlink(filepath.Join(dir, e.Name())); linkErr == nil {
					content, err = []byte("-> "+to), nil
				}
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, e.Name()+" "+string(content))
			}
			var want []string
			for name, content := range tc.want {
				want = append(want, name+" "+content)
			}
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("left %q, want %q", got, want)
			}
		})
	}
	if changed, err := RemoveOutput(filepath.Join(t.TempDir(), "none")); err != nil || changed != nil {
		t.Errorf("without a folder: %q, %v", changed, err)
	}
}
