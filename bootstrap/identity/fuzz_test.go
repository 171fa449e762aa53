package identity

import (
	"bytes"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func FuzzGeneration(f *testing.F) {
	root := newAuthority(f, "cluster.local", testNow, 1000*time.Hour, nil)
	c := certificateBy(f, root, testID, testNow, time.Hour)
	m := `{"receivedAt":"2026-11-23T12:00:00Z","roots":[{"source":"ca","pem":"` + strings.ReplaceAll(root.pem(), "\n", `\n`) + `"}]}`
	keyDER, _ := pem.Decode(c.KeyPEM())
	f.Add(c.KeyPEM(), c.ChainPEM(), []byte(root.pem()), []byte(m), false)
	f.Add(c.KeyPEM(), c.ChainPEM(), []byte(root.pem()), []byte("{"), false)
	f.Add([]byte("x"), []byte("-----BEGIN CERTIFICATE-----"), []byte(""), []byte(""), false)
	f.Add(keyDER.Bytes, c.TLS().Certificate[0], root.cert.Raw, []byte(m), true)
	f.Add(keyDER.Bytes, c.TLS().Certificate[0], root.cert.Raw, []byte("{"), true)
	f.Fuzz(func(t *testing.T, key, chain, roots, meta []byte, der bool) {
		if der { // what is inside the PEM blocks is fuzzed, or base64 would stop nearly all of it
			key = pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: key})
			chain = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: chain})
			roots = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: roots})
		}
		g, err := parseGeneration(map[string][]byte{keyFile: key, chainFile: chain, rootFile: roots, metaFile: meta}, testID, testNow)
		if err != nil {
			if !errors.Is(err, errCorrupt) && !errors.Is(err, errOtherOne) {
				t.Errorf("an error of no kind: %v", err)
			}
			return
		}
		if key, err := parseKey(g.cert.KeyPEM()); err != nil || !sameKey(g.cert.TLS().Leaf, key) {
			t.Errorf("passed with a key that is not the leaf's: %v", err)
		}
		if ids := uriNames(g.cert.TLS().Leaf); len(ids) != 1 || ids[0] != testID || len(g.roots) == 0 {
			t.Errorf("passed with ids %v and %d roots", ids, len(g.roots))
		}
		if l := g.cert.lifeAt(testNow); !l.received.Before(l.notAfter) {
			t.Errorf("a life from %v to %v", l.received, l.notAfter)
		}
	})
}

func FuzzCheckRoots(f *testing.F) {
	root := newAuthority(f, "cluster.local", testNow, 1000*time.Hour, nil)
	f.Add([]byte(root.pem()))
	f.Add([]byte(root.pem() + "\n# comment\n" + root.pem()[:300]))
	f.Fuzz(func(t *testing.T, data []byte) {
		if CheckRoots(data, testNow) != nil {
			return
		}
		certs, err := parseRoots(data)
		if err != nil || len(certs) == 0 {
			t.Fatalf("passed, but gives %d certificates, %v", len(certs), err)
		}
		if again, err := parseRoots(encodeCertificates(certs)); err != nil || len(again) != len(certs) {
			t.Errorf("written and read again: %d of %d, %v", len(again), len(certs), err)
		}
	})
}

// FuzzOpenSealed gives files of the store to one that has a key: what was not sealed by it is returned as it is, or refused.
func FuzzOpenSealed(f *testing.F) {
	path := filepath.Join(f.TempDir(), SealKey)
	if err := os.WriteFile(path, []byte(strings.Repeat("0a", 32)), 0o600); err != nil {
		f.Fatal(err)
	}
	s := &sealer{on: true, file: path}
	good, err := s.seal(keyFile, []byte("secret"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(sealMark))
	f.Add([]byte("-----BEGIN PRIVATE KEY-----"))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := s.open(keyFile, data)
		switch {
		case !bytes.HasPrefix(data, []byte(sealMark)):
			if err != nil || !bytes.Equal(got, data) {
				t.Fatalf("what is not sealed is not left alone: %v", err)
			}
		case err == nil && string(got) != "secret": // the one content that was ever sealed
			t.Fatalf("a forged seal opens: %q", got)
		case err != nil && !errors.Is(err, errSealed):
			t.Fatal(err)
		}
	})
}
