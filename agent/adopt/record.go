package adopt

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"wingman/agent"
)

// RecordFile says how far an adopt came, or an undo: root's, and there as long as istio.service is not as it was.
const RecordFile = "/" + agent.AdoptRecord

// lockFile is locked by whoever adopts or undoes: each of two at once would take the other's record for that of one that was killed, and go on from there.
const lockFile = "/run/wingman-guard/adopt.lock"

// lock returns at once; the error names the process that holds the lock. It goes with the process.
func lock(path string) (release func(), err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		pid, _ := io.ReadAll(io.LimitReader(f, 32))
		err = fmt.Errorf("another wingman adopt is at work on this machine (pid %s): let it come to its end", strings.TrimSpace(string(pid)))
	} else if err == nil {
		err = f.Truncate(0)
	}
	if err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() { f.Close() }, nil
}

// A Step is on disk before it begins.
type Step string

// Steps of an adopt, and of an undo, in their order.
const (
	StepTrial Step = "trial" // nothing is changed but the trial's own files
	StepRules Step = "rules" // ours are in, or some of them; pilot-agent serves
	StepStop  Step = "stop"  // istio.service is being stopped and masked, wingman.service enabled
	StepStart Step = "start" // istio.service is stopped; wingman is started
	StepDone  Step = "done"

	StepUndo Step = "undo" // wingman is being stopped, istio.service started
)

// Steps lists all, in the order of an adopt and then of an undo.
var Steps = []Step{StepTrial, StepRules, StepStop, StepStart, StepDone, StepUndo}

func (s Step) valid() bool     { return slices.Contains(Steps, s) }
func (s Step) switching() bool { return s == StepStop || s == StepStart }
func (s Step) undoing() bool   { return s == StepUndo }

// A Record is the content of RecordFile.
type Record struct {
	Step Step      `json:"step"`
	At   time.Time `json:"at"` // of the last change
	// As they were before: whether istio.service was enabled ("enabled", "disabled"), and whether wingman had an identity here: a state folder
	// alone tells nothing, systemd makes it at each attempt to start.
	IstioEnabled string `json:"istioEnabled"`
	IstioActive  bool   `json:"istioActive"`
	HadState     bool   `json:"hadState"`
}

// readRecord returns nil when there is none.
func readRecord(path string) (*Record, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("what an earlier adopt noted: %w", err)
	}
	r, err := parseRecord(b)
	if err != nil {
		return nil, fmt.Errorf("what an earlier adopt noted at %s: %w: wingman adopt --undo does not need it, and istio.service is started by it all the same", path, err)
	}
	return r, nil
}

// Standing says in one sentence how this machine stands between Istio's agent and this one; empty: nothing was taken over, or who asks may not know (it is root's).
func Standing(root string) string {
	r, err := readRecord(filepath.Join(cmp.Or(root, "/"), agent.AdoptRecord))
	switch {
	case errors.Is(err, fs.ErrPermission), r == nil && err == nil:
		return ""
	case err != nil:
		return err.Error()
	case r.Step == StepDone:
		return "since " + r.At.Format(time.RFC3339) + ": istio.service is masked; the way back is wingman adopt --undo"
	case r.Step.undoing():
		return "until " + r.At.Format(time.RFC3339) + ", and the undo did not come to its end: run wingman adopt --undo"
	}
	return fmt.Sprintf("half: step %q began at %s; unless wingman adopt runs now, run it again, or wingman adopt --undo", r.Step, r.At.Format(time.RFC3339))
}

func parseRecord(b []byte) (*Record, error) {
	var r Record
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, err
	}
	if !r.Step.valid() {
		return nil, fmt.Errorf("found step %q, expected one of %q", r.Step, Steps)
	}
	return &r, nil
}

// write puts the record on disk, synced, with its folder.
func (r Record) write(path string) (err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("note the step: %w", err)
	}
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	fresh := path + ".new"
	f, err := os.OpenFile(fresh, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("note the step: %w", err)
	}
	_, err = f.Write(append(b, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(fresh, path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("note the step: %w", err)
	}
	return nil
}

// forget removes the record: nothing of an adopt is left.
func forget(path string) error {
	if err := os.RemoveAll(filepath.Dir(path)); err != nil {
		return fmt.Errorf("forget the adopt: %w", err)
	}
	return nil
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
