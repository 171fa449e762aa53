package testbed

import (
	"io"
	"os"
	"testing"
)

// envoyProgram is where Istio's package has Envoy.
const envoyProgram = "/usr/local/bin/envoy"

// InstallEnvoy puts Envoy's program on a machine that was made without, as a package does: it is there whole, all at once.
func (v *VM) InstallEnvoy(t testing.TB) {
	t.Helper()
	from, err := os.Open(v.bed.set.Envoy)
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	err = v.Visit(func() error {
		to, err := os.OpenFile(envoyProgram+".new", os.O_CREATE|os.O_WRONLY, 0o755)
		if err != nil {
			return err
		}
		if _, err := io.Copy(to, from); err != nil {
			to.Close()
			return err
		}
		if err := to.Close(); err != nil {
			return err
		}
		return os.Rename(envoyProgram+".new", envoyProgram)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// RemoveEnvoy takes away what InstallEnvoy put there. An Envoy that runs goes on.
func (v *VM) RemoveEnvoy(t testing.TB) {
	t.Helper()
	if err := v.Visit(func() error { return os.Remove(envoyProgram) }); err != nil {
		t.Fatal(err)
	}
}
