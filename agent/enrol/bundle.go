package enrol

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// Istioctl's five files, by the names that `istioctl x workload entry configure` gives them.
const (
	clusterEnv = "cluster.env"
	meshYAML   = "mesh.yaml"
	hosts      = "hosts"
	token      = "istio-token"
	rootCert   = "root-cert.pem"
)

var names = []string{clusterEnv, meshYAML, hosts, token, rootCert}

// Limits of what is read: the largest real file has some kilobytes.
const (
	maxFile   = 4 << 20
	maxBundle = 64 << 20 // unpacked
	maxMember = 1000
)

// A bundle is what join is given: content by name, of some of the five files.
type bundle map[string][]byte

// readBundle reads a folder, or an archive (tar, tar.gz) with the files at its top or in one folder. other names what else is there. Nothing is
// unpacked: a name in an archive decides nothing but which of the five files it is.
func readBundle(from string) (b bundle, other []string, err error) {
	info, err := os.Stat(from)
	if err != nil {
		return nil, nil, err
	}
	switch {
	case info.IsDir():
		b, other, err = readFolder(from)
	case !info.Mode().IsRegular(): // to open a pipe would wait for who writes
		err = errors.New("it is neither a folder nor a file")
	default:
		var f *os.File
		if f, err = os.Open(from); err != nil {
			return nil, nil, err
		}
		defer f.Close()
		b, other, err = readArchive(f)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", from, err)
	}
	if len(b) == 0 {
		return nil, nil, fmt.Errorf("%s holds none of istioctl's files (%s): make them with istioctl x workload entry configure -o %s", from, strings.Join(names, ", "), from)
	}
	return b, other, nil
}

func readFolder(dir string) (bundle, []string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, nil, err
	}
	b, other := bundle{}, []string(nil)
	for _, e := range entries {
		if !slices.Contains(names, e.Name()) {
			other = append(other, e.Name())
			continue
		}
		file := filepath.Join(dir, e.Name())
		info, err := os.Stat(file) // a link to one will do
		if err != nil {
			return nil, nil, err
		}
		if !info.Mode().IsRegular() {
			return nil, nil, fmt.Errorf("%s is not a file", e.Name())
		}
		f, err := os.Open(file)
		if err != nil {
			return nil, nil, err
		}
		content, err := readLimited(f, e.Name())
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, nil, err
		}
		b[e.Name()] = content
	}
	return b, other, nil
}

// readLimited reads one file of at most maxFile bytes.
func readLimited(r io.Reader, name string) ([]byte, error) {
	content, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err == nil && len(content) > maxFile {
		err = fmt.Errorf("%s has more than %d bytes", name, maxFile)
	}
	return content, err
}

// readArchive reads a tar, compressed by gzip or not.
func readArchive(r io.Reader) (bundle, []string, error) {
	in := bufio.NewReader(r)
	unpacked := io.Reader(in)
	if magic, _ := in.Peek(2); bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		z, err := gzip.NewReader(in)
		if err != nil {
			return nil, nil, fmt.Errorf("gzip: %w", err)
		}
		unpacked = z
	}
	t := tar.NewReader(&limited{r: unpacked, left: maxBundle})
	b, other := bundle{}, []string(nil)
	for range maxMember {
		h, err := t.Next()
		switch {
		case errors.Is(err, io.EOF):
			return b, other, nil
		case err != nil:
			return nil, nil, fmt.Errorf("%w: expected a folder, a tar, or a tar.gz", err)
		}
		name := path.Base(path.Clean(h.Name))
		switch {
		case h.Typeflag == tar.TypeDir:
		case !slices.Contains(names, name):
			other = append(other, h.Name)
		case !filepath.IsLocal(h.Name):
			return nil, nil, fmt.Errorf("%q leads out of the archive", h.Name)
		case h.Typeflag != tar.TypeReg:
			return nil, nil, fmt.Errorf("%q is not a file", h.Name)
		default:
			if _, twice := b[name]; twice {
				return nil, nil, fmt.Errorf("%s is in it twice", name)
			}
			if b[name], err = readLimited(t, name); err != nil {
				return nil, nil, err
			}
		}
	}
	return nil, nil, fmt.Errorf("it has more than %d members", maxMember)
}

// limited ends with an error after so many bytes: a small archive can unpack to anything.
type limited struct {
	r    io.Reader
	left int64
}

func (l *limited) Read(p []byte) (int, error) {
	if l.left <= 0 {
		return 0, fmt.Errorf("more than %d bytes unpacked", maxBundle)
	}
	n, err := l.r.Read(p[:min(int64(len(p)), l.left)])
	l.left -= int64(n)
	return n, err
}
