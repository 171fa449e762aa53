package vm

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// differences lists what one list has and the other has not.
func differences(before, after []string) string {
	var b strings.Builder
	for _, line := range after {
		if !slices.Contains(before, line) {
			fmt.Fprintf(&b, "+ %s\n", line)
		}
	}
	for _, line := range before {
		if !slices.Contains(after, line) {
			fmt.Fprintf(&b, "- %s\n", line)
		}
	}
	return b.String()
}

// rootTree lists the files of a root as Machine.tree does.
func rootTree(t *testing.T, root string) []string {
	t.Helper()
	out, err := exec.Command("find", root, "(", "-path", root+"/var/lib/rpm", "-o", "-path", root+"/var/log", "-o", "-path", root+"/var/cache", "-o", "-path", root+"/var/lib/dpkg/*-old",
		"-o", "-path", root+"/root", "-o", "-path", root+"/var/lib/dpkg/lock*", "-o", "-path", root+"/var/lib/dpkg/triggers", ")", "-prune",
		"-o", "(", "-name", "passwd*", "-o", "-name", "group*", "-o", "-name", "shadow*", "-o", "-name", "gshadow*", "-o", "-name", ".pwd.lock", ")", "-path", root+"/etc/*", "-prune",
		"-o", "-printf", "%M %U:%G %P %l\n").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(string(out), "\n")
}

// hasUser reports whether a root knows the agent's user.
func hasUser(t *testing.T, root string) bool {
	t.Helper()
	passwd, err := os.ReadFile(filepath.Join(root, "etc/passwd"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(passwd), "istio-proxy")
}

// wants lists the links by which a root's units are started at boot.
func wants(t *testing.T, root string) string {
	t.Helper()
	links, err := filepath.Glob(filepath.Join(root, "etc/systemd/system/*.wants/wingman*"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range links {
		links[i] = filepath.Base(links[i])
	}
	return strings.Join(links, " ")
}

// A .deb where no systemd runs: image builds chroot into the files, or have dpkg work on them from outside (DPKG_ROOT); and a container may have no systemctl.
func TestADebianPackageInARootOfItsOwn(t *testing.T) {
	debs := buildPackages(t, "deb")
	for _, c := range []struct {
		name string
		dpkg []string // called in the outer root
		root string   // below the outer root, where the package goes
		bare bool     // there is no systemctl

		certs string // makes the folder of certificates in the root, which was there before
		owned string // mode and owner that it must have then

		adopted bool // the place of an istio.service was taken, and the removal has no systemd to undo that by
	}{
		{"chroot", []string{"dpkg"}, "", false, "rm -rf etc/certs; mkdir -p etc/certs/groups/web; chmod 700 etc/certs; echo key >etc/certs/tls.key; echo key >etc/certs/groups/web/key.pem", "700 root", false},
		{"chroot without systemctl", []string{"dpkg"}, "", true, "", "755 istio-proxy", false},
		{"DPKG_ROOT", []string{"dpkg", "--root=/root/inner", "--force-script-chrootless"}, "root/inner", false, "", "755 istio-proxy", true},
		{"root certificate first", []string{"dpkg"}, "", false, "rm -rf etc/certs; mkdir etc/certs; echo root >etc/certs/root-cert.pem", "755 istio-proxy", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			outer := filepath.Join(t.TempDir(), "outer")
			unpack(t, image(t), outer)
			root := filepath.Join(outer, c.root)
			if c.root != "" {
				unpack(t, image(t), root)
			}
			if c.bare {
				if err := os.Remove(filepath.Join(root, "usr/bin/systemctl")); err != nil {
					t.Fatal(err)
				}
			}
			for version, file := range debs {
				must(t, exec.Command("cp", file, filepath.Join(outer, "root", version+".deb")))
			}
			must(t, exec.Command("find", filepath.Join(root, "etc/systemd/system"), "-type", "d", "-empty", "-delete")) // deb-systemd-helper tidies these up
			if c.certs != "" {
				sh := exec.Command("sh", "-ec", c.certs)
				sh.Dir = root
				must(t, sh)
			}
			before := rootTree(t, root)
			run := func(argv ...string) {
				t.Helper()
				must(t, exec.Command("chroot", append(append([]string{outer}, c.dpkg...), argv...)...))
			}
			run("--install", "/root/"+oldVersion+".deb")
			if !hasUser(t, root) || c.root != "" && hasUser(t, outer) {
				t.Errorf("user istio-proxy: %v inside, %v outside; want it inside alone", hasUser(t, root), hasUser(t, outer))
			}
			if got := wants(t, root); got != "" {
				t.Errorf("the installation enabled %s", got)
			}
			if left, err := filepath.Glob(filepath.Join(root, "run/*wingman*")); err != nil || len(left) > 0 {
				t.Errorf("the image's /run has %q (%v)", left, err)
			}
			if out, err := exec.Command("chroot", root, "stat", "-c", "%a %U", "/etc/certs").CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != c.owned {
				t.Errorf("/etc/certs is %s (%v), want %s", out, err, c.owned)
			}
			must(t, exec.Command("systemctl", "--root="+root, "--quiet", "enable", "wingman.service"))
			const enabled = "wingman-rules.service wingman.service"
			run("--install", "/root/"+newVersion+".deb")
			if got := wants(t, root); got != enabled {
				t.Errorf("after an upgrade %q are enabled, want %s", got, enabled)
			}
			run("--remove", "wingman")
			run("--install", "/root/"+oldVersion+".deb")
			if got := wants(t, root); got != enabled {
				t.Errorf("removed and installed again %q are enabled, want %s", got, enabled)
			}
			copies := exec.Command("sh", "-ec", "mkdir -p app/7; ln -s 7 app/current; ln -s current/key.pem app/key.pem; echo key >app/7/key.pem; mkdir prepared")
			copies.Dir = filepath.Join(root, "etc/certs/groups")
			if err := os.MkdirAll(copies.Dir, 0o755); err != nil {
				t.Fatal(err)
			}
			must(t, copies)
			if c.adopted {
				sh := exec.Command("sh", "-ec", `mkdir var/lib/wingman-adopt; echo '{"step":"done"}' >var/lib/wingman-adopt/record.json; ln -s /dev/null etc/systemd/system/istio.service`)
				sh.Dir = root
				must(t, sh)
			}
			run("--purge", "wingman")
			if c.name == "root certificate first" { // the folder was given to the agent's user, and the user stays
				must(t, exec.Command("chown", "0:0", filepath.Join(root, "etc/certs")))
			}
			if diff := differences(before, rootTree(t, root)); diff != "" {
				t.Errorf("a purge does not leave the root as it was:\n%s", diff)
			}
		})
	}
}

// systemd enables all that no preset forbids on the first boot of a machine, which is what one from an image says of itself. The owner's word is not in that.
func TestAFirstBootEnablesNothing(t *testing.T) {
	debs := buildPackages(t, "deb")
	m := NewSegment(t).Machine(t, "first", "10.99.0.2/24")
	m.CopyIn(debs[oldVersion], "/root/wingman.deb", 0o644)
	must(t, exec.Command("chroot", m.root, "dpkg", "--install", "/root/wingman.deb"))
	m.Write("/usr/lib/systemd/system/other.service", "[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n", 0o644)
	m.Write("/etc/machine-id", "uninitialized\n", 0o444)
	m.Boot()
	if got, _ := m.Try("systemctl", "is-enabled", "other.service"); got != "enabled" {
		t.Fatalf("a unit that no preset names is %q: this was no first boot", got)
	}
	if got := wants(t, m.root); got != "" {
		t.Errorf("the first boot enabled %s", got)
	}
}

// An .rpm in a root of its own, by the real rpm: its scriptlets run there without systemd, as in an image build.
func TestAnRPMPackageInARootOfItsOwn(t *testing.T) {
	if _, err := exec.LookPath("rpm"); err != nil {
		t.Fatalf("rpm is needed: %v (test/setup/setup.sh vm installs it)", err)
	}
	rpms := buildPackages(t, "rpm")
	root := filepath.Join(t.TempDir(), "root")
	unpack(t, image(t), root)
	rpm := func(argv ...string) string {
		t.Helper()
		cmd := exec.Command("rpm", append([]string{"--root", root}, argv...)...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", cmd, err, out)
		}
		return string(out)
	}
	must(t, exec.Command("rpm", "--root", root, "--initdb"))
	for _, dir := range rpmFolders {
		if err := os.MkdirAll(filepath.Join(root, "usr/share", dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	before := rootTree(t, root)

	rpm("--install", "--nodeps", rpms[oldVersion])
	if !hasUser(t, root) {
		t.Error("the scriptlet made no user istio-proxy")
	}
	if got := wants(t, root); got != "" {
		t.Errorf("the installation enabled %s", got)
	}
	if out := rpm("--verify", "--nodeps", "wingman"); out != "" {
		t.Errorf("rpm --verify says:\n%s", out)
	}
	settings := filepath.Join(root, "etc/wingman/wingman.yaml")
	if err := os.WriteFile(settings, []byte("log: {level: debug}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	rpm("--upgrade", "--nodeps", rpms[newVersion])
	rpm("--upgrade", "--nodeps", "--oldpackage", rpms[oldVersion])
	rpm("--upgrade", "--nodeps", rpms[newVersion])
	if got, err := os.ReadFile(settings); err != nil || string(got) != "log: {level: debug}\n" {
		t.Errorf("an upgrade changed the owner's settings to %q (%v)", got, err)
	}
	if got := rpm("--query", "--queryformat", "%{VERSION}", "wingman"); got != newVersion {
		t.Errorf("version %s is installed, want %s", got, newVersion)
	}
	must(t, exec.Command("systemctl", "--root="+root, "--quiet", "enable", "wingman.service"))
	rpm("--erase", "--nodeps", "wingman")
	// rpm keeps settings that were edited beside their place, and put a version's own there that came meanwhile.
	for _, name := range []string{".rpmsave", ".rpmnew"} {
		if err := os.Remove(settings + name); err != nil {
			t.Errorf("settings were not kept: %v", err)
		}
	}
	os.Remove(filepath.Dir(settings))
	if diff := differences(before, rootTree(t, root)); diff != "" {
		t.Errorf("after the removal:\n%s", diff)
	}
}
