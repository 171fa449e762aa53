package sds

import (
	"errors"
	"strings"
)

// kind is what a name asks for; also the label of metrics.
type kind string

const (
	kindIdentity kind = "default"
	kindRoots    kind = "ROOTCA"
	kindCertFile kind = "file-cert"
	kindRootFile kind = "file-root"
)

// maxName bounds a resource name: two paths of the kernel's longest and a little.
const maxName = 2*4096 + 16

// systemRoots is the path in file-root: that stands for the machine's own certificates.
const systemRoots = "system"

// resource is a parsed name.
type resource struct {
	kind kind
	// The files of kindCertFile and kindRootFile, as named; relative ones start at the root.
	cert, key, roots string
}

func (r resource) isFile() bool { return r.kind == kindCertFile || r.kind == kindRootFile }

var (
	errUnknownName = errors.New("no secret has such a name: expected default, ROOTCA, file-cert:CERTIFICATE~KEY or file-root:FILE")
	errCertName    = errors.New("expected file-cert:CERTIFICATE~KEY with two paths")
	errRootName    = errors.New("expected file-root:FILE with one path")
	errLongName    = errors.New("the name is too long for two paths")
)

// parseName reads a resource name. Paths cannot hold "~": Istio joins them with it.
func parseName(name string) (resource, error) {
	if len(name) > maxName {
		return resource{}, errLongName
	}
	switch name {
	case string(kindIdentity):
		return resource{kind: kindIdentity}, nil
	case string(kindRoots):
		return resource{kind: kindRoots}, nil
	}
	if paths, ok := strings.CutPrefix(name, string(kindCertFile)+":"); ok {
		cert, key, ok := strings.Cut(paths, "~")
		if !ok || !isPath(cert) || !isPath(key) {
			return resource{}, errCertName
		}
		return resource{kind: kindCertFile, cert: cert, key: key}, nil
	}
	if path, ok := strings.CutPrefix(name, string(kindRootFile)+":"); ok {
		if !isPath(path) {
			return resource{}, errRootName
		}
		return resource{kind: kindRootFile, roots: path}, nil
	}
	return resource{}, errUnknownName
}

func isPath(s string) bool { return s != "" && !strings.ContainsAny(s, "~\x00") }
