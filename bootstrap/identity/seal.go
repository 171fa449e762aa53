package identity

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"wingman/internal/plainfile"
)

// SealKey is the name that the key is encrypted under: 32 bytes in hexadecimal.
const SealKey = "wingman-seal-key"

// OpenKey is where root leaves the key, decrypted, for the agent.
const OpenKey = machineDir + "/seal-key"

// sealMark begins a sealed file. What follows is a nonce and the content under AES-256-GCM, bound to the file's name.
const sealMark = "wingman-sealed-1\n"

// errSealed means that a file is sealed and cannot be opened here. It is whole, and stays where it is.
var errSealed = errors.New("sealed")

// A sealer seals the private key and the copy of the token at rest. The key comes from root, who has it encrypted by the TPM or by a key of this host: a store that is
// copied elsewhere is of no use there. nil seals nothing and opens nothing.
type sealer struct {
	on   bool   // what is written is sealed
	file string // of the key, "" means none

	once sync.Once
	aead cipher.AEAD // nil: why says why there is none
	why  error
}

// ready reads the key, once.
func (s *sealer) ready() (cipher.AEAD, error) {
	s.once.Do(func() {
		if s.file == "" {
			s.why = fmt.Errorf("the unit has no key (credential %s, which is missing or not this machine's)", SealKey)
			return
		}
		text, _, err := plainfile.Read(s.file, 4<<10)
		if errors.Is(err, fs.ErrNotExist) {
			s.why = fmt.Errorf("the unit has no key (credential %s, which is missing or not this machine's)", SealKey)
			return
		}
		if err == nil {
			s.aead, err = parseSealKey(text)
		}
		if err != nil {
			s.why = fmt.Errorf("credential %s: %w", SealKey, err)
		}
	})
	return s.aead, s.why
}

func parseSealKey(text []byte) (cipher.AEAD, error) {
	key, err := hex.DecodeString(string(bytes.TrimSpace(text)))
	if err != nil || len(key) != 32 {
		return nil, errors.New("it is no key: expected 64 hexadecimal digits")
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// sealerOf opens with a key that is at hand.
func sealerOf(text []byte) *sealer {
	s := &sealer{}
	s.once.Do(func() { s.aead, s.why = parseSealKey(text) })
	return s
}

// seal is content as it is written under that name.
func (s *sealer) seal(name string, content []byte) ([]byte, error) {
	if s == nil || !s.on {
		return content, nil
	}
	aead, err := s.ready()
	if err != nil {
		return nil, fmt.Errorf("identity.seal is on and %w, so nothing is written: `wingman cert seal` as root makes one", err)
	}
	return aead.Seal([]byte(sealMark), nil, content, []byte(name)), nil
}

// open is the content of a file of that name, sealed or not. The error wraps errSealed.
func (s *sealer) open(name string, data []byte) ([]byte, error) {
	sealed, ok := bytes.CutPrefix(data, []byte(sealMark))
	if !ok {
		return data, nil
	}
	if s == nil {
		s = &sealer{}
	}
	aead, err := s.ready()
	if err != nil {
		return nil, fmt.Errorf("it is %w and %w: bring back /etc/credstore.encrypted/%s and the unit's drop-in, or a fresh token", errSealed, err, SealKey)
	}
	content, err := aead.Open(nil, nil, sealed, []byte(name))
	if err != nil {
		return nil, fmt.Errorf("it is %w with another key: the store is a copy of another machine's, or the key was made anew; a fresh token is needed", errSealed)
	}
	return content, nil
}

// Sealed lists the files below stateDir that are sealed. It is for root: the key that opens them may go when there are none.
func Sealed(stateDir string) (list []string, err error) {
	for _, pattern := range []string{generationsDir + "/*/" + keyFile, corruptDir + "/*/" + keyFile, copyFile} {
		files, err := filepath.Glob(filepath.Join(stateDir, storeName, pattern))
		if err != nil {
			return nil, err
		}
		for _, f := range files {
			data, _, err := plainfile.Read(f, maxPEMSize)
			if err != nil {
				return nil, err
			}
			if bytes.HasPrefix(data, []byte(sealMark)) {
				list = append(list, f)
			}
		}
	}
	return list, nil
}

// Discard removes what is sealed below stateDir and is not opened by this key (nil: by none): whole generations, and the copy of the token. It is for root: nothing outside
// stateDir is touched, whatever its owner has put there.
func Discard(stateDir string, key []byte) (gone []string, err error) {
	list, err := Sealed(stateDir)
	if err != nil || len(list) == 0 {
		return nil, err
	}
	root, err := os.OpenRoot(stateDir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	s := sealerOf(key)
	for _, path := range list {
		data, _, err := plainfile.Read(path, maxPEMSize)
		if err != nil {
			return gone, err
		}
		if _, err := s.open(filepath.Base(path), data); !errors.Is(err, errSealed) {
			continue
		}
		if filepath.Base(path) == keyFile {
			path = filepath.Dir(path)
		}
		name, err := filepath.Rel(stateDir, path)
		if err == nil {
			err = root.RemoveAll(name)
		}
		if err != nil {
			return gone, err
		}
		gone = append(gone, path)
	}
	return gone, nil
}

// rewrite has the store that was read written anew when its form is not the settings'. What else has the other form goes then: nothing stays behind in the clear,
// and nothing that needs a key which is to go.
func (r *runner) rewrite(g *generation) {
	if g.sealed != r.sealer.on {
		r.unsaved = true
	}
}

// removeOthers removes what has the other form than the settings', at each load and after each save, and with each turn until it is gone.
func (r *runner) removeOthers() {
	if !r.purge || r.unsaved { // what cannot be written anew is all there is
		return
	}
	removed, err := r.store.removeOtherForm()
	if r.purge = err != nil; r.purge {
		r.stuck = true
		r.storeFailed(r.store.explain([]error{err}))
	} else if r.stuck {
		r.stuck, r.said.StoreProblem = false, ""
	}
	if removed > 0 {
		r.cfg.Log.Info("keys of the other form were removed", "count", removed, "sealed", r.sealer.on)
	}
}

// removeOtherForm removes every generation but the current one, and keys that were put aside, that are sealed and should not be or the other way round. Without a
// current generation only the latter go: what cannot be opened may be of use again.
func (s *store) removeOtherForm() (removed int, err error) {
	generations, _ := filepath.Glob(s.path(generationsDir, "*", keyFile))
	aside, _ := filepath.Glob(s.path(corruptDir, "*", keyFile))
	if s.current == 0 {
		generations = nil
	}
	for _, key := range append(generations, aside...) {
		folder := filepath.Dir(key)
		data, _, bad := plainfile.Read(key, maxPEMSize) // what cannot be read may well be a key in the clear
		if sealed := bad == nil && bytes.HasPrefix(data, []byte(sealMark)); sealed == s.sealer.on || folder == s.path(generationsDir, strconv.Itoa(s.current)) {
			continue
		}
		if filepath.Dir(folder) == s.path(corruptDir) {
			folder = key
		}
		gone := s.disk.removeAll(folder)
		if gone == nil {
			removed++
		}
		err = errors.Join(err, gone)
	}
	if removed > 0 {
		err = errors.Join(err, s.disk.sync(s.path(generationsDir)))
	}
	return removed, err
}

// show makes a generation in the clear for OutputDir's links, in the folder of sockets, which a reboot empties: applications cannot read sealed ones.
func (r *runner) show(c *Certificate, roots anchors) error {
	if r.clear == nil || c == nil || r.clear.current != 0 && r.shown == c.Serial+hash(c.RootsPEM()) {
		return nil
	}
	if dir := filepath.Dir(r.clear.dir); !r.disk.volatile(dir) {
		return fmt.Errorf("certificates do not appear in %s: identity.seal is on, and %s, where they would lie in the clear, is no tmpfs", r.cfg.OutputDir, dir)
	}
	if err := r.clear.tidy(); err != nil {
		return err
	}
	if err := r.clear.save(c, roots); err != nil {
		return err
	}
	r.shown = c.Serial + hash(c.RootsPEM())
	return nil
}

// unshow removes what show made, when sealing is off again and the links lead elsewhere.
func (r *runner) unshow() error {
	if r.sealer.on || r.cfg.RunDir == "" {
		return nil
	}
	dir := filepath.Join(r.cfg.RunDir, storeName)
	if _, err := os.Lstat(dir); err != nil {
		return nil
	}
	return r.disk.removeAll(dir)
}
