package plainfile

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestRead(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.WriteFile(at("file"), []byte("12345678"), 0o600))
	must(os.WriteFile(at("long"), []byte("123456789"), 0o600))
	must(os.WriteFile(at("empty"), nil, 0o600))
	must(os.Symlink("file", at("link")))
	must(unix.Mkfifo(at("pipe"), 0o600))
	must(os.Symlink("/dev/zero", at("endless")))
	for _, tt := range []struct{ name, want, err string }{
		{"file", "12345678", ""},
		{"empty", "", ""},
		{"link", "12345678", ""},
		{"long", "", "has 9 bytes, expected at most 8"},
		{"pipe", "", "is not a regular file"},
		{"endless", "", "is not a regular file"},
		{".", "", "is not a regular file"},
		{"missing", "", "no such file or directory"},
	} {
		got, info, err := Read(at(tt.name), 8)
		if string(got) != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: %q, %v; want %q and error %q", tt.name, got, err, tt.want, tt.err)
		}
		if err == nil && info.Size() != int64(len(tt.want)) {
			t.Errorf("%s: %d bytes by its info, want %d", tt.name, info.Size(), len(tt.want))
		}
	}
}
