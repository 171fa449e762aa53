package packages

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What the script does after the files are gone, in files of another system (DPKG_ROOT), where nothing runs: what is the agent's, or only has a sense with it,
// goes by a purge and not before; what is somebody's stays.
func TestAfterARemovalAndAPurge(t *testing.T) {
	for _, tc := range []struct {
		name  string
		event string
		tree  string // a path a line; "-> TARGET" makes a link, "= TEXT" a file, a final slash a folder
		want  string // what is left, folders only where they are empty
	}{
		{"a removal keeps settings, identity, state and what the owner added", "remove", `
			etc/wingman/wingman.yaml = edited
			etc/systemd/system/wingman.service.d/own.conf = own
			etc/certs/key.pem -> ../../var/lib/wingman/identity/key.pem
			etc/certs/key.pem.before-wingman = before
			etc/credstore.encrypted/wingman-seal-key = sealed
			var/lib/wingman/identity/key.pem = key
			var/lib/wingman-adopt/record.json = {"step":"done"}
			etc/systemd/system/istio.service -> /dev/null
			run/wingman/status = s`, `
			etc/certs/key.pem -> ../../var/lib/wingman/identity/key.pem
			etc/certs/key.pem.before-wingman = before
			etc/credstore.encrypted/wingman-seal-key = sealed
			etc/systemd/system/istio.service -> /dev/null
			etc/systemd/system/wingman.service.d/own.conf = own
			etc/wingman/wingman.yaml = edited
			var/lib/wingman/identity/key.pem = key
			var/lib/wingman-adopt/record.json = {"step":"done"}`},
		{"notes of /run go with a removal", "remove", `
			run/wingman/status = s
			run/wingman-proxy/state.json = s
			run/wingman-guard/ends = s
			run/wingman-machine/id = s
			run/wingman-removal = s
			run/other = o`, `
			run/other = o`},
		{"an .rpm's removal keeps all but notes and a folder of certificates that is empty", "0", `
			etc/certs/
			etc/systemd/system/wingman.service.d/own.conf = own
			run/wingman/status = s
			var/lib/wingman/joined.json = j`, `
			etc/systemd/system/wingman.service.d/own.conf = own
			var/lib/wingman/joined.json = j`},
		{"an .rpm's upgrade touches nothing", "1", `
			run/wingman/status = s
			var/lib/wingman/joined.json = j`, `
			run/wingman/status = s
			var/lib/wingman/joined.json = j`},
		{"an upgrade touches nothing", "upgrade", `
			run/wingman/status = s
			var/lib/wingman/joined.json = j`, `
			run/wingman/status = s
			var/lib/wingman/joined.json = j`},
		{"links, masks and drop-ins of units go with a purge, those of others stay", "purge", `
			etc/systemd/system/own.target.wants/wingman.service -> /usr/lib/systemd/system/wingman.service
			etc/systemd/system/own.target.wants/wingman.path -> /usr/lib/systemd/system/wingman.path
			etc/systemd/system/own.target.wants/app.service -> /usr/lib/systemd/system/app.service
			etc/systemd/system/wingman-proxy.service -> /dev/null
			etc/systemd/system/wingman-rules.service.d/own.conf = own
			etc/systemd/system/istio-mesh-ready.target.d/own.conf = own
			etc/systemd/system/wingman-mesh-ready.service = the owner's own
			etc/systemd/system/app.service -> /dev/null
			etc/systemd/system/app.service.d/own.conf = own`, `
			etc/systemd/system/app.service -> /dev/null
			etc/systemd/system/app.service.d/own.conf = own
			etc/systemd/system/own.target.wants/app.service -> /usr/lib/systemd/system/app.service
			etc/systemd/system/wingman-mesh-ready.service = the owner's own`},
		{"identity goes, and what stood in its places comes back", "purge", `
			var/lib/wingman/identity/key.pem = key
			var/lib/wingman/table.json = names
			etc/certs/key.pem -> ../../var/lib/wingman/identity/current/key.pem
			etc/certs/key.pem.before-wingman = the key before
			etc/certs/cert-chain.pem -> /var/lib/wingman/identity/current/cert-chain.pem
			etc/certs/root-cert.pem -> /etc/ssl/root.pem
			etc/credstore.encrypted/wingman-seal-key = sealed
			etc/credstore.encrypted/other = other
			etc/wingman/`, `
			etc/certs/key.pem = the key before
			etc/certs/root-cert.pem -> /etc/ssl/root.pem
			etc/credstore.encrypted/other = other`},
		{"copies for groups go, and somebody's folders stay", "purge", `
			etc/certs/groups/app/current -> 7
			etc/certs/groups/app/key.pem -> current/key.pem
			etc/certs/groups/app/7/key.pem = key
			etc/certs/groups/theirs/current -> releases/1
			etc/certs/groups/theirs/key.pem = key
			etc/certs/groups/prepared/`, `
			etc/certs/groups/theirs/current -> releases/1
			etc/certs/groups/theirs/key.pem = key`},
		{"links of the agent's user lead root nowhere", "purge", `
			etc/certs/groups/app -> ../../../srv/app
			srv/app/current -> 7
			srv/app/key.pem = key`, `
			etc/certs/groups/app -> ../../../srv/app
			srv/app/current -> 7
			srv/app/key.pem = key`},
		{"nor does one in the place of the folder of copies", "purge", `
			etc/certs/groups -> ../../srv
			srv/app/current -> 7
			srv/app/key.pem = key`, `
			etc/certs/groups -> ../../srv
			srv/app/current -> 7
			srv/app/key.pem = key`},
		{"folders that hold nothing go", "purge", `
			etc/certs/groups/app/
			etc/wingman/`, ``},
		{"an adopt that was not undone: its mask goes, istioctl's files stay", "purge", `
			var/lib/wingman-adopt/record.json = {"step":"done"}
			etc/systemd/system/istio.service -> /dev/null
			var/lib/istio/envoy/cluster.env = env`, `
			var/lib/istio/envoy/cluster.env = env`},
		{"a mask of istio.service that no adopt made stays", "purge", `
			etc/systemd/system/istio.service -> /dev/null`, `
			etc/systemd/system/istio.service -> /dev/null`},
		{"settings that are somebody's stay with their folder", "purge", `
			etc/wingman/notes = mine`, `
			etc/wingman/notes = mine`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			root := t.TempDir()
			plant(t, root, tc.tree)
			cmd := exec.CommandContext(t.Context(), "sh", "../../packaging/scripts/postremove.sh", tc.event)
			cmd.Env = append(os.Environ(), "DPKG_ROOT="+root)
			output(t, cmd)
			if diff := cmp.Diff(lines(tc.want), harvest(t, root)); diff != "" {
				t.Errorf("left after %s (-want +got):\n%s", tc.event, diff)
			}
		})
	}
}

// lines are those of a text, without what they begin and end with, and without empty ones.
func lines(text string) (all []string) {
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" {
			all = append(all, line)
		}
	}
	return all
}

// plant makes the paths of a tree below a folder.
func plant(t *testing.T, root, tree string) {
	t.Helper()
	for _, line := range lines(tree) {
		name, target, link := strings.Cut(line, " -> ")
		name, text, _ := strings.Cut(name, " = ")
		file := filepath.Join(root, name)
		dir := filepath.Dir(file)
		if strings.HasSuffix(name, "/") {
			dir = file
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		switch {
		case dir == file:
		case link:
			if err := os.Symlink(target, file); err != nil {
				t.Fatal(err)
			}
		default:
			writeFile(t, file, text, 0o644)
		}
	}
}

// harvest lists the links and files below a folder as plant reads them, and empty folders that could be the package's.
func harvest(t *testing.T, root string) (all []string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		switch {
		case d.Type() == fs.ModeSymlink:
			target, err := os.Readlink(path)
			all = append(all, name+" -> "+target)
			return err
		case d.IsDir():
			left, err := os.ReadDir(path)
			if len(left) == 0 && (strings.Contains(name, "certs") || strings.Contains(filepath.Base(name), "wingman")) {
				all = append(all, name+"/")
			}
			return err
		}
		content, err := os.ReadFile(path)
		if !strings.HasPrefix(name, "var/lib/systemd/deb-systemd-helper") {
			all = append(all, name+" = "+string(content))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}
