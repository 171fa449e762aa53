package vm

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// Versions of the package that the tests install over each other.
const (
	oldVersion = "1.0.0"
	newVersion = "1.1.0~rc.1" // after 1.0.0, and spelled as the build script does for a tag v1.1.0-rc.1
)

// nfpm as packaging/build.sh names it.
const nfpm = "github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.45.2"

// built are the packages of both versions, by kind ("deb", "rpm") and version, made once for all tests. They differ in their settings file too, as
// they would in real life: only then is there something to keep.
var built = sync.OnceValues(func() (map[string]map[string]string, error) {
	var err error
	if builtIn, err = os.MkdirTemp("", "packages-"); err != nil {
		return nil, err
	}
	files := map[string]map[string]string{"deb": {}, "rpm": {}}
	for _, version := range []string{oldVersion, newVersion} {
		dir := filepath.Join(builtIn, version)
		env := append(os.Environ(), "VERSION="+version, "DIST="+dir)
		cmds := []*exec.Cmd{exec.Command("sh", "packaging/build.sh", runtime.GOARCH)}
		if version == newVersion {
			cmds = append(cmds, exec.Command("sh", "-ec", `printf '\n# A line that version 1.0.0 has not.\n' >>"$DIST/shared/wingman.yaml"`))
			for kind := range files {
				cmds = append(cmds, exec.Command("go", "run", nfpm, "package", "--config", filepath.Join(dir, runtime.GOARCH, "nfpm.yaml"), "--packager", kind, "--target", dir))
			}
		}
		for _, cmd := range cmds {
			cmd.Dir, cmd.Env = "../..", env
			if out, err := cmd.CombinedOutput(); err != nil {
				return nil, fmt.Errorf("%s: %w\n%s", cmd, err, out)
			}
		}
		for kind, byVersion := range files {
			found, err := filepath.Glob(filepath.Join(dir, "*."+kind))
			if err != nil || len(found) != 1 {
				return nil, fmt.Errorf("packaging/build.sh left %q of kind %s, want one file (%v)", found, kind, err)
			}
			byVersion[version] = found[0]
		}
	}
	return files, nil
})

// builtIn is where built put them; TestMain removes it.
var builtIn string

// buildPackages returns the packages of one kind, by version.
func buildPackages(t *testing.T, kind string) map[string]string {
	t.Helper()
	Require(t)
	files, err := built()
	if err != nil {
		t.Fatal(err)
	}
	return files[kind]
}

// install hands a .deb to dpkg, as an unattended upgrade does: it keeps settings that were edited.
func (m *Machine) install(file string) {
	m.t.Helper()
	m.CopyIn(file, "/root/wingman.deb", 0o644)
	m.Run("dpkg", "--force-confold", "--install", "/root/wingman.deb")
}

// A packager is the tool by which packages are installed, and what an owner does otherwise where it is at home. Each line is sh for a machine, with the
// package's name as $1 where nothing else is said.
type packager struct {
	kind    string
	prepare string // makes Debian's machine one where the tool is at home
	install string // with files of packages as arguments; also upgrades and downgrades
	remove  string
	purge   string // empty: there is no such thing
	list    string // prints the package's files
	state   string // prints "ii 1.0.0" when version 1.0.0 is installed well, other letters when it is not, nothing when it is not there
	verify  string // prints which files are not as they were installed
	kept    string // what becomes of an edited settings file by a removal
	script  string // runs what it runs at the end of an upgrade
	finish  string // takes up an upgrade that was broken off there
	leaves  string // what systemctl says of units that were enabled and are removed
	resume  string // after a removal and an installation: makes it a member again, without arguments
}

var dpkg = packager{
	kind:    "deb",
	install: `dpkg --force-confold --install "$@"`,
	remove:  `dpkg --remove "$1"`,
	purge:   `dpkg --purge "$1"`,
	list:    `dpkg --listfiles "$1"`,
	state:   `dpkg-query --show --showformat '${db:Status-Abbrev}${Version}' "$1" 2>/dev/null | sed 's/-1$//; /^un/d'`,
	verify:  `dpkg --verify "$1"; dpkg --audit`,
	kept:    settingsFile,
	script:  `"/var/lib/dpkg/info/$1.postinst" configure 0`,
	finish:  "dpkg --configure --pending",
	leaves:  "masked",
	resume:  "systemctl start wingman.service",
}

var rpm = packager{
	kind:    "rpm",
	prepare: "rm /usr/bin/deb-systemd-helper /usr/bin/deb-systemd-invoke; rpm --initdb; mkdir -p /etc/systemd/system-preset; cd /usr/share && mkdir -p " + strings.Join(rpmFolders, " "),
	install: `rpm --upgrade --oldpackage --nodeps "$@"`,
	remove:  `rpm --erase --nodeps "$1"`,
	list:    `rpm --query --list "$1"`,
	state:   `rpm --query --queryformat 'ii %{VERSION}' "$1" | grep -v 'not installed' || :`,
	verify:  `rpm --verify --nodeps "$1" || :`,
	kept:    settingsFile + ".rpmsave",
	script:  posttrans,
	finish:  posttrans,
	resume:  "mv " + settingsFile + ".rpmsave " + settingsFile + "; systemctl enable --quiet --now wingman.service",
}

const posttrans = `rpm --query --queryformat '%{POSTTRANS}' "$1" >/root/posttrans; sh /root/posttrans`

// rpmFolders, below /usr/share, are of the package "filesystem" where rpm is at home.
var rpmFolders = []string{"doc", "licenses", "man/man1", "man/man5", "zsh/site-functions", "fish/vendor_completions.d", "bash-completion/completions"}
