package main

import (
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// fixtures are istioctl's files for the WorkloadGroup forum, and the operator's own; token and root are made fresh.
//
//go:embed testdata
var fixtures embed.FS

// ownEtc are the machine's own files of /etc; the others are those of the host.
var ownEtc = map[string]string{
	"passwd": fmt.Sprintf("root:x:0:0:root:/root:/bin/sh\nistio-proxy:x:%d:%d::/var/lib/istio:/usr/sbin/nologin\nforum:x:%d:%d::/:/bin/sh\n",
		proxyUID, proxyUID, userUID, userUID),
	"group":         fmt.Sprintf("root:x:0:\nistio-proxy:x:%d:\nforum:x:%d:\n", proxyUID, userUID),
	"hosts":         "127.0.0.1 localhost\n", // nothing of istiod: the agent reads istioctl's hosts file by itself
	"nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
	"resolv.conf":   "nameserver " + resolverAddr + "\noptions timeout:2 attempts:2\n",
	"hostname":      "forum-vm\n",
}

// privateMounts keeps this namespace's mounts from the host and gives place a tmpfs.
func privateMounts(place string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	if err := unix.Mount("tmpfs", place, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return fmt.Errorf("tmpfs at %s: %w", place, err)
	}
	return nil
}

// writeFiles lays out the machine below root: istioctl's files at their classic places but for those that writeCredentials
// writes, folders as Wingman's package makes them, and an /etc.
func writeFiles(root string) error {
	if err := linkEtc(filepath.Join(root, "etc")); err != nil {
		return err
	}
	for fixture, path := range map[string]string{
		"cluster.env": "var/lib/istio/envoy/cluster.env",
		"sidecar.env": "var/lib/istio/envoy/sidecar.env",
		"hosts":       "var/lib/istio/envoy/hosts",
		"mesh.yaml":   "etc/istio/config/mesh",
	} {
		text, err := fixtures.ReadFile("testdata/" + fixture)
		if err != nil {
			return err
		}
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := writeFile(path, text, 0o644, 0, 0); err != nil {
			return err
		}
	}
	for path, mode := range map[string]fs.FileMode{"var/lib/wingman": 0o700, "run/wingman": 0o755, "etc/certs": 0o755} {
		path = filepath.Join(root, path)
		if err := errors.Join(os.MkdirAll(path, mode), os.Chown(path, proxyUID, proxyUID)); err != nil {
			return err
		}
	}
	return nil
}

// writeCredentials writes the two files of istioctl that a control plane makes fresh.
func writeCredentials(root, token string, rootCert []byte) error {
	tokens := filepath.Join(root, "var/run/secrets/tokens")
	if err := os.MkdirAll(tokens, 0o755); err != nil {
		return err
	}
	return errors.Join(
		writeFile(filepath.Join(tokens, "istio-token"), []byte(token), 0o600, proxyUID, proxyUID),
		writeFile(filepath.Join(root, "etc/certs/root-cert.pem"), rootCert, 0o644, proxyUID, proxyUID),
	)
}

// linkEtc fills an /etc: own files, and a link into the host's for everything else (iptables may be one of Debian's
// alternatives). The host's /etc moves aside to etc-host for that.
func linkEtc(etc string) error {
	host := etc + "-host"
	if err := errors.Join(os.MkdirAll(etc, 0o755), os.MkdirAll(host, 0o755)); err != nil {
		return err
	}
	if err := unix.Mount("/etc", host, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("the host's /etc: %w", err)
	}
	entries, err := os.ReadDir(host)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if _, own := ownEtc[e.Name()]; own || e.Name() == "certs" || e.Name() == "istio" || e.Name() == "wingman" {
			continue
		}
		if err := os.Symlink(filepath.Join(host, e.Name()), filepath.Join(etc, e.Name())); err != nil {
			return err
		}
	}
	for name, text := range ownEtc {
		if err := writeFile(filepath.Join(etc, name), []byte(text), 0o644, 0, 0); err != nil {
			return err
		}
	}
	return nil
}

func writeFile(path string, data []byte, mode fs.FileMode, uid, gid int) error {
	if err := os.WriteFile(path, data, mode); err != nil {
		return err
	}
	return errors.Join(os.Chmod(path, mode), os.Chown(path, uid, gid)) // whatever the umask
}

func copyProgram(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, os.Chmod(to, 0o755), out.Close())
}
