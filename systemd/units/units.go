// Package units holds what systemd is given: unit files, users, folders, and the guard that runs when the agent dies.
//
//	wingman.service             wingman run; keeps DNS sockets in systemd while it restarts
//	wingman.path                starts it on a machine that was never told of a mesh, once the files for that come
//	wingman-cleanup.service     up as long as wingman.service is; its stop takes out the rules that the agent's has left
//	wingman-rules.service       at boot, before the network: traffic rules of a machine whose traffic goes through Envoy
//	wingman-proxy.service       wingman proxy; wanted by wingman.service alone, and gone when that is stopped
//	istio-mesh-ready.target     applications that need the mesh order themselves after it …
//	wingman-mesh-ready.service  … and this waits for it
//	tproxy.conf                 for wingman-proxy.service, where an operator wants TPROXY
//	crash-guard                 ExecStopPost of wingman.service, ExecStop of wingman-cleanup.service
//	wingman.rules               for polkit: the agent may tell systemd-resolved of the mesh's names (dns.mode: resolved) …
//	wingman-dns.network         … and systemd-networkd leaves the interface alone that it uses for that …
//	wingman-dns.conf            … as does NetworkManager
//
// It owns their text and where each belongs; installing is packaging's. What the directives really do on systemd 252 was
// tried on booted machines, and test/vm tries it again.
package units

import (
	"embed"
	"io/fs"
)

//go:embed *.service *.path *.target *.network *.conf wingman.sysusers wingman.tmpfiles wingman.rules crash-guard
var files embed.FS

// A File is one file of a package.
type File struct {
	Path    string // on the machine
	Mode    fs.FileMode
	Content string
}

// Files returns everything that belongs onto a machine, owned by root.
func Files() []File {
	var all []File
	for _, f := range []struct {
		name, folder, to string
		mode             fs.FileMode
	}{
		{"wingman.service", "/usr/lib/systemd/system", "wingman.service", 0o644},
		{"wingman.path", "/usr/lib/systemd/system", "wingman.path", 0o644},
		{"wingman-rules.service", "/usr/lib/systemd/system", "wingman-rules.service", 0o644},
		{"wingman-proxy.service", "/usr/lib/systemd/system", "wingman-proxy.service", 0o644},
		{"wingman-cleanup.service", "/usr/lib/systemd/system", "wingman-cleanup.service", 0o644},
		{"wingman-mesh-ready.service", "/usr/lib/systemd/system", "wingman-mesh-ready.service", 0o644},
		{"istio-mesh-ready.target", "/usr/lib/systemd/system", "istio-mesh-ready.target", 0o644},
		{"wingman.sysusers", "/usr/lib/sysusers.d", "wingman.conf", 0o644},
		{"wingman.tmpfiles", "/usr/lib/tmpfiles.d", "wingman.conf", 0o644},
		{"wingman.rules", "/usr/share/polkit-1/rules.d", "50-wingman.rules", 0o644},
		{"wingman-dns.network", "/usr/lib/systemd/network", "00-wingman-dns.network", 0o644},
		{"wingman-dns.conf", "/usr/lib/NetworkManager/conf.d", "wingman-dns.conf", 0o644},
		{"tproxy.conf", "/usr/lib/wingman", "tproxy.conf", 0o644},
		{"crash-guard", "/usr/lib/wingman", "crash-guard", 0o755},
	} {
		content, err := files.ReadFile(f.name)
		if err != nil {
			panic(err) // the list above names a file that go:embed did not find
		}
		all = append(all, File{Path: f.folder + "/" + f.to, Mode: f.mode, Content: string(content)})
	}
	return all
}
