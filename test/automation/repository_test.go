package automation

import (
	"crypto/sha256"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// A repository is a folder that layout.sh has laid out, and the key that it is signed by.
type repository struct {
	t            *testing.T
	dir, keyring string
}

func newRepository(t *testing.T) *repository {
	t.Helper()
	for _, program := range []string{"gpg", "gpgconf", "apt-ftparchive", "createrepo_c", "rpmsign"} {
		tool(t, program)
	}
	keyring, err := os.MkdirTemp("", "gpg-") // short: gpg-agent has sockets there
	if err != nil {
		t.Fatal(err)
	}
	r := &repository{t: t, dir: filepath.Join(t.TempDir(), "repository"), keyring: keyring}
	t.Cleanup(func() { r.command("gpgconf", "--kill", "all").Run(); os.RemoveAll(keyring) })
	// RSA, as rpm before 4.15 knows nothing newer.
	run(t, r.command("gpg", "--batch", "--quiet", "--passphrase", "", "--quick-generate-key", "Test <test@example.com>", "rsa3072", "sign", "0"))
	return r
}

func (r *repository) command(argv ...string) *exec.Cmd {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(cmd.Environ(), "GNUPGHOME="+r.keyring, "KEY=test@example.com")
	return cmd
}

func (r *repository) layOut(packages ...string) *exec.Cmd {
	return r.command(append([]string{"sh", "../../packaging/repository/layout.sh", r.dir}, packages...)...)
}

// state is every file with its content's hash and the time it was written.
func (r *repository) state() string {
	r.t.Helper()
	return run(r.t, exec.Command("sh", "-euc", `cd "$1"; find . -type f -printf '%p %T@\n' | sort; find . -type f | sort | xargs sha256sum`, "sh", r.dir))
}

// alter changes a file behind the signature's back, and returns what undoes it.
func (r *repository) alter(file, from, to string) (undo func()) {
	r.t.Helper()
	path := filepath.Join(r.dir, file)
	content, err := os.ReadFile(path)
	if err != nil {
		r.t.Fatal(err)
	}
	altered := strings.Replace(string(content), from, to, 1)
	if altered == string(content) {
		r.t.Fatalf("%s has no %q in it", file, from)
	}
	if err := os.WriteFile(path, []byte(altered), 0o644); err != nil {
		r.t.Fatal(err)
	}
	return func() {
		if err := os.WriteFile(path, content, 0o644); err != nil {
			r.t.Error(err)
		}
	}
}

// flip changes one bit of each file that patterns match, and returns what undoes it.
func (r *repository) flip(patterns ...string) (undo func()) {
	r.t.Helper()
	var found []string
	for _, pattern := range patterns {
		files, err := filepath.Glob(filepath.Join(r.dir, pattern))
		if err != nil || len(files) == 0 {
			r.t.Fatalf("no file is %s: %v", pattern, err)
		}
		found = append(found, files...)
	}
	flip := func() {
		for _, file := range found {
			content, err := os.ReadFile(file)
			if err != nil {
				r.t.Fatal(err)
			}
			content[len(content)/2] ^= 1
			if err := os.WriteFile(file, content, 0o644); err != nil {
				r.t.Fatal(err)
			}
		}
	}
	flip()
	return flip
}

func TestRepositoryLayout(t *testing.T) {
	r := newRepository(t)
	packages := []string{packageOf(t, oldVersion, "deb"), packageOf(t, oldVersion, "rpm")}
	closed := t.TempDir() // packages as a build with another umask leaves them
	run(t, exec.Command("sh", "-euc", `cp "$2" "$3" "$1"; chmod 0600 "$1"/*`, "sh", closed, packages[0], packages[1]))
	t.Logf("%s", run(t, r.layOut(filepath.Join(closed, filepath.Base(packages[0])), filepath.Join(closed, filepath.Base(packages[1])))))
	if out := run(t, exec.Command("find", r.dir, "-type", "f", "!", "-perm", "0644")); out != "" {
		t.Errorf("files that not everybody may read, and a web server need not be root:\n%s", out)
	}
	first := r.state()
	run(t, r.layOut(packages...))
	run(t, r.layOut())
	if again := r.state(); again != first {
		t.Errorf("a second run changed\n%s\nto\n%s", first, again)
	}
	for _, file := range []string{"apt/dists/stable/Release.gpg", "yum/repodata/repomd.xml.asc"} {
		run(t, r.command("gpg", "--verify", filepath.Join(r.dir, file), strings.TrimSuffix(strings.TrimSuffix(filepath.Join(r.dir, file), ".gpg"), ".asc")))
	}

	// Another package by the same name: machines may have the first.
	other := filepath.Join(t.TempDir(), filepath.Base(packages[0]))
	run(t, exec.Command("sh", "-euc", `dpkg-deb --raw-extract "$1" "$2"; echo other >>"$2/usr/share/other"; dpkg-deb --build --root-owner-group -Znone "$2" "$3"`, "sh", packages[0], filepath.Join(t.TempDir(), "tree"), other))
	// Beside it one that could be published: all or none are.
	if out, err := r.layOut(packageOf(t, newVersion, "deb"), packageOf(t, newVersion, "rpm"), other).CombinedOutput(); err == nil || !strings.Contains(string(out), "is there with other content") {
		t.Errorf("another package by the same name: %v\n%s", err, out)
	}
	if again := r.state(); again != first {
		t.Errorf("a package that was refused changed the repository from\n%s\nto\n%s", first, again)
	}
	// A file's name is nobody's word: this is the package that is there already.
	renamed := filepath.Join(t.TempDir(), "wingman.deb")
	run(t, exec.Command("cp", packages[0], renamed))
	run(t, r.layOut(renamed))
	if again := r.state(); again != first {
		t.Errorf("a package by another file's name changed the repository from\n%s\nto\n%s", first, again)
	}
	everywhere := &repository{t: t, dir: filepath.Join(t.TempDir(), "all"), keyring: r.keyring}
	if out := run(t, everywhere.layOut(standIn(t, "wingman-all", "all"))); !strings.Contains(out, "apt: 1 packages") {
		t.Errorf("a repository of one package for all architectures: %s", out)
	}
	for _, wrong := range []struct {
		cmd  *exec.Cmd
		says string
	}{
		{r.layOut(write(t, filepath.Join(t.TempDir(), "wingman.tar"), "")), "expected a .deb or an .rpm"},
		{r.layOut("none.deb"), "there is no file none.deb"},
		{exec.Command("env", "GNUPGHOME="+t.TempDir(), "KEY=nobody@example.com", "sh", "../../packaging/repository/layout.sh", r.dir), "there is no secret key"},
	} {
		if out, err := wrong.cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), wrong.says) {
			t.Errorf("%q: %v, want %q:\n%s", wrong.cmd.Args, err, wrong.says, out)
		}
	}

	// What a machine that read the list before still asks for is there after the next version came.
	before, err := filepath.Glob(filepath.Join(r.dir, "apt/dists/stable/main/binary-*/by-hash/SHA256/*"))
	if err != nil || len(before) != 3 {
		t.Fatalf("indexes by hash: %q, want three (%v)", before, err)
	}
	run(t, r.layOut(packageOf(t, newVersion, "deb"), packageOf(t, newVersion, "rpm"), standIn(t, "wingman-envoy", "all")))
	for _, file := range before {
		if _, err := os.Stat(file); err != nil {
			t.Error(err)
		}
	}
	t.Run("dnf", r.dnf)
	t.Run("apt", r.apt)
}

// dnf installs the old version, upgrades and goes back in a root of its own, demanding the signatures of packages and list; and refuses what was altered.
func (r *repository) dnf(t *testing.T) {
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	write(t, filepath.Join(dir, "repos/wingman.repo"), fmt.Sprintf("[wingman]\nname=Wingman\nbaseurl=file://%[1]s/yum\ngpgcheck=1\nrepo_gpgcheck=1\nskip_if_unavailable=0\ngpgkey=file://%[1]s/wingman.asc\n", r.dir))
	// The package depends on systemd, which this root has none of.
	systemd := write(t, filepath.Join(dir, "systemd.yaml"), "name: systemd\narch: all\nversion: \"252\"\ndescription: stands in for the distribution's\n")
	nfpm := exec.Command("sh", "-euc", `cd ../..; go run "$(sed -n 's/^nfpm=//p' packaging/common.sh)" package --config "$1" --packager rpm --target "$2"`, "sh", systemd, filepath.Join(dir, "systemd.rpm"))
	run(t, nfpm)
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	run(t, exec.Command("rpm", "--root", root, "--initdb"))
	run(t, exec.Command("rpm", "--root", root, "--install", "--nodeps", filepath.Join(dir, "systemd.rpm")))
	dnf := func(argv ...string) *exec.Cmd {
		return exec.Command(tool(t, "dnf"), append([]string{"--assumeyes", "--installroot=" + root, "--releasever=9", "--setopt=reposdir=" + filepath.Join(dir, "repos"),
			"--setopt=cachedir=" + filepath.Join(dir, "cache"), "--setopt=logdir=" + dir, "--setopt=tsflags=noscripts", "--setopt=install_weak_deps=0", "--refresh"}, argv...)...)
	}
	installed := func() string {
		return run(t, exec.Command("rpm", "--root", root, "--query", "--queryformat", "%{VERSION}", "wingman"))
	}
	for _, step := range []struct {
		argv []string
		want string
	}{{[]string{"install", "wingman-" + oldVersion}, oldVersion}, {[]string{"upgrade", "wingman"}, newVersion}, {[]string{"downgrade", "wingman"}, oldVersion}} {
		out := run(t, dnf(step.argv...))
		if got := installed(); got != step.want {
			t.Errorf("after dnf %q version %s is there, want %s:\n%s", step.argv, got, step.want, out)
		}
	}

	undo := r.alter("yum/repodata/repomd.xml", "</repomd>", "<!-- --></repomd>")
	if out, err := dnf("makecache").CombinedOutput(); err == nil {
		t.Errorf("dnf takes an altered repomd.xml:\n%s", out)
	}
	undo()

	// A list that is signed, and a package that is not.
	unsigned := packageOf(t, newVersion, "rpm")
	arch := strings.Split(filepath.Base(unsigned), ".")
	published := filepath.Join(r.dir, "yum", arch[len(arch)-2], filepath.Base(unsigned))
	signed, err := os.ReadFile(published)
	if err != nil {
		t.Fatal(err)
	}
	run(t, exec.Command("cp", unsigned, published))
	run(t, r.layOut())
	if out, err := dnf("upgrade", "wingman").CombinedOutput(); err == nil || installed() != oldVersion || !strings.Contains(strings.ToLower(string(out)), "not signed") {
		t.Errorf("dnf takes a package without a signature (%v), or refuses it for something else:\n%s", err, out)
	}
	if err := os.WriteFile(published, signed, 0o644); err != nil {
		t.Fatal(err)
	}
	run(t, r.layOut())
}

// A machine gets the agent by the role and apt from the repository, over HTTP from this computer; upgrades; and refuses what was altered.
func (r *repository) apt(t *testing.T) {
	c := newController(newFleet(t, "web1"))
	m := c.machines["web1"]
	var l net.Listener
	if err := c.segment.Do(func() (err error) { l, err = net.Listen("tcp", "10.99.0.1:8000"); return err }); err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.FileServer(http.Dir(r.dir))}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	installed := func() string {
		return m.Run("dpkg-query", "--show", "--showformat=${source:Upstream-Version}", "wingman")
	}

	c.set("wingman_join: false\nwingman_repository_url: http://10.99.0.1:8000/apt\nwingman_repository_key: " + filepath.Join(r.dir, "wingman.asc") + "\n")
	// A run that cannot read the list, and one that can: the repository is named already. The version is the agent's alone.
	named := []string{"-e", "wingman_version=" + oldVersion, "-e", `{"wingman_packages": ["wingman", "wingman-envoy"]}`}
	undo := r.alter("apt/dists/stable/InRelease", "Origin: Wingman", "Origin: Wingmen")
	if out, counts := c.play("site.yml", named...); counts["web1"].failed != 1 {
		t.Errorf("the role takes an altered InRelease:\n%s", out)
	}
	undo()
	c.mustPlay("site.yml", named...)
	if got := installed(); got != oldVersion {
		t.Errorf("the role installed version %s, want %s", got, oldVersion)
	}
	if out, counts := c.mustPlay("site.yml", "-e", "wingman_version=latest"); counts["web1"].changed > 0 {
		t.Errorf("a second run changed something, if only the version that is installed:\n%s", out)
	}

	update := []string{"apt-get", "--error-on=any", "update", "-o", "Dir::Etc::SourceList=/etc/apt/sources.list.d/wingman.sources", "-o", "Dir::Etc::SourceParts=/dev/null"}
	undo = r.alter("apt/dists/stable/InRelease", "Origin: Wingman", "Origin: Wingmen")
	if out, err := m.Try(update...); err == nil {
		t.Errorf("apt takes an altered InRelease:\n%s", out)
	}
	undo()
	m.Sh("rm -rf /var/lib/apt/lists/*")
	undo = r.flip("apt/dists/stable/main/binary-*/by-hash/SHA256/*", "apt/dists/stable/main/binary-*/Packages*") // apt tries both
	if out, err := m.Try(update...); err == nil || !strings.Contains(err.Error(), "Hash Sum mismatch") {
		t.Errorf("apt takes an altered Packages (%v):\n%s", err, out)
	}
	undo()
	m.Run(update...)

	c.mustPlay("upgrade.yml", "-e", "wingman_version=latest")
	if got := installed(); got != newVersion {
		t.Errorf("the upgrade left version %s, want %s", got, newVersion)
	}
	// Back by a URL of the same server, whose checksum is named.
	pool, err := filepath.Glob(filepath.Join(r.dir, "apt/pool/main/w/wingman/wingman_"+oldVersion+"-1_*.deb"))
	if err != nil || len(pool) != 1 {
		t.Fatalf("the pool has %q of the old version, want one (%v)", pool, err)
	}
	content, err := os.ReadFile(pool[0])
	if err != nil {
		t.Fatal(err)
	}
	c.set(fmt.Sprintf("wingman_join: false\nwingman_package_urls:\n  - {url: %q, checksum: %q}\n",
		"http://10.99.0.1:8000/apt/pool/main/w/wingman/"+filepath.Base(pool[0]), fmt.Sprintf("sha256:%x", sha256.Sum256(content))))
	if out, counts := c.mustPlay("site.yml"); counts["web1"].changed > 1 || installed() != newVersion {
		t.Errorf("site.yml changed more than that the package is at hand, it has version %s now:\n%s", installed(), out)
	}
	c.mustPlay("upgrade.yml")
	if got := installed(); got != oldVersion {
		t.Errorf("the package of a URL left version %s, want %s", got, oldVersion)
	}
}
