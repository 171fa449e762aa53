package vm

import "testing"

// A package that the image of all machines lacks, on a machine that asks for it, and not on others.
func TestAMachineWithPackagesOfItsOwn(t *testing.T) {
	segment := NewSegment(t)
	m := segment.MachineWith(t, ManagedByAnsible, "managed", "10.99.0.2/24")
	m.Boot()
	if got := m.Run("python3", "-c", "import apt, json; print('usable')"); got != "usable" {
		t.Errorf("python3 says %q", got)
	}
	if got := m.Run("systemctl", "is-system-running"); got != "running" {
		t.Errorf("the machine is %s, want running\n%s", got, m.Run("systemctl", "--failed"))
	}
	if got := m.Sh("readlink /etc/resolv.conf; ls /usr/sbin/policy-rc.d 2>/dev/null || :"); got != "../run/systemd/resolve/stub-resolv.conf" {
		t.Errorf("making the image left %q", got)
	}
}
