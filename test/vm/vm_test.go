package vm

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The machines themselves, before anything is tested on them.
func TestAMachineLivesThroughItsLife(t *testing.T) {
	for _, release := range []Release{Bookworm, Trixie} {
		t.Run(string(release), func(t *testing.T) { livesThroughItsLife(t, release) })
	}
}

func livesThroughItsLife(t *testing.T, release Release) {
	segment := NewSegment(t)
	m := segment.MachineOf(t, release, "forum", "10.99.0.2/24")
	other := segment.MachineOf(t, release, "catalog", "10.99.0.3/24")
	m.Write("/etc/greeting", "hello\n", 0o640)
	m.Boot()
	other.Boot()
	if got := m.Run("systemctl", "is-system-running"); got != "running" {
		t.Errorf("the machine is %s, want running\n%s", got, m.Run("systemctl", "--failed"))
	}
	if got := m.Run("cat", "/etc/greeting"); got != "hello" {
		t.Errorf("the file written before the boot holds %q, want hello", got)
	}
	if got := m.Run("hostname"); got != "forum" {
		t.Errorf("its name is %s, want forum", got)
	}
	for _, program := range []string{"iptables", "ip6tables", "nft", "sshd", "dig", "resolvectl", "ip", "busctl"} {
		if _, err := m.Try("sh", "-c", "command -v "+program); err != nil {
			t.Errorf("%s is not installed", program)
		}
	}
	if _, err := m.Try("sh", "-c", "echo sorry >&2; exit 7"); err == nil || !strings.Contains(err.Error(), "exit status 7") || !strings.Contains(err.Error(), "sorry") {
		t.Errorf("error %v, want the status and what was said", err)
	}

	// The two see each other; a server opened inside Do is the machine's.
	m.Run("systemctl", "start", "systemd-networkd-wait-online")
	var l net.Listener
	if err := m.Do(func() (err error) { l, err = net.Listen("tcp", "10.99.0.2:8080"); return err }); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := other.Do(func() error {
		conn, err := net.Dial("tcp", "10.99.0.2:8080")
		if err == nil {
			conn.Close()
		}
		return err
	}); err != nil {
		t.Errorf("catalog cannot reach forum: %v", err)
	}

	first := m.Run("cat", "/proc/sys/kernel/random/boot_id", "/etc/machine-id")
	m.Run("sh", "-c", "echo remembered >/var/lib/memory; logger -t test before the reboot")
	m.Reboot()
	if got := m.Read("/var/lib/memory"); got != "remembered\n" {
		t.Errorf("after a reboot the file holds %q", got)
	}
	if entries := m.Journal(""); len(entries) == 0 || strings.Contains(fmt.Sprint(entries), "before the reboot") {
		t.Errorf("the journal has %d entries of this boot, or some of the last", len(entries))
	}
	if id := m.Run("cat", "/etc/machine-id"); !strings.HasSuffix(first, id) {
		t.Errorf("the machine id changed from %s to %s", first, id)
	}

	m.PowerCut()
	if m.Do(func() error { return nil }) == nil {
		t.Error("the machine answers without power")
	}
	m.Boot()
	if got := m.Run("systemctl", "is-system-running"); got != "running" {
		t.Errorf("after a power cut the machine is %s, want running", got)
	}
	m.Run("sh", "-c", "logger -t test --priority user.err something broke")
	found := false
	for _, e := range m.Journal("") {
		found = found || e.Message == "something broke" && e.Priority == 3 && !e.At.IsZero()
	}
	if !found {
		t.Error("what was logged is not in the journal")
	}
	m.PowerOff()
	groups, err := filepath.Glob(fmt.Sprintf("/sys/fs/cgroup/*/wingman-vm-%d-forum-*", os.Getpid()))
	if err != nil || len(groups) > 0 {
		t.Errorf("cgroups are left: %v %v", groups, err)
	}
}
