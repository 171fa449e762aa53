package adopt

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestARecordIsKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "adopt/record.json")
	if r, err := readRecord(path); r != nil || err != nil {
		t.Errorf("none: %+v, %v", r, err)
	}
	want := Record{Step: StepRules, At: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), IstioEnabled: "enabled", IstioActive: true, HadState: true}
	for range 2 {
		if err := want.write(path); err != nil {
			t.Fatal(err)
		}
	}
	if r, err := readRecord(path); err != nil || *r != want {
		t.Errorf("read %+v, %v; want %+v", r, err, want)
	}
	if info, err := os.Stat(filepath.Dir(path)); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("folder: %v, %v; want mode 0700", info, err)
	}
	if err := os.WriteFile(path, []byte(`{"step":"later"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readRecord(path); err == nil || !strings.Contains(err.Error(), `found step "later"`) {
		t.Errorf("an unknown step: %v", err)
	}
	if err := forget(path); err != nil {
		t.Fatal(err)
	}
	if r, err := readRecord(path); r != nil || err != nil {
		t.Errorf("forgotten: %+v, %v", r, err)
	}
}

func TestStanding(t *testing.T) {
	root := t.TempDir()
	if got := Standing(root); got != "" {
		t.Errorf("never adopted: %q", got)
	}
	for step, want := range map[Step]string{StepDone: "since 2026", StepRules: `step "rules"`, StepStop: "run it again", StepUndo: "the undo did not come to its end"} {
		r := Record{Step: step, At: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
		if err := r.write(filepath.Join(root, RecordFile)); err != nil {
			t.Fatal(err)
		}
		if got := Standing(root); !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q in it", step, got, want)
		}
	}
}

// A record that can be read has a step that adopt knows what to do with, and is the same when it is written again.
func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"step":"rules","at":"2026-01-02T03:04:05Z","istioEnabled":"enabled","istioActive":true}`))
	f.Add([]byte(`{"step":""}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRecord(b)
		if err != nil {
			return
		}
		path := filepath.Join(t.TempDir(), "a/r.json")
		if !r.Step.valid() {
			t.Errorf("step %q was taken", r.Step)
		}
		if err := r.write(path); err != nil {
			return // a year that JSON has not
		}
		again, err := readRecord(path)
		if err != nil || again.Step != r.Step || !again.At.Equal(r.At) || again.HadState != r.HadState {
			t.Errorf("%+v became %+v, %v", r, again, err)
		}
	})
}

// Two adopts at once, or an adopt and the undo of a package's removal: the second is refused and says whose turn it is.
func TestOneAdoptAtATime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notes", "adopt.lock")
	release, err := lock(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lock(path); err == nil || !strings.Contains(err.Error(), "another wingman adopt is at work on this machine (pid "+strconv.Itoa(os.Getpid())+")") {
		t.Errorf("a second one: %v, want a refusal that names this process", err)
	}
	release()
	again, err := lock(path)
	if err != nil {
		t.Fatalf("after the first came to its end: %v", err)
	}
	again()
	for _, start := range sidecars() {
		for _, undo := range []bool{false, true} {
			m := model{box: start, busy: true}
			if undo {
				m.Note.Step = StepStart
			}
			if o := m.play(undo); o.err == nil || !strings.Contains(o.err.Error(), "another is at work\nnothing was changed") || o.effects != 0 {
				t.Errorf("beside another (undo %t): %s, %d effects", undo, o, o.effects)
			}
		}
	}
}
