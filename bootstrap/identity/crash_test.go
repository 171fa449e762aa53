package identity

import (
	"fmt"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// TestAStopAtAnyStepLeavesAPairThatMatches is promise 5: whatever stops the store, and wherever, it opens again, with the former or the
// new certificate, and its key and chain belong together.
func TestAStopAtAnyStepLeavesAPairThatMatches(t *testing.T) {
	k := newKeyring(t)
	ends := []struct {
		name string
		disk faultyDisk
		cut  func(*faultyDisk)
	}{
		{"the process is killed", faultyDisk{failure: errCrash}, func(*faultyDisk) {}},
		{"the process is killed in the middle of a write", faultyDisk{failure: errCrash, torn: true}, func(*faultyDisk) {}},
		{"the power is cut: names that were not synced are gone", faultyDisk{failure: errCrash}, (*faultyDisk).cutNames},
		{"the power is cut: bytes that were not synced are gone", faultyDisk{failure: errCrash, torn: true}, (*faultyDisk).cutBytes},
		{"the disk is full for a moment", faultyDisk{failure: syscall.ENOSPC, once: true, torn: true}, func(*faultyDisk) {}},
		{"the disk is full", faultyDisk{failure: syscall.ENOSPC, torn: true}, func(*faultyDisk) {}},
		{"the disk became read-only", faultyDisk{failure: syscall.EROFS}, func(*faultyDisk) {}},
	}
	settled := time.Now().Add(24 * time.Hour) // the output folder's files were written a while ago
	old, next, last, pilot := []*Certificate{k.issue(), k.issue()}, k.issue(), k.issue(), k.issue()
	for _, end := range ends {
		for _, generations := range []int{0, 2} {
			t.Run(fmt.Sprintf("%s, %d generations before", end.name, generations), func(t *testing.T) {
				t.Parallel()
				for step := 0; ; step++ {
					dir := filepath.Join(t.TempDir(), storeName)
					out := output{dir: filepath.Join(t.TempDir(), "certs"), store: dir}
					// Another agent's pair stands in the output folder.
					putFile(t, filepath.Join(out.dir, keyFile), string(pilot.KeyPEM()))
					putFile(t, filepath.Join(out.dir, chainFile), string(pilot.ChainPEM()))
					before := ""
					for _, c := range old[:generations] {
						mustSave(t, newStore(dir, unsyncedDisk), c, k.roots())
						before = c.Serial
					}
					faulty := end.disk
					faulty.t, faulty.failAt = t, step
					faulty.after = func(string) { pairOnDisk(t, filepath.Join(dir, currentLink)); pairOnDisk(t, out.dir) }
					s := newStore(dir, faulty.disk())
					_, loadErr := s.load(testID, testNow)
					saveErr := s.save(next, k.roots())
					out.disk = s.disk
					outErr := out.ensure("/elsewhere/root-cert.pem", nil, settled)
					if faulty.steps <= step {
						if loadErr != nil || saveErr != nil || outErr != nil {
							t.Fatalf("nothing was stopped, but: %v, %v, %v", loadErr, saveErr, outErr)
						}
						// Every step has had its turn. What was saved without an error survives whatever comes now.
						end.cut(&faulty)
						if g := mustLoad(t, dir); g == nil || g.cert.Serial != next.Serial || pairOnDisk(t, filepath.Join(dir, currentLink)) != next.Serial {
							t.Errorf("the end came after the save, and %v is on disk", g)
						}
						return
					}
					end.cut(&faulty)

					what := fmt.Sprintf("stopped at step %d: ", step)
					got := pairOnDisk(t, filepath.Join(dir, currentLink))
					pairOnDisk(t, out.dir)
					if got != before && got != next.Serial {
						t.Errorf("%s%q is on disk, neither the former nor the new one", what, got)
					}
					g := mustLoad(t, dir)
					switch {
					case g == nil && before != "":
						t.Errorf("%sthe certificate is lost", what)
					case g != nil && g.cert.Serial != before && g.cert.Serial != next.Serial:
						t.Errorf("%sloaded %s, neither the former nor the new one", what, g.cert.Serial)
					}
					if left, _ := filepath.Glob(filepath.Join(dir, "corrupt", "*")); len(left) > 0 {
						t.Errorf("%sa generation was put aside as corrupt, but only whole ones may get a number: %v", what, left)
					}
					if left, _ := filepath.Glob(filepath.Join(dir, generationsDir, "*-*")); len(left) > 0 {
						t.Errorf("%sleftovers: %v", what, left)
					}
					// It works again.
					after := newStore(dir, unsyncedDisk)
					if _, err := after.load(testID, testNow); err != nil {
						t.Fatal(err)
					}
					mustSave(t, after, last, k.roots())
					out.disk = unsyncedDisk
					if err := out.ensure("/elsewhere/root-cert.pem", nil, settled); err != nil {
						t.Errorf("%soutput: %v", what, err)
					}
					if got := pairOnDisk(t, out.dir); got != last.Serial {
						t.Errorf("%safter another save the output holds %s, want %s", what, got, last.Serial)
					}
				}
			})
		}
	}
}
