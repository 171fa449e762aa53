package sds

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"wingman/internal/filewatch"
)

// maxFile bounds a PEM file; the certificates of every public authority are a quarter of it.
const maxFile = 1 << 20

// systemBundles are where distributions keep the certificates of public authorities.
var systemBundles = []string{
	"/etc/ssl/certs/ca-certificates.crt",                // Debian, Ubuntu, Alpine, Arch
	"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", // RHEL, Fedora
	"/etc/pki/tls/certs/ca-bundle.crt",                  // older RHEL
	"/etc/ssl/ca-bundle.pem",                            // SUSE
	"/etc/ssl/cert.pem",                                 // Alpine, OpenBSD
}

// files reads the secrets that names of files stand for.
type files struct {
	root  string
	watch *filewatch.Watch
}

// follow watches the files of names and no others.
func (f files) follow(names []string) {
	var paths []string
	for _, name := range names {
		r, err := parseName(name)
		if err != nil {
			continue
		}
		for _, p := range []string{r.cert, r.key} {
			if p != "" {
				paths = append(paths, f.path(p))
			}
		}
		paths = append(paths, f.rootFiles(r)...)
	}
	f.watch.Arm(paths)
}

// load reads and checks the secret of a name: what Envoy would refuse, or use wrongly, is an error here.
func (f files) load(name string) (secret, error) {
	r, err := parseName(name)
	if err != nil {
		return secret{}, err
	}
	if r.kind == kindCertFile {
		chain, err := readFile(f.path(r.cert))
		if err != nil {
			return secret{}, err
		}
		key, err := readFile(f.path(r.key))
		if err != nil {
			return secret{}, err
		}
		if _, err := tls.X509KeyPair(chain, key); err != nil {
			return secret{}, fmt.Errorf("%s and %s are no pair: %w", r.cert, r.key, err)
		}
		return certificateSecret(name, chain, key), nil
	}
	var missing error
	for _, path := range f.rootFiles(r) {
		roots, err := readFile(path)
		if errors.Is(err, os.ErrNotExist) {
			missing = err
			continue
		}
		if err == nil {
			err = checkRoots(roots)
		}
		if err != nil {
			return secret{}, fmt.Errorf("roots in %s: %w", path, err)
		}
		return rootsSecret(name, roots), nil
	}
	return secret{}, missing
}

// rootFiles are the files that may hold the roots of r, the first that exists counts.
func (f files) rootFiles(r resource) []string {
	if r.roots == "" {
		return nil
	}
	if r.roots != systemRoots {
		return []string{f.path(r.roots)}
	}
	var paths []string
	for _, p := range systemBundles {
		paths = append(paths, f.path(p))
	}
	return paths
}

// path is where a named file is. A relative one starts at the root, where Envoy and pilot-agent have their working folder.
func (f files) path(name string) string { return filepath.Join(f.root, filepath.Join("/", name)) }

func readFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no ordinary file", path)
	}
	if info.Size() > maxFile {
		return nil, fmt.Errorf("%s has %d bytes, expected at most %d", path, info.Size(), maxFile)
	}
	return os.ReadFile(path)
}

// checkRoots wants certificates and nothing but, at least one. An expired one among others is Envoy's business.
func checkRoots(b []byte) error {
	found := false
	for len(b) > 0 {
		block, rest := pem.Decode(b)
		if block == nil {
			break
		}
		b = rest
		if block.Type != "CERTIFICATE" {
			return fmt.Errorf("it holds a PEM block %.40q, expected CERTIFICATE only", block.Type)
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return fmt.Errorf("a certificate in it is damaged: %w", err)
		}
		found = true
	}
	if !found {
		return errors.New("it holds no certificate")
	}
	return nil
}

// trouble is a file that cannot be used.
type trouble struct {
	what  string
	since time.Time
	said  bool
}

// noteTroubles says what is wrong with files, each cause once, when it lasts. It returns when to look again at the latest.
func (s *Server) noteTroubles(wrong map[string]string, now time.Time) time.Duration {
	next := recheck
	for name, what := range wrong {
		t := s.lasting[name]
		if t.what != what {
			t = trouble{what: what, since: now}
		}
		if left := settling - now.Sub(t.since); left > 0 {
			next = min(next, left)
		} else if !t.said {
			t.said = true
			s.log.Warn("a secret's files cannot be used; what Envoy has stays", "name", name, "cause", what)
		}
		s.lasting[name] = t
	}
	for name, t := range s.lasting {
		if _, still := wrong[name]; !still {
			delete(s.lasting, name)
			if t.said {
				s.log.Info("a secret's files can be used again, or nobody asks for them", "name", name)
			}
		}
	}
	s.mu.Lock()
	s.troubles = wrong
	s.mu.Unlock()
	return next
}
