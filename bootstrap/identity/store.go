package identity

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The store's names; its layout is drawn on the package page.
const (
	storeName      = "identity" // below StateDir
	generationsDir = "generations"
	currentLink    = "current"
	corruptDir     = "corrupt"
	keyFile        = "key.pem"
	chainFile      = "cert-chain.pem"
	rootFile       = "root-cert.pem"
	metaFile       = "meta.json"

	keptGenerations = 2 // the current one and the one to fall back to
	keptCorrupt     = 3
)

// A store keeps generations of one identity in a folder. It is used by one goroutine.
type store struct {
	dir  string
	disk disk
	log  *slog.Logger

	sealer    *sealer
	origin    Machine // where the identity was given to a machine; written with each generation
	current   int     // the generation that currentLink names; 0: none
	rootsHash string  // SHA-256 of its root-cert.pem as it was written: other content there is somebody else's
}

// A generation is what one folder of the store holds.
type generation struct {
	number    int
	cert      *Certificate
	roots     anchors
	rootsHash string
	origin    Machine // zero: not known
	sealed    bool
}

// A meta is what a generation knows that is not in its PEM files.
type meta struct {
	SPIFFEID   string     `json:"spiffeId"`
	ReceivedAt time.Time  `json:"receivedAt"`
	RootsHash  string     `json:"rootCertSha256"`
	Machine    Machine    `json:"machine,omitzero"`
	Roots      []metaRoot `json:"roots"`
}

type metaRoot struct {
	Source string    `json:"source"`
	Until  time.Time `json:"until,omitzero"`
	PEM    string    `json:"pem"`
}

var (
	errCorrupt  = errors.New("corrupt generation")
	errOtherOne = errors.New("generation of another identity")
	errUnpruned = errors.New("old generations stay") // the new one is in place
)

// load returns the newest good generation of id, nil when there is none. A corrupt one is put aside for inspection, one of another
// identity is left where it is. The error says what was corrupt, and why the store cannot be read or mended; a generation may come with it.
func (s *store) load(id string, now time.Time) (*generation, error) {
	var problems []error
	if err := s.tidy(); err != nil {
		problems = append(problems, err)
	}
	numbers, err := s.numbers()
	if err != nil {
		problems = append(problems, err)
	}
	linked := s.linked()
	slices.SortFunc(numbers, func(a, b int) int { // the linked one first, then the newest
		switch {
		case a == linked:
			return -1
		case b == linked:
			return 1
		}
		return b - a
	})
	for _, n := range numbers {
		g, err := s.read(n, id, now)
		switch {
		case errors.Is(err, errCorrupt):
			s.log.Warn("generation put aside", "generation", n, "cause", err)
			problems = append(problems, err, s.putAside(n))
			continue
		case errors.Is(err, errSealed): // whole, and of use where its key is
			s.log.Warn("generation cannot be opened", "generation", n, "cause", err)
			problems = append(problems, err)
			continue
		case errors.Is(err, errOtherOne):
			s.log.Info("generation passed over", "generation", n, "cause", err)
			continue
		case err != nil:
			problems = append(problems, err)
			continue
		}
		if n != linked {
			problems = append(problems, s.link(n))
		}
		s.current, s.rootsHash = n, g.rootsHash
		return g, s.explain(problems)
	}
	return nil, s.explain(problems)
}

// save writes a new generation and switches to it in one step: whatever stops it, key and chain on disk match. With errUnpruned it is saved all the same.
func (s *store) save(c *Certificate, roots anchors) error {
	numbers, err := s.numbers()
	if err != nil {
		return s.explain([]error{err})
	}
	n := 1 + max(s.current, slices.Max(append(numbers, 0)))
	if err := s.write(n, c, roots); err != nil {
		s.disk.removeAll(s.path(generationsDir, "new-"+strconv.Itoa(n)))
		return s.explain([]error{err})
	}
	if err := s.link(n); err != nil {
		return s.explain([]error{err})
	}
	s.current, s.rootsHash = n, hash(c.RootsPEM())
	return s.explain([]error{s.prune(append(numbers, n))})
}

func (s *store) write(n int, c *Certificate, roots anchors) error {
	key, err := s.sealer.seal(keyFile, c.KeyPEM())
	if err != nil {
		return err
	}
	m := meta{SPIFFEID: c.SPIFFEID, ReceivedAt: c.ReceivedAt.UTC(), RootsHash: hash(c.RootsPEM()), Machine: s.origin}
	for _, x := range roots {
		m.Roots = append(m.Roots, metaRoot{Source: x.source, Until: x.until, PEM: string(encodeCertificates([]*x509.Certificate{x.cert}))})
	}
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return fmt.Errorf("write meta: %w", err)
	}
	folder := s.path(generationsDir, "new-"+strconv.Itoa(n))
	if err := s.disk.removeAll(folder); err != nil { // of a save that failed, and whose traces could not be removed either
		return err
	}
	if err := s.disk.mkdir(folder); err != nil {
		return err
	}
	for _, f := range []struct {
		name string
		data []byte
	}{{keyFile, key}, {chainFile, c.ChainPEM()}, {rootFile, c.RootsPEM()}, {metaFile, text}} {
		path := filepath.Join(folder, f.name)
		if err := s.disk.create(path, f.data); err != nil {
			return err
		}
		if err := s.disk.sync(path); err != nil {
			return err
		}
	}
	if err := s.disk.sync(folder); err != nil {
		return err
	}
	if err := s.disk.rename(folder, s.path(generationsDir, strconv.Itoa(n))); err != nil {
		return err
	}
	return s.disk.sync(s.path(generationsDir))
}

// link makes n the current generation.
func (s *store) link(n int) error {
	if info, err := os.Lstat(s.path(currentLink)); err == nil && info.Mode()&fs.ModeSymlink == 0 { // not by us
		if err := s.moveToCorrupt(s.path(currentLink), currentLink); err != nil {
			return err
		}
	}
	next := s.path(currentLink + ".new")
	if err := s.disk.removeAll(next); err != nil {
		return err
	}
	if err := s.disk.symlink(filepath.Join(generationsDir, strconv.Itoa(n)), next); err != nil {
		return err
	}
	if err := s.disk.rename(next, s.path(currentLink)); err != nil {
		return err
	}
	return s.disk.sync(s.dir)
}

// linked is the generation that the link names, 0 when there is none.
func (s *store) linked() int {
	target, err := os.Readlink(s.path(currentLink))
	if err != nil {
		return 0
	}
	n, _ := strconv.Atoi(filepath.Base(target))
	return n
}

// prune removes all but the newest generations. One is renamed first: half of it must not look like a corrupt one. What fails is said, and tried again by the
// next save; the others go all the same.
func (s *store) prune(numbers []int) error {
	slices.Sort(numbers)
	var problems []error
	for _, n := range numbers[:max(0, len(numbers)-keptGenerations)] {
		number := strconv.Itoa(n)
		problems = append(problems, s.disk.rename(s.path(generationsDir, number), s.path(generationsDir, "old-"+number)))
	}
	problems = append(problems, s.disk.sync(s.path(generationsDir)))
	entries, err := os.ReadDir(s.path(generationsDir))
	problems = append(problems, err)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "old-") {
			problems = append(problems, s.disk.removeAll(s.path(generationsDir, e.Name())))
		}
	}
	if err := errors.Join(problems...); err != nil {
		return fmt.Errorf("%w: %w", errUnpruned, err)
	}
	return nil
}

// moveToCorrupt keeps what is at path for inspection.
func (s *store) moveToCorrupt(path, name string) error {
	if err := s.disk.mkdir(s.path(corruptDir)); err != nil {
		return err
	}
	if err := s.disk.removeAll(s.path(corruptDir, name)); err != nil {
		return err
	}
	return s.disk.rename(path, s.path(corruptDir, name))
}

// putAside moves a corrupt generation out of the way.
func (s *store) putAside(n int) error {
	if err := s.moveToCorrupt(s.path(generationsDir, strconv.Itoa(n)), strconv.Itoa(n)); err != nil {
		return err
	}
	kept, err := numbered(s.path(corruptDir))
	if err != nil {
		return err
	}
	slices.Sort(kept)
	for _, n := range kept[:max(0, len(kept)-keptCorrupt)] {
		if err := s.disk.removeAll(s.path(corruptDir, strconv.Itoa(n))); err != nil {
			return err
		}
	}
	return nil
}

// tidy makes the folders and removes what a stop in the middle left.
func (s *store) tidy() error {
	if err := s.disk.mkdir(s.path(generationsDir)); err != nil {
		return err
	}
	if err := s.disk.mkdir(s.dir); err != nil {
		return err
	}
	if err := s.disk.sync(filepath.Dir(s.dir)); err != nil {
		return err
	}
	if err := s.disk.removeAll(s.path(copyFile + ".new")); err != nil {
		return err
	}
	entries, err := os.ReadDir(s.path(generationsDir))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "new-") || strings.HasPrefix(e.Name(), "old-") {
			if err := s.disk.removeAll(s.path(generationsDir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *store) numbers() ([]int, error) { return numbered(s.path(generationsDir)) }

// numbered lists the numbers that name folders in dir; none when there is no dir.
func numbered(dir string) ([]int, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var numbers []int
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); err == nil && n > 0 && strconv.Itoa(n) == e.Name() {
			numbers = append(numbers, n)
		}
	}
	return numbers, nil
}

func (s *store) path(parts ...string) string {
	return filepath.Join(append([]string{s.dir}, parts...)...)
}

// explain joins what went wrong, nil when nothing did.
func (s *store) explain(problems []error) error {
	if err := errors.Join(problems...); err != nil {
		return fmt.Errorf("identity store: %w", whose(err, s.dir))
	}
	return nil
}

func hash(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
