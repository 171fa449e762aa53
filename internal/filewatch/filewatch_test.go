package filewatch

import (
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// realWatch is an inotify watch for the test's life.
func realWatch(t *testing.T) *Watch {
	t.Helper()
	w := New(slog.New(slog.DiscardHandler), time.Minute)
	if w.inner == nil {
		t.Skip("needs an inotify instance")
	}
	t.Cleanup(w.Stop)
	return w
}

// awaitWord fails the test when the watch says nothing.
func awaitWord(t *testing.T, w *Watch, of string) {
	t.Helper()
	select {
	case <-w.Changed():
	case <-time.After(30 * time.Second):
		t.Fatalf("no word of %s", of)
	}
}

// putFile puts a file in place by rename, with the folders that it needs.
func putFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".tmp", []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		t.Fatal(err)
	}
}

// drain takes what is pending, so that only what follows counts.
func drain(w *Watch) {
	for {
		select {
		case <-w.Changed():
		default:
			return
		}
	}
}

func TestWatchTellsOfEveryWayAFileChanges(t *testing.T) {
	must := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct {
		name   string
		before func(t *testing.T, dir string) // dir holds secrets/token in the end
		change func(t *testing.T, dir string)
	}{
		{"it appears", func(t *testing.T, dir string) { must(t, os.MkdirAll(dir+"/secrets", 0o755)) },
			func(t *testing.T, dir string) { putFile(t, dir+"/secrets/token", "x") }},
		{"it is written in place", func(t *testing.T, dir string) { putFile(t, dir+"/secrets/token", "x") },
			func(t *testing.T, dir string) { must(t, os.WriteFile(dir+"/secrets/token", []byte("y"), 0o600)) }},
		{"it is replaced by rename", func(t *testing.T, dir string) { putFile(t, dir+"/secrets/token", "x") },
			func(t *testing.T, dir string) { putFile(t, dir+"/secrets/token", "y") }},
		{"it becomes readable", func(t *testing.T, dir string) { putFile(t, dir+"/secrets/token", "x") },
			func(t *testing.T, dir string) { must(t, os.Chmod(dir+"/secrets/token", 0o644)) }},
		{"it goes", func(t *testing.T, dir string) { putFile(t, dir+"/secrets/token", "x") },
			func(t *testing.T, dir string) { must(t, os.Remove(dir+"/secrets/token")) }},
		{"the file behind a link changes", func(t *testing.T, dir string) {
			putFile(t, dir+"/elsewhere/real", "x")
			must(t, os.Mkdir(dir+"/secrets", 0o755))
			must(t, os.Symlink("../elsewhere/real", dir+"/secrets/token"))
		}, func(t *testing.T, dir string) { putFile(t, dir+"/elsewhere/real", "y") }},
		{"a ..data link is switched, as kubelet does", func(t *testing.T, dir string) {
			putFile(t, dir+"/secrets/..1/token", "x")
			putFile(t, dir+"/secrets/..2/token", "y")
			must(t, os.Symlink("..1", dir+"/secrets/..data"))
			must(t, os.Symlink("..data/token", dir+"/secrets/token"))
		}, func(t *testing.T, dir string) {
			must(t, os.Symlink("..2", dir+"/secrets/..tmp"))
			must(t, os.Rename(dir+"/secrets/..tmp", dir+"/secrets/..data"))
		}},
		{"a link in the middle of a chain is switched", func(t *testing.T, dir string) {
			putFile(t, dir+"/1/token", "x")
			putFile(t, dir+"/2/token", "y")
			must(t, os.MkdirAll(dir+"/middle", 0o755))
			must(t, os.MkdirAll(dir+"/secrets", 0o755))
			must(t, os.Symlink(dir+"/1", dir+"/middle/now"))
			must(t, os.Symlink(dir+"/middle/now/token", dir+"/secrets/token"))
		}, func(t *testing.T, dir string) {
			must(t, os.Symlink(dir+"/2", dir+"/middle/new"))
			must(t, os.Rename(dir+"/middle/new", dir+"/middle/now"))
		}},
		{"a link in the middle of a chain appears", func(t *testing.T, dir string) {
			putFile(t, dir+"/1/token", "x")
			must(t, os.MkdirAll(dir+"/middle", 0o755))
			must(t, os.MkdirAll(dir+"/secrets", 0o755))
			must(t, os.Symlink(dir+"/middle/now/token", dir+"/secrets/token"))
		}, func(t *testing.T, dir string) { must(t, os.Symlink(dir+"/1", dir+"/middle/now")) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			tt.before(t, dir)
			w := realWatch(t)
			w.Arm([]string{dir + "/secrets/token"})
			drain(w)
			tt.change(t, dir)
			awaitWord(t, w, "the change")
		})
	}
}

func TestWatchFollowsFoldersThatAppearAndComeBack(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "run", "secrets", "tokens", "istio-token")
	w := realWatch(t)
	// As the manager does: armed again after each word, until the file is there.
	follow := func() {
		t.Helper()
		for {
			w.Arm([]string{file})
			if _, err := os.Stat(file); err == nil {
				drain(w)
				return
			}
			awaitWord(t, w, "the next folder")
		}
	}
	w.Arm([]string{file})
	for range 2 { // the second time the tmpfs was emptied, and all folders are new ones
		go func() {
			os.MkdirAll(filepath.Dir(file), 0o755)
			os.WriteFile(file, []byte("x"), 0o600)
		}()
		follow()
		if err := os.RemoveAll(filepath.Join(dir, "run")); err != nil {
			t.Fatal(err)
		}
		awaitWord(t, w, "the end")
		w.Arm([]string{file})
	}
}

func TestWatchIsSilentAboutOthersFiles(t *testing.T) {
	w := &Watch{files: []string{"/etc/certs/root-cert.pem", "/run/secrets/tokens/istio-token"}}
	for _, tt := range []struct {
		name string
		want bool
	}{
		{"/etc/certs/root-cert.pem", true}, {"/etc/certs/..data", true}, {"/run/secrets", true}, {"/run/secrets/tokens", true},
		{"/run/systemd", false}, {"/run/sec", false}, {"/etc/passwd", false}, {"/etc/certs", true},
	} {
		if got := w.concerns(tt.name); got != tt.want {
			t.Errorf("an event at %s counts: %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestWatchedFoldersAreTheNearestThatExist(t *testing.T) {
	dir := t.TempDir()
	putFile(t, dir+"/a/real", "x")
	if err := os.Symlink("a/real", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	list, _ := folders([]string{dir + "/link", dir + "/a/b/c/file", "/no/such/place"})
	got := strings.Join(list, " ")
	if want := "/ " + dir + " " + dir + "/a"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

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
			list, _ := folders([]string{filepath.Join(root, tt.file)})
			got := slices.DeleteFunc(list, func(d string) bool { return !strings.HasPrefix(d, root) })
			if !slices.Equal(got, want) {
				t.Errorf("folders(%s) = %q, want %q", tt.file, got, want)
			}
		})
	}
}

func TestWithoutInotifyItIsSilent(t *testing.T) {
	w := &Watch{}
	w.Arm([]string{"/etc/passwd"})
	select {
	case <-w.Changed():
		t.Error("a word of nothing")
	default:
	}
	w.Stop()
}
