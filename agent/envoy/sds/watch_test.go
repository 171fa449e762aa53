package sds

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestFolders(t *testing.T) {
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"certs/g1", "elsewhere/deep"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for link, target := range map[string]string{
		"certs/..data": "g1", "certs/c.pem": "..data/c.pem", "dir": "certs/..data", "far": root + "/elsewhere", "loop": "loop", "gone": "nowhere/x",
	} {
		if err := os.Symlink(target, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{"certs/g1/c.pem", "elsewhere/deep/c.pem", "plain"} {
		if err := os.WriteFile(filepath.Join(root, file), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct{ name, file, want string }{
		{"an ordinary file", "plain", "."},
		{"a file that is missing", "certs/g1/none", "certs/g1"},
		{"a folder that is missing", "certs/none/of/this", "certs"},
		{"a file where a folder should be", "plain/x", "."},
		{"a link to a file behind a link", "certs/c.pem", "certs certs/g1"},
		{"a linked folder, behind another link", "dir/c.pem", ". certs certs/g1"},
		{"a link that leads elsewhere", "far/deep/c.pem", ". elsewhere/deep"},
		{"a link to nothing", "gone/c.pem", "."},
		{"a link to itself", "loop/c.pem", "."},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var want []string
			for _, dir := range strings.Fields(tt.want) {
				want = append(want, filepath.Join(root, dir))
			}
			// An absolute link starts again above root: only what lies below is ours to know.
			got := slices.DeleteFunc(folders([]string{filepath.Join(root, tt.file)}), func(d string) bool { return !strings.HasPrefix(d, root) })
			if !slices.Equal(got, want) {
				t.Errorf("folders(%s) = %q, want %q", tt.file, got, want)
			}
		})
	}
}
