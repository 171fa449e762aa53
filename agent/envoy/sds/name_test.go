package sds

import (
	"strings"
	"testing"
)

func TestParseName(t *testing.T) {
	tests := []struct {
		name string
		want resource
		err  error
	}{
		{"default", resource{kind: kindIdentity}, nil},
		{"ROOTCA", resource{kind: kindRoots}, nil},
		{"file-cert:/etc/c.pem~/etc/k.pem", resource{kind: kindCertFile, cert: "/etc/c.pem", key: "/etc/k.pem"}, nil},
		{"file-cert:./etc/c.pem~etc/k.pem", resource{kind: kindCertFile, cert: "./etc/c.pem", key: "etc/k.pem"}, nil},
		{"file-root:/etc/ca.pem", resource{kind: kindRootFile, roots: "/etc/ca.pem"}, nil},
		{"file-root:system", resource{kind: kindRootFile, roots: "system"}, nil},
		{"file-cert:/etc/c.pem", resource{}, errCertName},
		{"file-cert:~/etc/k.pem", resource{}, errCertName},
		{"file-cert:/a~/b~/c", resource{}, errCertName},
		{"file-root:", resource{}, errRootName},
		{"file-root:/a~/b", resource{}, errRootName},
		{"file-root:/a\x00b", resource{}, errRootName},
		{"", resource{}, errUnknownName},
		{"Default", resource{}, errUnknownName},
		{"kubernetes://ingress-cert", resource{}, errUnknownName},
		{"file-root:/" + strings.Repeat("x", maxName), resource{}, errLongName},
	}
	for _, tt := range tests {
		if got, err := parseName(tt.name); got != tt.want || err != tt.err {
			t.Errorf("parseName(%.40q) = %+v, %v; want %+v, %v", tt.name, got, err, tt.want, tt.err)
		}
	}
}

// FuzzParseName: a name is refused, or gives back the paths that it was made of, and those lie below the root.
func FuzzParseName(f *testing.F) {
	for _, name := range []string{"default", "ROOTCA", "file-cert:/a~/b", "file-cert:../a~./b", "file-root:/../../etc/x", "file-root:system", "file-cert:~~"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		r, err := parseName(name)
		if err != nil {
			if r != (resource{}) {
				t.Errorf("%q is refused (%v) and gives %+v", name, err, r)
			}
			return
		}
		files := files{root: "/some/root"}
		again := string(r.kind)
		switch r.kind {
		case kindCertFile:
			again += ":" + r.cert + "~" + r.key
		case kindRootFile:
			again += ":" + r.roots
		}
		if again != name {
			t.Errorf("%q reads as %q", name, again)
		}
		for _, path := range []string{r.cert, r.key, r.roots} {
			if at := files.path(path); at != "/some/root" && !strings.HasPrefix(at, "/some/root/") {
				t.Errorf("%q leads out of the root, to %q", name, at)
			}
		}
	})
}
