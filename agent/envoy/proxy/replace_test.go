package proxy

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"wingman/agent/envoy/envoytest"
)

// programs are copies of this test's program: files that can be told from each other.
type programs []string

func copyProgram(t *testing.T) (p programs) {
	t.Helper()
	content, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for i := range 3 {
		p = append(p, filepath.Join(dir, strconv.Itoa(i)))
		if err := os.WriteFile(p[i], content, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// lay puts one of the files into a station's place for its program, as a package manager does, and gives it habits.
func (p programs) lay(st *station, which int, habits string) (path string) {
	st.t.Helper()
	path = filepath.Join(st.dir, "envoy")
	if err := os.WriteFile(path+habitsSuffix, []byte(habits), 0o644); err != nil {
		st.t.Fatal(err)
	}
	if err := os.Link(p[which], path+".new"); err != nil {
		st.t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		st.t.Fatal(err)
	}
	return path
}

// start runs a station with the first of the files.
func (p programs) start(t *testing.T) (st *station, path string, s State) {
	t.Helper()
	st = newStation(t)
	path = p.lay(st, 0, "")
	st.cfg.Program = func() (string, error) {
		_, err := os.Stat(path)
		return path, err
	}
	st.run()
	return st, path, st.await("live, with a version", func(s State) bool { return s.Phase == PhaseLive && s.Version == "1.40.0" })
}

func TestReplacing(t *testing.T) {
	envoytest.Network(t)
	tests := []struct {
		name    string
		habits  string // of the file that is laid there; "-": none is
		running string // "own" stands for the program's path
		another bool   // another Envoy runs afterwards
		said    string // part of the answer
		refused string // part of the refusal
	}{
		{"a file that was laid there", "", "own", true, "replaced: Envoy 1.40.0 runs as process ", ""},
		{"the same file, by whoever asks for it", "-", "", true, "replaced: ", ""},
		{"the same file, for a package", "-", "own", false, "from that file already", ""},
		{"another program's package", "", "/usr/bin/other", false, "it is left alone", ""},
		{"a program that does not run here", "no-version", "own", false, "", "--version: exit status 132; it said: error: no such instruction"},
		{"one that does not take the bootstrap file", "invalid", "own", false, "", "--mode validate: exit status 1; it said: critical main unknown field"},
		{"one that ends before it serves", "exits", "own", true, "", "the one from before is started again: exit status 1; it said: error initializing configuration"},
		{"one that refuses what the one before took", "refuses", "own", true, "", "the one from before is started again: it refuses configuration of istiod: it has 1 listeners, the one from before had 3"},
	}
	files := copyProgram(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			st, path, before := files.start(t)
			if tt.habits != "-" {
				files.lay(st, 1, tt.habits)
				st.await("a word about it", func(s State) bool { return strings.Contains(s.Outdated, "another file lies at "+path) })
			}
			running := tt.running
			if running == "own" {
				running = path
			}
			said, err := Replace(t.Context(), st.cfg.RunDir, running)
			if tt.refused == "" && (err != nil || !strings.Contains(said, tt.said)) || tt.refused != "" && (err == nil || !strings.Contains(err.Error(), tt.refused)) {
				t.Errorf("said %q, %v; want %q, %q", said, err, tt.said, tt.refused)
			}
			now := st.await("live, and what became of it", func(s State) bool {
				return s.Phase == PhaseLive && (s.PID != before.PID) == tt.another && (s.Refused != "") == (tt.refused != "") &&
					(s.Starts == 3) == (tt.another && tt.refused != "") // there and back
			})
			if tt.refused != "" {
				if !strings.Contains(now.Refused, tt.refused) {
					t.Errorf("the state says %q", now.Refused)
				}
				st.note() // the one from before, or its program again, answers
				// The way out: a good one.
				files.lay(st, 2, "")
				if said, err := Replace(t.Context(), st.cfg.RunDir, path); err != nil {
					t.Errorf("a good one afterwards: %q, %v", said, err)
				}
				st.await("nothing to complain of", func(s State) bool { return s.Phase == PhaseLive && s.Refused == "" && s.Outdated == "" })
			}
		})
	}
}

// A crash of the one that was taken back to is followed by the same program, which does.
func TestTheWayBackLasts(t *testing.T) {
	envoytest.Network(t)
	files := copyProgram(t)
	st, path, _ := files.start(t)
	files.lay(st, 1, "exits")
	if _, err := Replace(t.Context(), st.cfg.RunDir, path); err == nil {
		t.Fatal("replaced by one that ends")
	}
	s := st.await("live again", func(s State) bool { return s.Phase == PhaseLive && s.Refused != "" })
	st.cue("crash")
	if now := st.await("live once more", func(now State) bool { return now.Phase == PhaseLive && now.PID != s.PID }); now.Refused == "" || now.Outdated == "" {
		t.Errorf("%+v: want it to say that what lies there does not run", now)
	}
}

// A program that is removed while it runs is said, and no reason to end it.
func TestARemovedProgramIsSaid(t *testing.T) {
	envoytest.Network(t)
	st, path, before := copyProgram(t).start(t)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if now := st.await("a word about it", func(s State) bool { return strings.Contains(s.Outdated, path+" is gone") }); now.PID != before.PID || now.Phase != PhaseLive {
		t.Errorf("%+v became %+v", before, now)
	}
	if said, err := Replace(t.Context(), st.cfg.RunDir, path); err == nil {
		t.Errorf("replaced by nothing: %s", said)
	}
	if now := st.s.State(); now.PID != before.PID {
		t.Errorf("%+v became %+v", before, now)
	}
}

func TestWithoutASupervisorNothingIsReplaced(t *testing.T) {
	if said, err := Replace(t.Context(), t.TempDir(), ""); err == nil {
		t.Errorf("said %q", said)
	}
}
