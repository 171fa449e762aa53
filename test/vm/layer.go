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

// ManagedByAnsible are the packages that Ansible's modules need on a machine.
var ManagedByAnsible = []string{"python3", "python3-apt"}

// MachineWith is Machine for one that also has packages of its distribution: what an automation tool needs on the machines that it manages, say. The image
// with them is made once from the one of all machines, and kept beside it.
func (s *Segment) MachineWith(t testing.TB, packages []string, name, prefix string, resolvers ...string) *Machine {
	t.Helper()
	return s.machine(t, layered(t, packages), name, prefix, resolvers...)
}

// addPackages runs in the image's root folder, with the packages as arguments.
const addPackages = `
trap 'rm -f usr/sbin/policy-rc.d; mv -f etc/resolv.conf.was etc/resolv.conf' EXIT
mv etc/resolv.conf etc/resolv.conf.was
cp /etc/resolv.conf etc/resolv.conf
printf '#!/bin/sh\nexit 101\n' >usr/sbin/policy-rc.d
chmod 755 usr/sbin/policy-rc.d
export DEBIAN_FRONTEND=noninteractive LC_ALL=C
chroot . apt-get -q update
chroot . apt-get -q -y --no-install-recommends install "$@"
rm -rf var/cache/apt/archives/*.deb var/lib/apt/lists/* usr/share/doc usr/share/man usr/share/locale usr/share/info etc/systemd/system/timers.target.wants/*
`

// layered returns the tarball of the image with packages, which is made when it is not there yet.
func layered(t testing.TB, packages []string) string {
	t.Helper()
	base := image(t)
	hash := sha256.Sum256([]byte(addPackages + strings.Join(packages, ",")))
	tarball := fmt.Sprintf("%s-%x.tar", strings.TrimSuffix(base, ".tar"), hash[:6])
	if _, err := os.Stat(tarball); err == nil {
		return tarball
	} else if !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	t.Logf("making %s, once: %s", tarball, strings.Join(packages, " "))
	work, err := os.MkdirTemp(filepath.Dir(base), "making-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(work)
	root := filepath.Join(work, "root")
	unpack(t, base, root)
	sh := exec.Command("sh", append([]string{"-ec", addPackages, "sh"}, packages...)...)
	sh.Dir = root
	must(t, sh)
	made := filepath.Join(work, "tar")
	must(t, exec.Command("tar", "--numeric-owner", "--xattrs", "-C", root, "-cf", made, "."))
	if err := os.Rename(made, tarball); err != nil {
		t.Fatal(err)
	}
	return tarball
}
