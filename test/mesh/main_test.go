package mesh_test

import (
	"context"
	"os"
	"testing"
	"time"

	"wingman/test/mesh"
	"wingman/test/mesh/binaries"
	"wingman/test/mesh/machine"
)

func TestMain(m *testing.M) {
	machine.Main(m, func(string) error {
		_, err := binaries.Get(context.Background(), os.Stderr)
		return err
	})
}

// startTimeout is for a control plane on a machine that does other things too; alone it takes five seconds.
const startTimeout = 2 * time.Minute

// start brings up a control plane for one test. Ports are the well-known ones: one at a time.
func start(t *testing.T, o mesh.Options) *mesh.Mesh {
	t.Helper()
	machine.Require(t)
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	o.Binaries, o.Dir = binariesOf(t), machine.Scratch(t)
	m, err := mesh.Start(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// binariesOf finds the binaries, which TestMain has built.
func binariesOf(t *testing.T) binaries.Set {
	t.Helper()
	set, err := binaries.Get(t.Context(), os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	return set
}
