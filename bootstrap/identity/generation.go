package identity

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"wingman/internal/plainfile"
)

// read loads generation n and checks all of it. The error wraps errCorrupt when its content is to blame, errOtherOne when it is a
// good one of another SPIFFE id, else it is the file system's.
func (s *store) read(n int, id string, now time.Time) (*generation, error) {
	files := map[string][]byte{}
	for _, name := range []string{keyFile, chainFile, rootFile, metaFile} {
		data, _, err := plainfile.Read(s.path(generationsDir, strconv.Itoa(n), name), maxPEMSize)
		var outside *fs.PathError
		switch {
		case err == nil, errors.Is(err, fs.ErrNotExist): // what is missing is judged with the content
		case errors.As(err, &outside):
			return nil, err
		default:
			return nil, fmt.Errorf("%w: %w", errCorrupt, err)
		}
		files[name] = data
	}
	stored := files[keyFile]
	key, err := s.sealer.open(keyFile, stored)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.path(generationsDir, strconv.Itoa(n), keyFile), err)
	}
	files[keyFile] = key
	g, err := parseGeneration(files, id, now)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.path(generationsDir, strconv.Itoa(n)), err)
	}
	g.number, g.sealed = n, !bytes.Equal(key, stored)
	return g, nil
}

// parseGeneration checks that the files belong together: the key to the leaf, the leaf to id, the chain to the roots. That its
// certificate has expired is no fault. A damaged meta file costs the time of receipt only: the roots are in root-cert.pem as well.
func parseGeneration(files map[string][]byte, id string, now time.Time) (*generation, error) {
	key, err := parseKey(files[keyFile])
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", errCorrupt, keyFile, err)
	}
	chain, err := parseCertificates(files[chainFile])
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", errCorrupt, chainFile, err)
	}
	var m meta
	var roots anchors
	if err = json.Unmarshal(files[metaFile], &m); err == nil {
		roots, err = m.anchors()
	}
	if err != nil {
		certs, rootErr := parseRoots(files[rootFile])
		if rootErr != nil {
			return nil, fmt.Errorf("%w: %s: %w, and %s: %w", errCorrupt, metaFile, err, rootFile, rootErr)
		}
		m, roots = meta{RootsHash: hash(files[rootFile])}, anchors{}.withAnswer(certs, time.Time{})
	}
	if ids := uriNames(chain[0]); sameKey(chain[0], key) && !slices.Equal(ids, []string{id}) {
		return nil, fmt.Errorf("%w: %s", errOtherOne, quoteAll(ids))
	}
	at := now
	if !at.Before(chain[0].NotAfter) {
		at = chain[0].NotAfter.Add(-time.Second)
	}
	chain, err = checkIssued(chain, key, id, roots, at)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errCorrupt, err)
	}
	c := newCertificate(id, key, bytes.Clone(files[keyFile]), chain, m.ReceivedAt)
	return &generation{cert: c.withRoots(encodeCertificates(roots.certs())), roots: roots, rootsHash: m.RootsHash, origin: m.Machine}, nil
}

func (m meta) anchors() (anchors, error) {
	var list anchors
	for _, r := range m.Roots {
		certs, err := parseRoots([]byte(r.PEM))
		if err != nil {
			return nil, err
		}
		if !slices.Contains(sources, r.Source) {
			return nil, fmt.Errorf("source %.20q, expected one of %q", r.Source, sources)
		}
		for _, c := range certs {
			list = append(list, anchor{cert: c, source: r.Source, until: r.Until})
		}
	}
	if len(list) == 0 {
		return nil, errors.New("it names no roots")
	}
	return list, nil
}

// readForeign reads the key and chain that another agent left in dir (pilot-agent writes them there as plain files), so that a machine
// whose token is long dead keeps its identity. They must be id's, alive, and chain to roots. nil: the error says why there is none.
func readForeign(dir, id string, roots anchors, now time.Time) (*Certificate, error) {
	if dir == "" {
		return nil, errors.New("no output folder")
	}
	var pems [2][]byte
	for i, name := range []string{keyFile, chainFile} {
		path := filepath.Join(dir, name)
		if info, err := os.Lstat(path); err != nil {
			return nil, err
		} else if !info.Mode().IsRegular() {
			return nil, fmt.Errorf("%s is not a regular file", path)
		}
		data, _, err := plainfile.Read(path, maxPEMSize)
		if err != nil {
			return nil, err
		}
		pems[i] = data
	}
	key, err := parseKey(pems[0])
	if err != nil {
		return nil, err
	}
	chain, err := parseCertificates(pems[1])
	if err != nil {
		return nil, err
	}
	chain, err = checkIssued(slices.DeleteFunc(chain, selfSigned), key, id, roots, now)
	if err != nil {
		return nil, err
	}
	return newCertificate(id, key, pems[0], chain, time.Time{}), nil
}
