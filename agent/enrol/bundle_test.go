package enrol

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// tarOf makes an archive; a member whose name ends with / is a folder, content that begins with "-> " a link, a name may come twice.
func tarOf(t testing.TB, members ...[2]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range members {
		h := &tar.Header{Name: m[0], Mode: 0o644, Size: int64(len(m[1])), Typeflag: tar.TypeReg}
		if to, ok := strings.CutPrefix(m[1], "-> "); ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, to, 0
		}
		if strings.HasSuffix(m[0], "/") {
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := w.Write([]byte(m[1])); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zipped(t testing.TB, content []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestReadArchive(t *testing.T) {
	five := [][2]string{{clusterEnv, "a"}, {meshYAML, "b"}, {hosts, ""}, {token, "d"}, {rootCert, "e"}}
	inFolder := [][2]string{{"vm/", ""}}
	for _, m := range five {
		inFolder = append(inFolder, [2]string{"./vm/" + m[0], m[1]})
	}
	many := slices.Repeat([][2]string{{"x", ""}}, maxMember+1)
	for _, tc := range []struct {
		name    string
		archive []byte
		want    string // names that were read
		other   string
		err     string // part of it; empty: none
	}{
		{"the five files", tarOf(t, five...), "cluster.env hosts istio-token mesh.yaml root-cert.pem", "", ""},
		{"compressed", zipped(t, tarOf(t, five...)), "cluster.env hosts istio-token mesh.yaml root-cert.pem", "", ""},
		{"in a folder", tarOf(t, inFolder...), "cluster.env hosts istio-token mesh.yaml root-cert.pem", "", ""},
		{"a token alone", tarOf(t, [2]string{token, "d"}), "istio-token", "", ""},
		{"others too", tarOf(t, [2]string{token, "d"}, [2]string{"../../etc/shadow", "x"}, [2]string{"README", "x"}), "istio-token", "../../etc/shadow README", ""},
		{"a name that leads out", tarOf(t, [2]string{"../istio-token", "d"}), "", "", `"../istio-token" leads out of the archive`},
		{"a name from the root", tarOf(t, [2]string{"/etc/istio-token", "d"}), "", "", `"/etc/istio-token" leads out of the archive`},
		{"a link", tarOf(t, [2]string{token, "-> /etc/shadow"}), "", "", `"istio-token" is not a file`},
		{"a folder by that name", tarOf(t, [2]string{"hosts/", ""}, [2]string{"hosts/token", "x"}), "", "hosts/token", ""},
		{"the same twice", tarOf(t, [2]string{token, "d"}, [2]string{"a/istio-token", "e"}), "", "", "istio-token is in it twice"},
		{"a file that is too large", tarOf(t, [2]string{token, strings.Repeat("x", maxFile+1)}), "", "", "istio-token has more than 4194304 bytes"},
		{"more than anybody packs", tarOf(t, many...), "", "", "more than 1000 members"},
		{"a bomb", zipped(t, tarOf(t, [2]string{"x", strings.Repeat("x", maxBundle+1)}, [2]string{token, "d"})), "", "", "unpacked"},
		{"cut short", tarOf(t, five...)[:1200], "", "", "expected a folder, a tar, or a tar.gz"},
		{"a zip", []byte("PK\x03\x04" + strings.Repeat("x", 600)), "", "", "expected a folder, a tar, or a tar.gz"},
	} {
		b, other, err := readArchive(bytes.NewReader(tc.archive))
		if tc.err != "" {
			if err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%s: error %v, want %q in it", tc.name, err, tc.err)
			}
			continue
		}
		if got := strings.Join(slices.Sorted(maps.Keys(b)), " "); err != nil || got != tc.want || strings.Join(other, " ") != tc.other {
			t.Errorf("%s: read %q, others %q, %v; want %q, %q", tc.name, got, other, err, tc.want, tc.other)
		}
	}
}

func TestReadBundle(t *testing.T) {
	dir := t.TempDir()
	put := func(name, content string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	put("good/cluster.env", "A=1\n")
	put("good/notes.txt", "x")
	put("elsewhere", "token")
	if err := os.Symlink("../elsewhere", filepath.Join(dir, "good", token)); err != nil {
		t.Fatal(err)
	}
	b, other, err := readBundle(filepath.Join(dir, "good"))
	if err != nil || string(b[token]) != "token" || string(b[clusterEnv]) != "A=1\n" || len(b) != 2 || len(other) != 1 {
		t.Errorf("a folder: %q, %q, %v", b, other, err)
	}
	put("bad/hosts/x", "")
	put("empty/README", "")
	for path, want := range map[string]string{
		filepath.Join(dir, "bad"):          "hosts is not a file",
		filepath.Join(dir, "empty"):        "holds none of istioctl's files",
		filepath.Join(dir, "none"):         "no such file",
		put("text", "hello"):               "expected a folder, a tar, or a tar.gz",
		put("empty.tar", string(tarOf(t))): "holds none of istioctl's files",
	} {
		if _, _, err := readBundle(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q in it", path, err, want)
		}
	}
}

// Whatever an archive holds, nothing but the five names comes out of it, each within its limit.
func FuzzReadArchive(f *testing.F) {
	good := tarOf(f, [2]string{clusterEnv, "A=1\n"}, [2]string{"../x/" + token, "t"}, [2]string{hosts, "-> /etc/passwd"})
	f.Add(good)
	f.Add(zipped(f, good))
	f.Add([]byte{0x1f, 0x8b})
	f.Fuzz(func(t *testing.T, archive []byte) {
		b, _, err := readArchive(bytes.NewReader(archive))
		if err != nil && b != nil {
			t.Errorf("an error and %d files", len(b))
		}
		for name, content := range b {
			if !slices.Contains(names, name) || len(content) > maxFile {
				t.Errorf("%q came out, with %d bytes", name, len(content))
			}
		}
	})
}

// To open a pipe waits for who writes to it: for ever, where nobody does.
func TestABundleThatIsNoFileIsRefused(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "bundle.tar")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	read := make(chan error, 1)
	go func() { _, _, err := readBundle(fifo); read <- err }()
	select {
	case err := <-read:
		if err == nil || !strings.Contains(err.Error(), fifo+": it is neither a folder nor a file") {
			t.Errorf("%v", err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("it waits")
	}
}
