package vm

import (
	"strings"
	"testing"
)

// An application's group is named in the settings, and that is all: under the unit, whose process may change no file's owner, its members read copies
// that follow a renewal, and nobody else does.
func TestAGroupThatIsNamedReadsTheCertificate(t *testing.T) {
	m := newMesh(t)
	m.join()
	m.Sh("groupadd myapp && useradd -G myapp member && useradd other")
	m.Write(settingsFile, m.Read(settingsFile)+"identity: {groups: [myapp]}\n", 0o644)
	m.Run("systemctl", "reload", "wingman")
	const key = "/etc/certs/groups/myapp/key.pem"
	read := func(user string) (string, error) {
		return m.Try("setpriv", "--reuid", user, "--regid", user, "--init-groups", "cat", key)
	}
	m.await("a copy for the group", func() bool { _, err := read("member"); return err == nil })
	before, err := read("member")
	if err != nil || !strings.Contains(before, "PRIVATE KEY") {
		t.Fatalf("%v: %s", err, before)
	}
	if out, err := read("other"); err == nil {
		t.Errorf("somebody else reads the key: %.40s", out)
	}
	if got := m.Sh("stat -Lc '%a %U %G' " + key + " /etc/certs/groups/myapp"); got != "640 istio-proxy myapp\n2750 istio-proxy myapp" {
		t.Errorf("modes and owners are\n%s", got)
	}
	m.Run("wingman", "cert", "renew")
	m.await("another copy after the renewal", func() bool { after, err := read("member"); return err == nil && after != before })
	m.Sh("systemctl restart wingman")
	m.await("the agent after its restart", func() bool {
		return strings.Contains(m.Sh("wingman cert show || true"), "copies       for group myapp")
	})
}
