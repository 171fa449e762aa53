package identity

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"wingman/internal/plainfile"
)

// machineDir is root's, on a tmpfs: what the agent is told of this machine by the step of its unit that is root.
const machineDir = "/run/wingman-machine"

// MakeMachineDir makes that folder below root, which others may enter.
func MakeMachineDir(root string) error {
	dir := filepath.Join(root, machineDir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.Chmod(dir, 0o755) // whatever the umask
}

// A Machine tells one machine from its copies. Each part is a hash of what it names that is this program's alone, as systemd's sd_id128_get_machine_app_specific does
// it: machine ids are not for others to read. "" means not known.
type Machine struct {
	Product  string `json:"product,omitempty"`   // DMI's product UUID, which root alone may read
	Instance string `json:"instance,omitempty"`  // cloud-init's instance id: a copy of a disk becomes another instance
	ID       string `json:"machineId,omitempty"` // /etc/machine-id
}

const (
	productUUID = "/sys/class/dmi/id/product_uuid" // 0400: root's
	productHash = machineDir + "/product"          // ours of it, for everybody
)

// ReadMachine is the machine whose files lie below root. Who is not root knows the product by what LeaveProduct left.
func ReadMachine(root string) Machine {
	m := Machine{
		Product:  hashOf(root, productUUID),
		Instance: hashOf(root, "/var/lib/cloud/data/instance-id"),
		ID:       hashOf(root, "/etc/machine-id"),
	}
	if data, _, err := plainfile.Read(filepath.Join(root, productHash), 4<<10); err == nil && m.Product == "" {
		if h, err := hex.DecodeString(strings.TrimSpace(string(data))); err == nil && len(h) == hashSize {
			m.Product = hex.EncodeToString(h)
		}
	}
	return m
}

// LeaveProduct leaves, as root, the hash of the product UUID for ReadMachine. A machine that has none loses nothing.
func LeaveProduct(root string) error {
	path, sum := filepath.Join(root, productHash), hashOf(root, productUUID)
	if sum == "" {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	if err := MakeMachineDir(root); err != nil {
		return err
	}
	if err := os.WriteFile(path, []byte(sum+"\n"), 0o644); err != nil {
		return err
	}
	return os.Chmod(path, 0o444) // whatever the umask
}

const hashSize = 16

// hashOf is this program's hash of what a file says, "" when it says nothing or cannot be read.
func hashOf(root, path string) string {
	data, _, err := plainfile.Read(filepath.Join(root, path), 4<<10)
	text := strings.TrimSpace(string(data))
	if err != nil || text == "" || text == "uninitialized" {
		return ""
	}
	h := hmac.New(sha256.New, []byte(text))
	h.Write([]byte("wingman: origin of an identity"))
	return hex.EncodeToString(h.Sum(nil)[:hashSize])
}

// isOther reports whether now is another machine than before: the first part that is known of both decides, so that a machine id that was made anew is no other
// machine where something better is known.
func (before Machine) isOther(now Machine) bool {
	for _, part := range [][2]string{{before.Product, now.Product}, {before.Instance, now.Instance}, {before.ID, now.ID}} {
		if part[0] != "" && part[1] != "" {
			return part[0] != part[1]
		}
	}
	return false
}

// checkOrigin compares where the generation g was made with where we are. A copy stays in use: it may be this machine after all, with a new id. But it gets a key
// of its own at once, and counts as a copy until a token proves that somebody gave this machine an identity.
func (r *runner) checkOrigin(g *generation) {
	if !g.origin.isOther(r.cfg.Machine) {
		r.origin(r.cfg.Machine)
		return
	}
	r.store.origin, r.copied, r.wantOwn = g.origin, true, true
	r.said.Copied = "this identity was made on another machine: the disk is a copy of a machine that had joined, or this one has a new machine id. Two machines may be one " +
		"in the mesh; leave " + r.store.dir + " out of images, and " + r.scene(0).mend()
	r.cfg.Log.Warn("identity is a copy of another machine's: a fresh token makes it this machine's own", "generation", g.number, "store", r.store.dir)
}

// origin makes m the machine that the identity belongs to.
func (r *runner) origin(m Machine) {
	if r.copied {
		r.cfg.Log.Info("identity is this machine's own now")
	}
	r.store.origin, r.copied, r.said.Copied = m, false, ""
}
