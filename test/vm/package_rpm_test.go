package vm

import (
	"testing"
)

// rpmSteps are the life of an .rpm.
func rpmSteps() []chapter {
	const preset = "/etc/systemd/system-preset/10-owner.preset"
	member := func(version string) expected {
		return expected{version: version, enabled: "enabled", member: true}
	}
	stopped := func(version, enabled string) expected {
		return expected{version: version, enabled: enabled, kept: true}
	}
	remove := func(p *packaged) { p.Run("sh", "-c", p.remove) }
	removed := expected{kept: true}
	return []chapter{
		{name: "install", do: putVersion(oldVersion), want: expected{version: oldVersion, enabled: "disabled"}},
		{name: "remove what never ran", do: remove, want: expected{}},
		{name: "install where a preset says yes", do: func(p *packaged) {
			p.Sh("echo 'enable wingman*' >" + preset)
			p.put(oldVersion)
			p.Run("rm", preset)
		}, want: expected{version: oldVersion, enabled: "enabled", kept: true}},
		{name: "join", do: join, want: member(oldVersion)},
		{name: "upgrade", do: putAndWait(newVersion), want: member(newVersion), load: true},
		{name: "downgrade", do: putAndWait(oldVersion), want: member(oldVersion), load: true},
		{name: "scriptlet killed", do: func(p *packaged) {
			p.killsCaller("systemd-sysusers")
			if out, _ := p.Try("sh", "-ec", p.packager.install, "sh", p.at[newVersion]); p.sh("ls /usr/sbin/systemd-sysusers 2>/dev/null || :") != "" {
				p.t.Errorf("the scriptlet was not killed: %s", out)
			}
		}, want: expected{version: newVersion, enabled: "enabled", member: true, runs: oldVersion}, load: true},
		{name: "downgrade after that", do: putAndWait(oldVersion), want: member(oldVersion), load: true},
		{name: "stopped stays stopped", do: func(p *packaged) {
			p.Run("systemctl", "stop", "wingman")
			p.put(newVersion)
		}, want: stopped(newVersion, "enabled")},
		{name: "disabled stays disabled", do: func(p *packaged) {
			p.Run("systemctl", "disable", "--quiet", "wingman.service", "wingman-rules.service")
			p.put(oldVersion)
		}, want: stopped(oldVersion, "disabled")},
		{name: "masked stays masked", do: func(p *packaged) {
			p.Run("systemctl", "mask", "--quiet", "wingman.service", "wingman-rules.service")
			p.put(newVersion)
		}, want: stopped(newVersion, "masked")},
		{name: "started again", do: func(p *packaged) {
			p.Run("systemctl", "unmask", "--quiet", "wingman.service", "wingman-rules.service")
			p.Run("systemctl", "enable", "--quiet", "--now", "wingman.service")
		}, want: member(newVersion)},
		{name: "remove", do: func(p *packaged) {
			remove(p)
			p.Run("rm", "/run/secrets/tokens/istio-token")
		}, want: removed},
		{name: "reinstall", do: func(p *packaged) {
			p.put(oldVersion)
			p.Run("mv", p.kept, settingsFile)
			p.Run("systemctl", "enable", "--quiet", "--now", "wingman.service")
		}, want: member(oldVersion)},
		{name: "remove with agent and Envoy dead and the program broken", do: func(p *packaged) {
			broken(p)
			remove(p)
			mended(p)
		}, want: expected{kept: true, complaints: deadAgent}},
	}
}

// An .rpm by the real rpm, on a machine whose systemd its scriptlets talk to. The machine is Debian's but for the helpers of Debian's own scripts.
func TestAnRPMPackageThroughItsLife(t *testing.T) {
	t.Parallel()
	newPackaged(t, Trixie, "rpm13", rpm).live(t, rpmSteps())
}
