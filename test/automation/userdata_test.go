package automation

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// istioctlFiles makes a folder like istioctl's, whose content nobody reads.
func istioctlFiles(t *testing.T, without ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"cluster.env", "mesh.yaml", "hosts", "root-cert.pem", "istio-token"} {
		if !slices.Contains(without, name) {
			write(t, filepath.Join(dir, name), "content of "+name+"\n")
		}
	}
	return dir
}

// cloudConfig is what these tests look at in user-data.
type cloudConfig struct {
	WriteFiles []struct {
		Path, Owner, Permissions, Encoding, Content string
		Defer                                       bool
	} `yaml:"write_files"`
	Packages []string
	Apt      map[string]any
	YumRepos map[string]any `yaml:"yum_repos"`
	Bootcmd  [][]string
	Runcmd   [][]string
}

func generate(t *testing.T, argv ...string) (cloudConfig, string) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.Command("sh", append([]string{generator}, argv...)...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%q: %v\n%s", argv, err, errs.String())
	}
	var c cloudConfig
	if err := yaml.Unmarshal(out.Bytes(), &c); err != nil {
		t.Fatalf("%q makes what is no YAML: %v\n%s", argv, err, out.String())
	}
	if !strings.HasPrefix(out.String(), "#cloud-config\n") {
		t.Errorf("%q begins with %.20q, want #cloud-config", argv, out.String())
	}
	return c, out.String()
}

func TestUserDataHoldsTheFiles(t *testing.T) {
	dir := istioctlFiles(t)
	key := write(t, filepath.Join(t.TempDir(), "key.asc"), "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nAAAA\n-----END PGP PUBLIC KEY BLOCK-----\n")
	own := write(t, filepath.Join(t.TempDir(), "wingman.yaml"), "log: {level: debug}\n")
	sha := strings.Repeat("0a", 32)
	baked := []string{"/var/lib/istio/envoy/cluster.env root:root 0644", "/etc/istio/config/mesh root:root 0644", "/var/lib/istio/envoy/hosts root:root 0644", "/etc/certs/root-cert.pem root:root 0644"}
	stock := []string{"/root/wingman-bundle/cluster.env root:root 0600", "/root/wingman-bundle/mesh.yaml root:root 0600", "/root/wingman-bundle/hosts root:root 0600", "/root/wingman-bundle/root-cert.pem root:root 0600"}
	bakedToken, stockToken := "/run/secrets/tokens/istio-token istio-proxy:istio-proxy 0600", "/root/wingman-bundle/istio-token root:root 0600"
	const settings = "/etc/wingman/wingman.yaml root:root 0644"
	for _, test := range []struct {
		name  string
		argv  []string
		files []string
		runs  []string // $0 of what is run
	}{
		{"a baked image, the token last", []string{dir}, append(slices.Clone(baked), bakedToken), []string{"wingman.service"}},
		{"with settings before all", []string{"--settings", own, dir}, slices.Concat([]string{settings}, baked, []string{bakedToken}), []string{"wingman.service"}},
		{"with a cloud's token there is none", []string{"--token-from", "gce", dir}, slices.Concat([]string{settings}, baked), []string{"wingman.service"}},
		{"with settings and without a token", []string{"--settings", own, istioctlFiles(t, "istio-token")}, slices.Concat([]string{settings}, baked), []string{"wingman.service"}},
		{"apt", []string{"--apt", "https://packages.example/apt", "--key", key, dir}, append(slices.Clone(stock), stockToken), []string{"wingman-join"}},
		{"yum", []string{"--yum", "https://packages.example/yum", "--key", key, dir},
			slices.Concat([]string{"/etc/pki/rpm-gpg/RPM-GPG-KEY-wingman root:root 0644"}, stock, []string{stockToken}), []string{"wingman-join"}},
		{"a package, settings after it", []string{"--package", "https://packages.example/wingman.rpm", "--sha256", sha, "--settings", own, dir},
			slices.Concat([]string{settings + " deferred"}, stock, []string{stockToken}), []string{"wingman-package", "wingman-join"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, text := generate(t, test.argv...)
			var files, runs []string
			for _, f := range c.WriteFiles {
				line := f.Path + " " + f.Owner + " " + f.Permissions
				if f.Defer {
					line += " deferred"
				}
				files = append(files, line)
				content, err := base64.StdEncoding.DecodeString(f.Content)
				if err != nil || f.Encoding != "b64" {
					t.Errorf("%s: encoding %q, %v", f.Path, f.Encoding, err)
				}
				name := filepath.Base(f.Path)
				if name == "mesh" {
					name = "mesh.yaml"
				}
				if strings.Contains(settings+"RPM-GPG-KEY-wingman", name) {
					continue
				}
				if want := "content of " + name + "\n"; string(content) != want {
					t.Errorf("%s holds %q, want %q", f.Path, content, want)
				}
			}
			for _, argv := range c.Runcmd {
				run := argv[len(argv)-1]
				if argv[0] == "sh" {
					run = argv[3]
				}
				runs = append(runs, run)
			}
			if !slices.Equal(files, test.files) || !slices.Equal(runs, test.runs) {
				t.Errorf("files\n%s\nand commands %q, want\n%s\nand %q", strings.Join(files, "\n"), runs, strings.Join(test.files, "\n"), test.runs)
			}
			if len(c.Bootcmd) != 1 || len(c.Bootcmd[0]) != 6 || strings.Join(c.Bootcmd[0][:5], " ") != "cloud-init-per instance wingman-prepare sh -euc" {
				t.Errorf("bootcmd %q, want what prepares, once for each instance", c.Bootcmd)
			}
			if (len(c.Packages) > 0) != (len(c.Apt)+len(c.YumRepos) > 0) {
				t.Errorf("packages %q of repositories %v, %v", c.Packages, c.Apt, c.YumRepos)
			}
			hasToken := slices.ContainsFunc(test.files, func(f string) bool { return strings.Contains(f, "istio-token") })
			if warns := strings.Contains(text, "# Holds a token"); warns != hasToken {
				t.Errorf("it says that it holds a token: %t, want %t", warns, hasToken)
			}
		})
	}
	c, _ := generate(t, "--package", "https://packages.example/a.deb", "--sha256", sha, "--package", "https://packages.example/b.deb", "--sha256", strings.Repeat("0b", 32), "--", dir)
	if got := c.Runcmd[0][4:]; !slices.Equal(got, []string{"https://packages.example/a.deb", sha, "https://packages.example/b.deb", strings.Repeat("0b", 32)}) {
		t.Errorf("of two packages it fetches %q", got)
	}
	c, _ = generate(t, "--yum", "https://packages.example/yum", "--key", key, dir)
	if got := c.YumRepos["wingman"].(map[string]any); got["gpgcheck"] != true || got["repo_gpgcheck"] != true {
		t.Errorf("yum's repository is %v, want packages and index checked", got)
	}
	c, _ = generate(t, "--apt", "https://packages.example/apt", "--key", key, "--suite", "testing", dir)
	if got := c.Apt["sources"].(map[string]any)["wingman"].(map[string]any); got["source"] != "deb [signed-by=$KEY_FILE] https://packages.example/apt testing main" || got["key"] != "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nAAAA\n-----END PGP PUBLIC KEY BLOCK-----\n" {
		t.Errorf("apt's source is %q", got)
	}
}

func TestUserDataNamesEveryProblem(t *testing.T) {
	dir := istioctlFiles(t)
	own := write(t, filepath.Join(t.TempDir(), "wingman.yaml"), "log: {level: debug}\n")
	for _, test := range []struct {
		name string
		argv []string
		says []string
	}{
		{"no folder", nil, []string{"expected the folder that istioctl made"}},
		{"two folders", []string{dir, dir}, []string{"expected one folder"}},
		{"no such folder", []string{dir + "/none"}, []string{"is no folder"}},
		{"unknown option", []string{"--tokn", dir}, []string{"unknown option --tokn"}},
		{"a value that is not there", []string{dir, "--apt"}, []string{"--apt needs a value"}},
		{"files that are not there", []string{istioctlFiles(t, "hosts", "istio-token")}, []string{"/hosts: is not there", "/istio-token: is not there"}},
		{"a repository without its key", []string{"--apt", "https://x.example", dir}, []string{"--key: expected"}},
		{"two ways", []string{"--apt", "https://x.example", "--package", "https://x.example/a.deb", dir}, []string{"expected one of them", "--sha256: expected one for each --package"}},
		{"a package without its sum", []string{"--package", "https://x.example/a.deb", "--package", "https://x.example/b.deb", "--sha256", strings.Repeat("a", 64), dir}, []string{"--sha256: expected one for each --package"}},
		{"packages of two kinds", []string{"--package", "https://x.example/a.deb", "--package", "https://x.example/b.rpm", "--sha256", strings.Repeat("a", 64), "--sha256", strings.Repeat("b", 64), dir}, []string{"expected files of one kind"}},
		{"a package of no kind", []string{"--package", "https://x.example/a.tar", "--sha256", strings.Repeat("A", 64), dir}, []string{"expected a .deb or .rpm", "lower-case"}},
		{"no URL", []string{"--package", "file:///a.deb", "--sha256", strings.Repeat("a", 64), dir}, []string{"expected a URL"}},
		{"a URL that would be another line", []string{"--package", "https://x\"\n- evil.deb", "--sha256", strings.Repeat("a", 64), dir}, []string{"a character that no URL has"}},
		{"a URL that would end its quotes", []string{"--package", "https://x\"evil.deb", "--sha256", strings.Repeat("a", 64), dir}, []string{"a character that no URL has"}},
		{"two URLs in one value", []string{"--package", "https://x.example/a.deb https://x.example/b.deb", "--sha256", strings.Repeat("a", 64), dir}, []string{"found a blank"}},
		{"two folders behind --", []string{"--", dir, dir}, []string{"expected one folder"}},
		{"a private key", []string{"--apt", "https://x.example", "--key", write(t, filepath.Join(t.TempDir(), "key"), "-----BEGIN PGP PRIVATE KEY BLOCK-----\n"), dir}, []string{"expected a public key"}},
		{"no such cloud", []string{"--token-from", "ibm", dir}, []string{"expected gce, aws or azure"}},
		{"two sources of settings", []string{"--token-from", "gce", "--settings", own, dir}, []string{"expected one of them"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var out, errs bytes.Buffer
			cmd := exec.Command("sh", append([]string{generator}, test.argv...)...)
			cmd.Stdout, cmd.Stderr = &out, &errs
			if err := cmd.Run(); err == nil || out.Len() > 0 {
				t.Errorf("%v, and it wrote %d bytes, want a failure and nothing", err, out.Len())
			}
			for _, want := range test.says {
				if !strings.Contains(errs.String(), want) {
					t.Errorf("it says %q, want %q in it", errs.String(), want)
				}
			}
		})
	}
}

// From wherever it is called and whoever calls it: all of the user-data, or none and a failure.
func TestUserDataIsWholeOrNone(t *testing.T) {
	shared, err := os.MkdirTemp("", "user-data-") // t.TempDir is for its owner alone
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(shared) })
	scripts, dir := filepath.Join(shared, "scripts"), filepath.Join(shared, "bundle")
	if err := os.CopyFS(scripts, os.DirFS(filepath.Dir(generator))); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"cluster.env", "mesh.yaml", "hosts", "root-cert.pem", "istio-token"} {
		write(t, filepath.Join(dir, name), "content\n")
	}
	run(t, exec.Command("chmod", "-R", "a+rX", shared))
	script, link, broken := filepath.Join(scripts, "user-data.sh"), filepath.Join(shared, "link"), filepath.Join(shared, "bin")
	if err := os.Symlink(script, link); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(broken, "base64"), "#!/bin/sh\necho base64: no memory >&2\nexit 1\n")
	run(t, exec.Command("chmod", "-R", "a+rx", broken))
	whole := run(t, exec.Command("sh", script, dir))
	stranger := func(file string) *exec.Cmd {
		run(t, exec.Command("chmod", "0600", file))
		t.Cleanup(func() { run(t, exec.Command("chmod", "0644", file)) })
		if os.Geteuid() == 0 {
			return exec.Command("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sh", script, dir)
		}
		run(t, exec.Command("chmod", "0", file))
		return exec.Command("sh", script, dir)
	}
	for _, test := range []struct {
		name string
		cmd  func() *exec.Cmd
		says string // "": it works
	}{
		{"through a link", func() *exec.Cmd { return exec.Command("sh", link, dir) }, ""},
		{"without the scripts beside it", func() *exec.Cmd {
			alone := filepath.Join(t.TempDir(), "user-data.sh")
			run(t, exec.Command("cp", script, alone))
			return exec.Command("sh", alone, dir)
		}, "/prepare.sh: is not there"},
		{"a token that the caller may not read", func() *exec.Cmd { return stranger(filepath.Join(dir, "istio-token")) }, "/istio-token: may not be read"},
		{"a program that fails midway", func() *exec.Cmd {
			cmd := exec.Command("sh", script, dir)
			cmd.Env = append(cmd.Environ(), "PATH="+broken+":"+os.Getenv("PATH"))
			return cmd
		}, "no memory"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var out, errs bytes.Buffer
			cmd := test.cmd()
			cmd.Stdout, cmd.Stderr = &out, &errs
			switch err := cmd.Run(); {
			case test.says == "" && (err != nil || out.String() != whole):
				t.Errorf("%v: %s\nit wrote\n%s\nwant\n%s", err, errs.String(), out.String(), whole)
			case test.says != "" && (err == nil || out.Len() > 0 || !strings.Contains(errs.String(), test.says)):
				t.Errorf("%v, %d bytes, and it says %q, want a failure, nothing, and %q", err, out.Len(), errs.String(), test.says)
			}
		})
	}
}

// AWS takes 16 kB, of which a chain of certificates can have most: then gzip helps, and that is said.
func TestUserDataThatIsTooLargeIsSaid(t *testing.T) {
	dir := istioctlFiles(t)
	write(t, filepath.Join(dir, "root-cert.pem"), strings.Repeat("A line of a large file.\n", 1000))
	var out, errs, small bytes.Buffer
	cmd := exec.Command("sh", generator, dir)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil || !strings.Contains(errs.String(), "AWS takes 16384") {
		t.Errorf("%v, and it says %q", err, errs.String())
	}
	z := gzip.NewWriter(&small)
	z.Write(out.Bytes())
	z.Close()
	if small.Len() >= 16384 {
		t.Errorf("with gzip %d bytes are %d", out.Len(), small.Len())
	}
}
