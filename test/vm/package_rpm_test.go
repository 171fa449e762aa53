package vm

import (
	"slices"
	"testing"
)

// rpmSteps are the life of an .rpm.
func rpmSteps() []chapter {
	const preset = "/etc/systemd/system-preset/10-owner.preset"
	return slices.Concat([]chapter{
		{name: "install", do: putVersion(oldVersion), want: expected{version: oldVersion, enabled: "disabled"}},
		{name: "remove what never ran", do: (*packaged).takeOut, want: expected{}},
		{name: "install where a preset says yes", do: func(p *packaged) {
			p.Sh("echo 'enable wingman*' >" + preset)
			p.put(oldVersion)
			p.Run("rm", preset)
		}, want: expected{version: oldVersion, enabled: "enabled", kept: true}},
	}, joins(), []chapter{
		{name: "scriptlet killed", do: func(p *packaged) {
			p.killsCaller("systemd-sysusers")
			if out, _ := p.Try("sh", "-ec", p.packager.install, "sh", p.at[newVersion]); p.sh("ls /usr/sbin/systemd-sysusers 2>/dev/null || :") != "" {
				p.t.Errorf("the scriptlet was not killed: %s", out)
			}
		}, want: expected{version: newVersion, enabled: "enabled", member: true, runs: oldVersion}, load: true},
		{name: "downgrade after that", do: putAndWait(oldVersion), want: member(oldVersion), load: true},
	}, ownersWord(), removals(rpm), []chapter{
		{name: "remove again", do: (*packaged).takeOut, want: rpm.removed()},
	})
}

// An .rpm by the real rpm, on a machine whose systemd its scriptlets talk to. The machine is Debian's but for the helpers of Debian's own scripts.
func TestAnRPMPackageThroughItsLife(t *testing.T) {
	t.Parallel()
	newPackaged(t, Trixie, "rpm13", rpm).live(t, rpmSteps())
}
