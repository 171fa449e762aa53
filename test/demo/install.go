package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
)

// installers are the package managers that know a package named iptables, each with the command that installs it.
var installers = []struct {
	program string
	command []string
}{
	{"apt-get", []string{"apt-get", "install", "-y", "--no-install-recommends", "iptables"}},
	{"dnf", []string{"dnf", "install", "-y", "iptables-nft"}},
	{"yum", []string{"yum", "install", "-y", "iptables"}},
	{"zypper", []string{"zypper", "--non-interactive", "install", "iptables"}},
	{"apk", []string{"apk", "add", "iptables"}},
	{"pacman", []string{"pacman", "-S", "--noconfirm", "iptables-nft"}},
}

// needed are the programs of iptables that daemon and demo run.
var needed = []string{"iptables-restore", "iptables-save"}

// chooseInstaller decides what to do about iptables: have reports whether a program is there. No command means that
// nothing is missing; an error names what the user can do.
func chooseInstaller(have func(program string) bool, root bool) ([]string, error) {
	missing := ""
	for _, p := range needed {
		if !have(p) {
			missing = p
			break
		}
	}
	if missing == "" {
		return nil, nil
	}
	for _, i := range installers {
		if !have(i.program) {
			continue
		}
		if !root {
			return nil, fmt.Errorf("%s is missing: run this first: sudo %s", missing, strings.Join(i.command, " "))
		}
		return i.command, nil
	}
	return nil, fmt.Errorf("%s is missing and no package manager is known here: install iptables", missing)
}

// needIptables installs iptables if it is missing and this is root.
func needIptables(ctx context.Context, out io.Writer) error {
	have := func(program string) bool {
		_, err := exec.LookPath(program)
		return err == nil
	}
	command, err := chooseInstaller(have, os.Geteuid() == 0)
	if err != nil || command == nil {
		return err
	}
	fmt.Fprintf(out, "iptables is missing: %s\n", strings.Join(command, " "))
	if out, err := exec.CommandContext(ctx, command[0], command[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(command, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
