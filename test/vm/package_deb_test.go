package vm

import (
	"slices"
	"testing"
)

// debSteps are the life of a .deb.
func debSteps() []chapter {
	fresh := expected{version: oldVersion, enabled: "disabled"}
	waiting := func(version string) expected {
		return expected{version: version, enabled: "enabled", waits: true, kept: true}
	}
	removed := dpkg.removed()
	return slices.Concat([]chapter{
		{name: "install", do: putVersion(oldVersion), want: fresh},
		{name: "install again", do: putVersion(oldVersion), want: fresh},
		{name: "wait for files", do: func(p *packaged) {
			p.Sh("mv /var/lib/istio/envoy/cluster.env /root")
			p.Run("systemctl", "enable", "--quiet", "--now", "wingman")
		}, want: waiting(oldVersion)},
		{name: "upgrade while it waits", do: putVersion(newVersion), want: waiting(newVersion)},
		{name: "downgrade while it waits", do: putVersion(oldVersion), want: waiting(oldVersion)},
		{name: "removal of what waits killed", do: func(p *packaged) {
			p.killsCaller("systemd-run")
			p.mustFail(p.remove, "wingman")
		}, want: expected{version: oldVersion, unfinished: "ri", enabled: "enabled", waits: true, kept: true}},
		{name: "remove what waits", do: (*packaged).takeOut, want: removed},
		{name: "install what waited", do: func(p *packaged) {
			p.put(oldVersion)
			p.Sh("mv /root/cluster.env /var/lib/istio/envoy")
		}, want: expected{version: oldVersion, enabled: "enabled", kept: true}},
	}, joins(), []chapter{
		{name: "dpkg-reconfigure", do: func(p *packaged) { p.Run("dpkg-reconfigure", "wingman") }, want: member(oldVersion), load: true},

		// Broken off, and taken up again.
		{name: "only unpacked, and the agent crashes", do: func(p *packaged) {
			p.Run("dpkg", "--force-confold", "--unpack", p.at[newVersion])
			p.kill("wingman.service", "KILL")
		}, want: expected{version: newVersion, unfinished: "iU", enabled: "enabled", member: true}, load: true},
		{name: "configured", do: func(p *packaged) { p.Run("dpkg", "--force-confold", "--configure", "--pending") }, want: member(newVersion), load: true},
		{name: "postinst killed", do: func(p *packaged) {
			p.killsCaller("systemd-sysusers")
			p.mustFail(p.install, p.at[oldVersion])
		}, want: expected{version: oldVersion, unfinished: "iF", enabled: "enabled", member: true, runs: newVersion}, load: true},
		{name: "configured after that", do: func(p *packaged) { p.Run("dpkg", "--force-confold", "--configure", "--pending") }, want: member(oldVersion), load: true},
		{name: "prerm of the removal killed", do: func(p *packaged) {
			p.killsCaller("systemd-run")
			p.mustFail(p.remove, "wingman")
			p.envoy = 0 // it was stopped, and is another one
		}, want: expected{version: oldVersion, unfinished: "ri", enabled: "enabled", member: true}}, // to be removed, and installed
		{name: "upgrade after that", do: putAndWait(newVersion), want: member(newVersion), load: true},

		// The owner's word holds.
		{name: "policy-rc.d forbids", do: func(p *packaged) {
			p.Write("/usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n", 0o755)
			pid := p.mainPID("wingman.service")
			p.put(oldVersion)
			if now := p.mainPID("wingman.service"); now != pid {
				p.t.Error("the agent was restarted all the same")
			}
			p.Run("rm", "/usr/sbin/policy-rc.d")
		}, want: expected{version: oldVersion, enabled: "enabled", member: true, runs: newVersion}, load: true},
	}, ownersWord(), removals(dpkg), []chapter{
		{name: "remove with the agent masked", do: func(p *packaged) {
			p.Run("systemctl", "mask", "--quiet", "wingman.service")
			p.takeOut()
		}, want: expected{kept: true, enabled: "masked", complaints: "Failed to add fd to store"}}, // of a masked unit systemd keeps no sockets
		{name: "reinstall masked", do: func(p *packaged) {
			p.put(oldVersion)
			p.Run("systemctl", "unmask", "--quiet", "wingman.service")
			p.Run("systemctl", "enable", "--quiet", "--now", "wingman.service")
		}, want: member(oldVersion)},
		{name: "remove again", do: (*packaged).takeOut, want: removed},
		{name: "purge what was removed", do: func(p *packaged) { p.sh(p.purge, "wingman"); p.settings = "" }, want: expected{}},
		{name: "install once more", do: func(p *packaged) { p.put(newVersion); join(p) }, want: member(newVersion)},
		{name: "purge a member that has keys and logs elsewhere", do: func(p *packaged) {
			keysElsewhere(p)
			p.sh(p.purge, "wingman")
			p.settings = ""
			p.Run("rmdir", "/srv/mesh", "/srv/log") // the owner's
		}, want: expected{}},
	})
}

// A .deb from its first installation to its purge, with the real Envoy and under traffic, each step followed by a look at all that it may have touched.
func TestADebianPackageThroughItsLife(t *testing.T) {
	for release, name := range map[Release]string{Bookworm: "deb12", Trixie: "deb13"} {
		t.Run(string(release), func(t *testing.T) {
			t.Parallel()
			newPackaged(t, release, name, dpkg).live(t, debSteps())
		})
	}
}
