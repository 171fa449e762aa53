package units

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"wingman/test/netns"
)

// install lays out a root folder with our files, the commands they name, and the units of systemd itself.
func install(t *testing.T) (root string) {
	t.Helper()
	root = t.TempDir()
	write := func(path, content string, mode fs.FileMode) {
		t.Helper()
		to := filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range Files() {
		write(f.Path, f.Content, f.Mode)
	}
	for _, command := range []string{"/usr/bin/wingman", "/bin/kill", "/bin/sh"} {
		write(command, "#!/bin/sh\n", 0o755)
	}
	own := "/lib/systemd/system" // also where /lib is a link to /usr/lib
	units, err := os.ReadDir(own)
	if err != nil {
		netns.Skip(t, "systemd is not installed")
	}
	for _, u := range units {
		if filepath.Ext(u.Name()) == ".wants" {
			continue
		}
		content, err := os.ReadFile(filepath.Join(own, u.Name()))
		if err == nil && !strings.HasPrefix(u.Name(), "wingman") {
			write(filepath.Join("/usr/lib/systemd/system", u.Name()), string(content), 0o644)
		}
	}
	return root
}

func services(t *testing.T) (names []string) {
	t.Helper()
	for _, f := range Files() {
		if filepath.Ext(f.Path) == ".service" {
			names = append(names, filepath.Base(f.Path))
		}
	}
	if len(names) == 0 {
		t.Fatal("there are no services")
	}
	return names
}

func TestSystemdFindsNoFault(t *testing.T) {
	analyze := netns.Tool(t, "systemd-analyze")
	root := install(t)
	for _, unit := range append(services(t), "wingman.path", "istio-mesh-ready.target") {
		out, err := exec.Command(analyze, "verify", "--man=no", "--root="+root, filepath.Join(root, "/usr/lib/systemd/system", unit)).CombinedOutput()
		if err != nil || len(out) > 0 {
			t.Errorf("%s: %v\n%s", unit, err, out)
		}
	}
}

func TestServicesAreHardened(t *testing.T) {
	analyze := netns.Tool(t, "systemd-analyze")
	root := install(t)
	for _, unit := range services(t) {
		out, err := exec.Command(analyze, "security", "--no-pager", "--offline=yes", "--threshold=20", filepath.Join(root, "/usr/lib/systemd/system", unit)).CombinedOutput()
		if err != nil { // also when the exposure is above the threshold: 2.0
			t.Errorf("%s: %v\n%s", unit, err, out)
		}
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		t.Log(lines[len(lines)-1])
	}
}

// What TPROXY needs beside is still hardened, and is all that a drop-in changes.
func TestTheProxyWithTPROXYIsHardened(t *testing.T) {
	analyze := netns.Tool(t, "systemd-analyze")
	root := install(t)
	unit := filepath.Join(root, "/usr/lib/systemd/system/wingman-proxy.service")
	dropIn, err := files.ReadFile("tproxy.conf")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(unit+".d", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(unit+".d/tproxy.conf", dropIn, 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(analyze, "verify", "--man=no", "--root="+root, unit).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%v\n%s", err, out)
	}
	security := exec.Command(analyze, "security", "--no-pager", "--offline=yes", "--threshold=20", "--root="+root, "wingman-proxy.service")
	security.Env = append(os.Environ(), "LC_ALL=C.UTF-8") // it marks with other letters where these are none
	out, err := security.CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if !strings.Contains(string(out), "CAP_NET_ADMIN") || !strings.Contains(string(out), "✗ PrivateUsers=") {
		t.Errorf("the drop-in was not read:\n%s", out)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	t.Log(lines[len(lines)-1])
}

// A file that is not in the list would be in no package.
func TestEachFileIsInstalled(t *testing.T) {
	entries, err := files.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := len(Files()), len(entries); got != want {
		t.Errorf("%d files are installed, want all %d", got, want)
	}
}

func TestTheGuardIsShell(t *testing.T) {
	if out, err := exec.Command("sh", "-n", "crash-guard").CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// guarded is the guard with notes of its own and a PATH that holds nothing by which it could change this machine.
func guarded(t *testing.T) (script, notes string) {
	t.Helper()
	text, err := os.ReadFile("crash-guard")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	bin, notes := filepath.Join(dir, "bin"), filepath.Join(dir, "notes")
	if err := os.Mkdir(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"awk", "date", "mkdir", "mv", "rm", "true"} {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		link := filepath.Join(bin, name)
		if name == "true" {
			link = filepath.Join(bin, "sleep")
		}
		if err := os.Symlink(path, link); err != nil {
			t.Fatal(err)
		}
	}
	own := string(text)
	for from, to := range map[string]string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin\n": "PATH=" + bin + "\n", "notes=/run/wingman-guard\n": "notes=" + notes + "\n"} {
		if strings.Count(own, from) != 1 {
			t.Fatalf("the guard has no line %q", from)
		}
		own = strings.Replace(own, from, to, 1)
	}
	script = filepath.Join(dir, "crash-guard")
	if err := os.WriteFile(script, []byte(own), 0o755); err != nil {
		t.Fatal(err)
	}
	return script, notes
}

func TestTheGuardCountsBadEnds(t *testing.T) {
	shell, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name    string
		results string
		ago     map[string]int // seconds since an end that was noted before, by file
		why     string         // empty: no loop
	}{
		{"four crashes", "signal signal exit-code core-dump", nil, ""},
		{"five crashes", "signal signal exit-code core-dump signal", nil, "the agent ended badly 5 times within 30 s, last with signal"},
		{"an end of 31 s ago", "signal signal signal signal", map[string]int{"ends": 31}, ""},
		{"an end of 20 s ago", "signal signal signal signal", map[string]int{"ends": 20}, "the agent ended badly 5 times within 30 s"},
		{"one hang", "watchdog", nil, ""},
		{"two hangs", "timeout watchdog", nil, "the agent hung 2 times within 180 s, last with watchdog"},
		{"a hang and a crash", "watchdog signal", nil, ""},
		{"a crash after two hangs", "watchdog timeout signal", nil, ""},
		{"a start that timed out a minute ago", "timeout", map[string]int{"hangs": 61}, "the agent hung 2 times within 180 s, last with timeout"},
		{"a hang of long ago", "watchdog", map[string]int{"hangs": 181}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			script, notes := guarded(t)
			uptime, err := os.ReadFile("/proc/uptime")
			if err != nil {
				t.Fatal(err)
			}
			seconds, _, _ := strings.Cut(string(uptime), ".")
			now, err := strconv.Atoi(seconds)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(notes, 0o755); err != nil {
				t.Fatal(err)
			}
			for file, ago := range tt.ago {
				if err := os.WriteFile(filepath.Join(notes, file), fmt.Appendln(nil, now-ago), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			for result := range strings.FieldsSeq(tt.results) {
				guard := exec.Command(shell, script)
				guard.Env = []string{"SERVICE_RESULT=" + result}
				if out, err := guard.CombinedOutput(); err != nil {
					t.Fatalf("after %s: %v\n%s", result, err, out)
				}
			}
			open, err := os.ReadFile(filepath.Join(notes, "open"))
			if tt.why == "" && !errors.Is(err, fs.ErrNotExist) || tt.why != "" && !strings.Contains(string(open), tt.why) {
				t.Errorf("the guard says %q, want %q", open, tt.why)
			}
		})
	}
}
