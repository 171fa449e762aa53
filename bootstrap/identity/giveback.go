package identity

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"wingman/internal/plainfile"
)

// A Living is the pair that a Manager shows, with its roots, for another agent to go on with.
type Living struct{ key, chain, roots []byte }

// ReadLiving reads it by the Manager's links in outputDir, before that one's run folder goes. nil: there is none, or it has expired.
//
// It may run as root, by links that the agent's user has made. What one of them leads to counts only where it is that user's too: GiveBack would hand
// out root's files otherwise.
func ReadLiving(outputDir string, now time.Time) *Living {
	if outputDir == "" {
		return nil
	}
	var pems [3][]byte
	for i, name := range []string{keyFile, chainFile, rootFile} {
		path := filepath.Join(outputDir, name)
		data, info, err := plainfile.Read(path, maxPEMSize)
		if err != nil || name != rootFile && !OutputLink(path) || !ownedAs(path, info) {
			return nil
		}
		pems[i] = data
	}
	key, err := parseKey(pems[0])
	if err != nil {
		return nil
	}
	chain, err := parseCertificates(pems[1])
	if err != nil || !sameKey(chain[0], key) || !now.Before(chain[0].NotAfter) {
		return nil
	}
	return &Living{key: pems[0], chain: pems[1], roots: pems[2]}
}

// ownedAs reports whether what is at path, a link as such, is of the owner of file.
func ownedAs(path string, file fs.FileInfo) bool {
	at, err := os.Lstat(path)
	if err != nil {
		return false
	}
	a, ok := at.Sys().(*syscall.Stat_t)
	b, also := file.Sys().(*syscall.Stat_t)
	return ok && also && a.Uid == b.Uid
}

// GiveBack is RemoveOutput for an agent that goes on with l (nil: none): key and chain of it are what is left as plain files, as what was kept of that agent's may
// have expired since. Its roots are where the kept ones are none of the chain. Run with no Manager running; once more changes nothing.
func GiveBack(outputDir string, l *Living, now time.Time) error {
	if l != nil {
		if err := l.keep(outputDir, now); err != nil {
			return fmt.Errorf("leave a living certificate in %s: %w", outputDir, err)
		}
	}
	_, err := RemoveOutput(outputDir)
	return err
}

// keep puts l where RemoveOutput takes from.
func (l *Living) keep(outputDir string, now time.Time) error {
	// It may run as root in a folder that is the agent's: links in it lead nowhere else.
	root, err := os.OpenRoot(outputDir)
	if err != nil {
		return err
	}
	defer root.Close()
	info, err := root.Stat(".")
	if err != nil {
		return err
	}
	put := func(name string, data []byte, mode fs.FileMode) error {
		if !OutputLink(filepath.Join(outputDir, name)) {
			return nil // somebody else's, or given back already
		}
		fresh := name + keptSuffix + ".new"
		if err := root.RemoveAll(fresh); err != nil {
			return err
		}
		f, err := root.OpenFile(fresh, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
		if err != nil {
			return err
		}
		_, err = f.Write(data)
		err = errors.Join(err, f.Chmod(mode))
		if owner, ok := info.Sys().(*syscall.Stat_t); ok && os.Geteuid() == 0 {
			err = errors.Join(err, f.Chown(int(owner.Uid), int(owner.Gid)))
		}
		if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
			return err
		}
		return root.Rename(fresh, name+keptSuffix)
	}
	problems := []error{put(keyFile, l.key, 0o600), put(chainFile, l.chain, 0o644)}
	if kept, _, err := plainfile.Read(KeptRoot(filepath.Join(outputDir, rootFile)), maxPEMSize); err != nil || !l.chainsTo(kept, now) {
		problems = append(problems, put(rootFile, l.roots, 0o644))
	}
	return errors.Join(problems...)
}

func (l *Living) chainsTo(roots []byte, now time.Time) bool {
	chain, err := parseCertificates(l.chain)
	if err != nil {
		return false
	}
	o := x509.VerifyOptions{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
	o.Roots.AppendCertsFromPEM(roots)
	for _, c := range chain[1:] {
		o.Intermediates.AddCert(c)
	}
	_, err = chain[0].Verify(o)
	return err == nil
}
