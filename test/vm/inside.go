package vm

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Command prepares a command on the running machine, as root with a login's PATH.
func (m *Machine) Command(argv ...string) *exec.Cmd {
	m.t.Helper()
	if m.power == nil {
		m.t.Fatalf("machine %s is off", m.name)
	}
	return exec.Command("nsenter", append([]string{"--target=" + strconv.Itoa(m.power.leader), "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--",
		"env", "-i", "-C", "/", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "SYSTEMD_PAGER=", "SYSTEMD_COLORS=0"}, argv...)...)
}

// Run runs a command on the machine and returns what it wrote to stdout, without the last line break. When it does not
// exit with 0 the test ends.
func (m *Machine) Run(argv ...string) string {
	m.t.Helper()
	out, err := m.Try(argv...)
	if err != nil {
		m.t.Fatal(err)
	}
	return out
}

// Try is Run for a command that may fail; the error holds what it wrote to stderr.
func (m *Machine) Try(argv ...string) (string, error) {
	m.t.Helper()
	cmd := m.Command(argv...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return strings.TrimSuffix(out.String(), "\n"), fmt.Errorf("machine %s: %s: %w\n%s%s", m.name, strings.Join(argv, " "), err, out.String(), errs.String())
	}
	return strings.TrimSuffix(out.String(), "\n"), nil
}

// Sh runs a line of shell, as Run does.
func (m *Machine) Sh(line string) string {
	m.t.Helper()
	return m.Run("sh", "-ec", line)
}

// Do runs f on a thread that has the machine's network: sockets that f opens are the machine's, until it goes off.
func (m *Machine) Do(f func() error) error {
	if m.power == nil {
		return fmt.Errorf("machine %s is off", m.name)
	}
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", m.power.leader))
	if err != nil {
		return err
	}
	defer ns.Close()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with its goroutine
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter the network of machine %s: %w", m.name, err)
			return
		}
		done <- f()
	}()
	return <-done
}

// Write puts a file onto the machine, whole at once, and makes its folders. It belongs to root. On a machine that is off
// only the disk can be written: what lies in /run or /tmp is gone with the next boot.
func (m *Machine) Write(file, content string, mode os.FileMode) {
	m.t.Helper()
	if m.power != nil {
		cmd := m.Command("sh", "-euc", `mkdir -p "$(dirname "$1")"; install -m "$2" /dev/stdin "$1.new"; mv -f "$1.new" "$1"`, "sh", file, fmt.Sprintf("%o", mode))
		cmd.Stdin = strings.NewReader(content)
		must(m.t, cmd)
		return
	}
	disk := m.disk()
	defer disk.Close()
	name := strings.TrimPrefix(file, "/")
	for _, do := range []func() error{
		func() error { return disk.MkdirAll(filepath.Dir(name), 0o755) },
		func() error { return disk.WriteFile(name+".new", []byte(content), mode) },
		func() error { return disk.Chmod(name+".new", mode) }, // whatever the umask took
		func() error { return disk.Rename(name+".new", name) },
	} {
		if err := do(); err != nil {
			m.t.Fatalf("machine %s: write %s: %v", m.name, file, err)
		}
	}
}

// disk opens the machine's files. Its links cannot lead out of them: /var/run is one to /run, and must not become this
// computer's.
func (m *Machine) disk() *os.Root {
	m.t.Helper()
	disk, err := os.OpenRoot(m.root)
	if err != nil {
		m.t.Fatal(err)
	}
	return disk
}

// CopyIn copies a file of this computer to the machine, as Write does.
func (m *Machine) CopyIn(from, to string, mode os.FileMode) {
	m.t.Helper()
	content, err := os.ReadFile(from)
	if err != nil {
		m.t.Fatal(err)
	}
	m.Write(to, string(content), mode)
}

// Read returns a file of the machine's disk, also while it is off.
func (m *Machine) Read(file string) string {
	m.t.Helper()
	disk := m.disk()
	defer disk.Close()
	content, err := disk.ReadFile(strings.TrimPrefix(file, "/"))
	if err != nil {
		m.t.Fatal(err)
	}
	return string(content)
}

// An Entry is one line of the journal.
type Entry struct {
	At       time.Time
	Unit     string // that wrote it, or that systemd wrote about; empty for neither
	Priority int    // 0 (emergency) to 7 (debug)
	PID      int
	Message  string
}

// Journal returns what was logged since the machine's last boot, oldest first: by and about unit, or all when it is empty.
func (m *Machine) Journal(unit string) []Entry {
	m.t.Helper()
	argv := []string{"journalctl", "--boot", "--output=json", "--quiet", "--no-pager"}
	if unit != "" {
		argv = append(argv, "--unit="+unit)
	}
	m.Run("journalctl", "--sync")
	var entries []Entry
	for line := range strings.Lines(m.Run(argv...)) {
		var fields map[string]any
		if err := json.Unmarshal([]byte(line), &fields); err != nil {
			m.t.Fatalf("journal of machine %s: %v in %s", m.name, err, line)
		}
		text := func(key string) string {
			switch v := fields[key].(type) {
			case string:
				return v
			case []any: // bytes, for what is not printable
				var raw []byte
				for _, b := range v {
					if n, ok := b.(float64); ok {
						raw = append(raw, byte(n))
					}
				}
				return string(raw)
			}
			return ""
		}
		number := func(key string) int { n, _ := strconv.Atoi(text(key)); return n }
		unit := text("UNIT")
		if unit == "" {
			unit = text("_SYSTEMD_UNIT")
		}
		entries = append(entries, Entry{
			At:   time.UnixMicro(int64(number("__REALTIME_TIMESTAMP"))),
			Unit: unit, Priority: number("PRIORITY"), PID: number("_PID"), Message: text("MESSAGE"),
		})
	}
	return entries
}
