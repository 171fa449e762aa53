package identity

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
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
	Product  string `json:"product,omitempty"`   // DMI's product UUID; root may read it, others most often not
	Instance string `json:"instance,omitempty"`  // cloud-init's instance id: a copy of a disk becomes another instance
	ID       string `json:"machineId,omitempty"` // /etc/machine-id
}

// ReadMachine is the machine whose files lie below root.
func ReadMachine(root string) Machine {
	read := func(path string) string {
		data, _, err := readRegular(filepath.Join(root, path), 4<<10)
		text := strings.TrimSpace(string(data))
		if err != nil || text == "" || text == "uninitialized" {
			return ""
		}
		h := hmac.New(sha256.New, []byte(text))
		h.Write([]byte("wingman: origin of an identity"))
		return hex.EncodeToString(h.Sum(nil)[:16])
	}
	return Machine{
		Product:  read("/sys/class/dmi/id/product_uuid"),
		Instance: read("/var/lib/cloud/data/instance-id"),
		ID:       read("/etc/machine-id"),
	}
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
