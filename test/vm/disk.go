package vm

import (
	"os/exec"
	"path/filepath"
	"testing"
)

// Clone makes a machine of a copy of another's disk, as a cloud does of an image: everything that lies there comes along, but for its name and address. Both
// are off.
func (s *Segment) Clone(t testing.TB, of *Machine, name, prefix string, resolvers ...string) *Machine {
	t.Helper()
	if of.power != nil {
		t.Fatalf("machine %s is on: its disk cannot be copied", of.name)
	}
	m := &Machine{t: t, owner: t, segment: s, release: of.release, name: name, root: filepath.Join(t.TempDir(), name)}
	must(t, exec.Command("cp", "--archive", "--reflink=auto", of.root, m.root))
	m.settleAt(prefix, resolvers...)
	return m
}

// Chroot runs a command as root in the files of a machine that is off, where no systemd runs: as images are built. The test ends when it fails.
func (m *Machine) Chroot(argv ...string) {
	m.t.Helper()
	if m.power != nil {
		m.t.Fatalf("machine %s is on: run %q there", m.name, argv)
	}
	cmd := exec.Command("chroot", append([]string{m.root}, argv...)...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive", "LANG=C.UTF-8"}
	must(m.t, cmd)
}
