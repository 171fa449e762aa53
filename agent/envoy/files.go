package envoy

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"

	"wingman/bootstrap"
)

// Where agent, supervisor and Envoy meet, below the agent's run folder.
const (
	bootstrapDir  = "envoy"
	bootstrapFile = "bootstrap.json"
	xdsSocket     = "xds.sock"
	sdsSocket     = "sds.sock"
)

// BootstrapPath is where the agent puts the bootstrap file.
func BootstrapPath(c *bootstrap.Config) string {
	return filepath.Join(c.Paths.RunDir, bootstrapDir, bootstrapFile)
}

// XDSSocket is where the agent serves configuration to Envoy.
func XDSSocket(c *bootstrap.Config) string { return filepath.Join(c.Paths.RunDir, xdsSocket) }

// SDSSocket is where the agent serves certificates to Envoy.
func SDSSocket(c *bootstrap.Config) string { return filepath.Join(c.Paths.RunDir, sdsSocket) }

// Owner is the uid of Envoy's user, whose the sockets and the file have to be where the agent is root; zero: not known.
func Owner(c *bootstrap.Config) uint32 {
	if c.Capture.UserKnown {
		return c.Capture.ProxyUID
	}
	return 0
}

// InputOf is the input for one machine: its settings, its node with Envoy, and its addresses (bootstrap.InstanceAddrs).
func InputOf(c *bootstrap.Config, node bootstrap.Node, addrs []netip.Addr) Input {
	return Input{
		Node:           node,
		Addrs:          addrs,
		XDSSocket:      XDSSocket(c),
		SDSSocket:      SDSSocket(c),
		Delta:          c.XDS.Delta,
		AdminPort:      c.Envoy.AdminPort,
		StatusPort:     c.Status.Port,
		ReadinessPort:  c.Status.ReadinessPort,
		PrometheusPort: c.Status.PrometheusPort,
	}
}

// Write puts a bootstrap file at path, readable by its owner alone: whole or not at all, and only when it says something new. The owner is the
// user of this process or, where that is root, Envoy's.
func Write(path string, f File, envoy uint32) (changed bool, err error) {
	old, err := os.ReadFile(path)
	if err == nil && bytes.Equal(old, f.JSON) {
		return false, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("envoy's bootstrap file: %w", err)
	}
	if err := replace(path, f.JSON, envoy); err != nil {
		return false, fmt.Errorf("envoy's bootstrap file: %w", err)
	}
	return true, nil
}

// replace writes a file beside path and renames it. Nothing is synced: the folder is gone after a crash of the machine.
func replace(path string, content []byte, owner uint32) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return err
	}
	_, err = tmp.Write(content)
	if os.Geteuid() == 0 && owner != 0 {
		err = errors.Join(err, tmp.Chown(int(owner), -1))
	}
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	return nil
}
