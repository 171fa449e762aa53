package vm

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// A Release is one of Debian, of which machines are made.
type Release string

// The releases that boot here: systemd 252, and 257.
const (
	Bookworm Release = "bookworm"
	Trixie   Release = "trixie"
)

// packages are what an image holds; prepare is what is done to it, by sh in its root folder. A change of any of them makes a new image.
var packages = map[Release]string{
	Bookworm: "systemd,systemd-sysv,dbus,systemd-resolved,iproute2,iptables,nftables,openssh-server,dnsutils,procps,libpam-systemd,polkitd,libnss-resolve",
	// With rpm: no release of a distribution that uses it can be had where these tests run.
	Trixie: "systemd,systemd-sysv,dbus,systemd-resolved,iproute2,iptables,nftables,openssh-server,bind9-dnsutils,procps,libpam-systemd,polkitd,libnss-resolve,rpm",
}

const prepare = `
rm -rf var/cache/apt/archives/*.deb var/lib/apt/lists/* usr/share/doc usr/share/man usr/share/locale usr/share/info
rm -f etc/machine-id var/lib/dbus/machine-id etc/systemd/system/timers.target.wants/* etc/resolv.conf
: >etc/machine-id
mkdir -p var/log/journal
ln -s ../run/systemd/resolve/stub-resolv.conf etc/resolv.conf
sed -i 's/^hosts:.*/hosts: files dns/' etc/nsswitch.conf
chroot . systemctl enable systemd-networkd.service
chroot . systemctl disable e2scrub_reap.service getty@tty1.service
`

// image returns the tarball of most machines.
func image(t testing.TB) string { t.Helper(); return imageOf(t, Bookworm) }

// imageOf returns the tarball of a release, which is made when it is not there yet.
func imageOf(t testing.TB, release Release) string {
	t.Helper()
	cache, err := cacheDir()
	if err != nil {
		t.Fatal(err)
	}
	hash := sha256.Sum256([]byte(string(release) + packages[release] + prepare))
	tarball := filepath.Join(cache, fmt.Sprintf("debian-%s-%x.tar", release, hash[:6]))
	if _, err := os.Stat(tarball); err == nil {
		return tarball
	} else if !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	t.Logf("making %s, once", tarball)
	if err := os.MkdirAll(cache, 0o755); err != nil {
		t.Fatal(err)
	}
	work, err := os.MkdirTemp(cache, "making-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(work)
	root := filepath.Join(work, "root")
	must(t, exec.Command("debootstrap", "--variant=minbase", "--include="+packages[release], string(release), root))
	sh := exec.Command("sh", "-ec", prepare)
	sh.Dir = root
	must(t, sh)
	made := filepath.Join(work, "tar")
	must(t, exec.Command("tar", "--numeric-owner", "--xattrs", "-C", root, "-cf", made, "."))
	if err := os.Rename(made, tarball); err != nil { // whole or not at all, also for a test that runs beside this one
		t.Fatal(err)
	}
	return tarball
}

func cacheDir() (string, error) {
	if dir := os.Getenv("WINGMAN_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find a cache folder (set WINGMAN_CACHE): %w", err)
	}
	return filepath.Join(dir, "wingman"), nil
}

func unpack(t testing.TB, tarball, root string) {
	t.Helper()
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	must(t, exec.Command("tar", "--numeric-owner", "--xattrs", "-C", root, "-xf", tarball))
}

// must runs cmd and fails the test with its last words when it does not succeed.
func must(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	out, err := cmd.CombinedOutput()
	if err == nil {
		return
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	t.Fatalf("%s: %v\n%s", cmd, err, strings.Join(lines[max(0, len(lines)-20):], "\n"))
}
