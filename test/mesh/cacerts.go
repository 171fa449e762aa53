package mesh

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// CACerts are the files of the secret cacerts, by name: ca-cert.pem and ca-key.pem (what istiod signs with), cert-chain.pem (from there up),
// root-cert.pem (what it tells the mesh to trust).
type CACerts map[string]string

// MountCACerts puts other files where istiod finds the secret cacerts, as kubelet does it: all at once, by a link. A running istiod takes them up
// by itself where it can (Istio pilot/pkg/bootstrap/istio_ca.go, handleEvent), else at its next start.
func (m *Mesh) MountCACerts(files CACerts) error {
	dir := m.file("istiod/etc/cacerts")
	version := fmt.Sprintf("..%d", time.Now().UnixNano())
	for name, content := range files {
		if err := writeFile(filepath.Join(dir, version, name), content); err != nil {
			return fmt.Errorf("mount cacerts: %w", err)
		}
	}
	link := func(target, name string) error {
		if err := os.Symlink(target, filepath.Join(dir, name+".new")); err != nil {
			return fmt.Errorf("mount cacerts: %w", err)
		}
		return os.Rename(filepath.Join(dir, name+".new"), filepath.Join(dir, name))
	}
	if err := link(version, "..data"); err != nil {
		return err
	}
	for name := range files {
		if err := link("..data/"+name, name); err != nil {
			return err
		}
	}
	return nil
}

func (m *Mesh) mountCACerts(context.Context) error {
	if len(m.opts.CACerts) == 0 {
		return nil
	}
	return m.MountCACerts(m.opts.CACerts)
}
