package agent

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"wingman/bootstrap"
)

// A stop of an agent that hands over is no goodbye: rules and entry are the next agent's.
func TestWhoHandsOverDoesNotLeave(t *testing.T) {
	root := t.TempDir()
	a := &Agent{log: slog.New(slog.DiscardHandler), cfg: &bootstrap.Config{Root: root}, opts: Options{Getenv: func(string) string { return "" }}}
	if !a.leaves(false) {
		t.Fatal("without systemd an agent that is stopped does not leave")
	}
	done, err := HandOver(root)
	if err != nil {
		t.Fatal(err)
	}
	if a.leaves(false) {
		t.Error("an agent that hands over leaves")
	}
	if err := done(); err != nil {
		t.Fatal(err)
	}
	if !a.leaves(false) {
		t.Error("after the handover an agent that is stopped does not leave")
	}
	if err := os.WriteFile(filepath.Join(root, handoverFile), []byte("1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if !a.leaves(false) {
		t.Error("after an undo that was killed an agent that is stopped does not leave")
	}
}

// The membership is noted once: what is known of an entry stays.
func TestAMembershipThatIsTakenOverIsNoted(t *testing.T) {
	root := t.TempDir()
	state := filepath.Join(root, "var/lib/wingman")
	if err := os.MkdirAll(state, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := NoteTakenOver(root, TrialReport{NodeID: "a", Envoy: "/usr/bin/envoy"}); err != nil {
		t.Fatal(err)
	}
	j, err := readJoined(state)
	if err != nil || j == nil || j.NodeID != "a" || !j.Served || j.Entry != nil || time.Since(j.At) > time.Minute {
		t.Errorf("noted %+v, %v", j, err)
	}
	if err := NoteTakenOver(root, TrialReport{NodeID: "b"}); err != nil {
		t.Fatal(err)
	}
	if j, _ := readJoined(state); j.NodeID != "a" {
		t.Errorf("noted again: %+v", j)
	}
}
