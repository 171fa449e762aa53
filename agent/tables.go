package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"sync"
	"time"

	"wingman/agent/xds"
	"wingman/bootstrap"
	"wingman/dnsproxy"
)

// tableName is the saved NameTable's file, below the state folder.
const tableName = "nametable"

// saveEvery is the least time between two saves: a mesh in motion must not wear out a disk.
const saveEvery = time.Second

// Where the table in use is from.
const (
	tableNone   = "none"
	tableDisk   = "disk"
	tableIstiod = "istiod"
)

// tables takes NameTables in, hands them to the DNS proxy, and keeps the last one on disk for the next start.
type tables struct {
	file tableFile
	log  *slog.Logger
	use  func(*dnsproxy.Table)
	save chan savedTable // buffered 1: the latest table not yet saved

	mu     sync.Mutex           // guards everything below
	cfg    dnsproxy.TableConfig // without a version
	inUse  savedTable
	built  *dnsproxy.Table // of inUse
	source string
	left   []dnsproxy.LeftOut // of built
}

// leftOutMessage is logged when other entries than before cannot be used.
const leftOutMessage = "entries of the name table cannot be used and are left out"

func newTables(path string, log *slog.Logger, use func(*dnsproxy.Table)) *tables {
	return &tables{file: tableFile(path), log: log, use: use, save: make(chan savedTable, 1), source: tableNone}
}

// tableConfig is what the settings say about names.
func tableConfig(c *bootstrap.Config) dnsproxy.TableConfig {
	return dnsproxy.TableConfig{Namespace: c.Namespace, Domain: c.Domain, NoIPv6: !c.DNS.IPv6}
}

// configure sets how names are resolved. A table in use is built again if that changed.
func (t *tables) configure(cfg dnsproxy.TableConfig) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.cfg == cfg {
		return
	}
	t.cfg = cfg
	if t.source == tableNone {
		return
	}
	if err := t.buildLocked(t.inUse, t.source); err != nil {
		t.log.Error("name table does not fit the new settings; the one in use stays", "cause", err)
	}
}

// restore puts the saved table to use, if there is one.
func (t *tables) restore() {
	saved, err := t.file.load()
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err != nil {
		t.log.Error("saved name table is not used; mesh names come with istiod's first push", "file", string(t.file), "cause", err)
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.buildLocked(saved, tableDisk); err != nil {
		t.log.Error("saved name table is not used; mesh names come with istiod's first push", "file", string(t.file), "cause", errors.Join(err, setAside(string(t.file))))
		return
	}
	t.log.Info("name table restored", "names", t.built.Len(), "version", saved.version, "age", time.Since(saved.received).Round(time.Second))
}

// take is the handler of NDS pushes. What cannot be used of a table is left out and told; a push of which nothing can is an error, and
// then the table in use stays.
func (t *tables) take(p xds.Push) error {
	if len(p.Resources) == 0 {
		return nil // nothing for us in this push; it only wants its ACK
	}
	if n := len(p.Resources); n > 1 {
		return fmt.Errorf("push has %d name tables, expected 1", n)
	}
	if got := p.Resources[0].GetTypeUrl(); got != xds.TypeNameTable {
		return fmt.Errorf("push holds a %q, expected %q", got, xds.TypeNameTable)
	}
	next := savedTable{version: p.Version, received: time.Now(), raw: p.Resources[0].GetValue()}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.source != tableNone && bytes.Equal(next.raw, t.inUse.raw) {
		t.inUse, t.source = next, tableIstiod
	} else if err := t.buildLocked(next, tableIstiod); err != nil {
		return err
	}
	for { // the newest table is the one to save
		select {
		case t.save <- next:
			return nil
		case <-t.save:
		}
	}
}

func (t *tables) buildLocked(s savedTable, source string) error {
	cfg := t.cfg
	cfg.Version = s.version
	table, err := t.changeLocked(cfg, s)
	if err != nil { // whatever it was: the whole table says what is wrong with it, if anything
		table, err = t.wholeLocked(cfg, s)
	}
	if err == nil {
		err = usable(table)
	}
	if err != nil {
		return err
	}
	t.use(table)
	t.built = table
	t.inUse, t.source = s, source
	t.tellLocked(table.LeftOut(""))
	return nil
}

// tellLocked logs what is left out, once for each change of it.
func (t *tables) tellLocked(left []dnsproxy.LeftOut) {
	switch {
	case slices.Equal(left, t.left):
	case len(left) > 0:
		t.log.Warn(leftOutMessage, "entries", len(left), "which", theFirst(left))
	default:
		t.log.Info("every entry of the name table can be used again")
	}
	t.left = left
}

// troubles is what of the table in use somebody should look at.
func (t *tables) troubles() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.left) == 0 {
		return nil
	}
	return []string{fmt.Sprintf("dns: %d of istiod's names cannot be used, all others are (wingman dns table shows them): %s", len(t.left), theFirst(t.left))}
}

// wholeLocked makes the table of s from all its names.
func (t *tables) wholeLocked(cfg dnsproxy.TableConfig, s savedTable) (*dnsproxy.Table, error) {
	names, err := s.names()
	if err != nil {
		return nil, err
	}
	return t.built.Update(cfg, names) // what did not change is taken over
}

// changeLocked does what wholeLocked does, by what is different from the table in use.
func (t *tables) changeLocked(cfg dnsproxy.TableConfig, s savedTable) (*dnsproxy.Table, error) {
	if t.built == nil {
		return nil, errNoDiff
	}
	d, err := diffTables(t.inUse.raw, s.raw)
	if err != nil {
		return nil, err
	}
	changed, err := savedTable{raw: d.changed}.names()
	if err != nil {
		return nil, err
	}
	return t.built.Change(cfg, d.gone, changed)
}

// run saves tables as they come, until ctx ends; what waits then is still saved.
func (t *tables) run(ctx context.Context) error {
	for {
		select {
		case s := <-t.save:
			t.write(s)
		case <-ctx.Done():
			select {
			case s := <-t.save:
				t.write(s)
			default:
			}
			return nil
		}
		select {
		case <-time.After(saveEvery):
		case <-ctx.Done():
		}
	}
}

func (t *tables) write(s savedTable) {
	if err := t.file.save(s); err != nil {
		t.log.Error("name table is not saved; after a restart mesh names wait for istiod", "cause", err)
	}
}

// snapshot describes the table in use.
func (t *tables) snapshot() (source, version string, names int, received time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.source, t.inUse.version, t.built.Len(), t.inUse.received
}
