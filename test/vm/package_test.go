package vm

import (
	"strings"
	"testing"
	"time"
)

// A chapter is one thing that happens to a package, and what must hold after it.
type chapter struct {
	name string
	do   func(*packaged)
	want expected
	// Requests both ways and queries go on meanwhile, 200 a second each, and none may be lost.
	load bool
}

// live takes a package through its chapters.
func (p *packaged) live(t *testing.T, steps []chapter) {
	for _, s := range steps {
		if !t.Run(strings.ReplaceAll(s.name, " ", "_"), func(t *testing.T) {
			p.Tell(t)
			began := time.Now()
			var end []func()
			if s.load {
				in, out := p.inbound(), p.outbound()
				names := startQueries(t, p.Machine, stub, lookUp("webapp.istioinaction.svc.cluster.local."))
				end = []func(){func() { in.mustBeWhole("inbound") }, func() { out.mustBeWhole("outbound") }, func() {
					if sent, lost := names.end(); lost > 0 || sent < 100 {
						t.Errorf("%d of %d queries were lost, want none of at least 100", lost, sent)
					}
				}}
				p.await("traffic", func() bool { return in.answered() > 100 && out.answered() > 100 })
			}
			s.do(p)
			if s.load {
				p.awaitEnvoy() // by the agent that is there now
			}
			for _, do := range end {
				do()
			}
			done := time.Now()
			p.look(s.want)
			t.Logf("%s, and %s to look", done.Sub(began).Round(10*time.Millisecond), time.Since(done).Round(10*time.Millisecond))
		}) {
			t.Fatal("what comes after this builds on it")
		}
	}
}

func putVersion(version string) func(*packaged) { return func(p *packaged) { p.put(version) } }

// putAndWait is an upgrade, or downgrade, of an agent that runs: it must be another process then, and its stream another one.
func putAndWait(version string) func(*packaged) {
	return func(p *packaged) {
		pid, events := p.mainPID("wingman.service"), len(p.istiod.Events())
		p.put(version)
		p.waitActive("wingman.service")
		if p.mainPID("wingman.service") == pid {
			p.t.Error("the agent was not restarted")
		}
		p.await("a stream of the new agent", func() bool {
			all := p.istiod.Entries()
			return len(p.istiod.Events()) > events && len(all) == 1 && serving(all[0])
		})
	}
}

// join is what an owner does once.
func join(p *packaged) {
	p.mesh.settings() // an edit of the settings file
	p.settings = p.Sh("cat " + settingsFile)
	p.token()
	p.Run("systemctl", "enable", "--quiet", "--now", "wingman")
}

// killsCaller puts a program in the way of one that a maintainer script calls: it kills the script, once.
func (p *packaged) killsCaller(program string) {
	p.t.Helper()
	p.Write("/usr/sbin/"+program, // where dpkg's scripts look first, and rpm's too
		"#!/bin/sh\nrm -f \"$0\"\nkill -KILL $PPID\n", 0o755)
}

// mustFail runs what is to be broken off.
func (p *packaged) mustFail(line string, args ...string) {
	p.t.Helper()
	if out, err := p.Try(append([]string{"sh", "-ec", line, "sh"}, args...)...); err == nil {
		p.t.Errorf("%s was not broken off: %s", line, out)
	}
}

func (p *packaged) reload() { p.t.Helper(); p.Run("systemctl", "daemon-reload") }

// broken makes the agent and Envoy's supervisor die and stay dead: systemd would start them again much later, and the program is of no use any more.
func broken(p *packaged) {
	p.t.Helper()
	for _, unit := range []string{"wingman.service", "wingman-proxy.service"} {
		p.Write("/run/systemd/system/"+unit+".d/late.conf", "[Service]\nRestartSec=1h\n", 0o644)
	}
	p.reload()
	p.Write("/usr/bin/wingman", "#!/bin/sh\nexit 1\n", 0o755)
	for _, unit := range []string{"wingman.service", "wingman-proxy.service"} {
		p.Run("systemctl", "kill", "--signal=KILL", unit)
		p.await(unit+" to be dead", func() bool { return p.show(unit, "SubState") == "auto-restart" })
	}
	if got := p.allRules(); got == p.bare {
		p.t.Error("the rules are out already: nothing is shown")
	}
}

// deadAgent are the complaints that broken is the cause of.
const deadAgent = "DNS is taken away|Failed to|ended badly|code=killed"

// mended undoes what broken left in /run.
func mended(p *packaged) {
	p.t.Helper()
	p.Sh("rm -r /run/systemd/system/wingman*.d; systemctl daemon-reload")
}

// debSteps are the life of a .deb.
func debSteps() []chapter {
	fresh := expected{version: oldVersion, enabled: "disabled"}
	member := func(version string) expected { return expected{version: version, enabled: "enabled", member: true} }
	stopped := func(version, enabled string) expected {
		return expected{version: version, enabled: enabled, kept: true}
	}
	waiting := func(version string) expected {
		return expected{version: version, enabled: "enabled", waits: true, kept: true}
	}
	removed := expected{kept: true, enabled: "masked"}
	return []chapter{
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
			p.mustFail(p.remove)
		}, want: expected{version: oldVersion, unfinished: "ri", enabled: "enabled", waits: true, kept: true}},
		{name: "remove what waits", do: func(p *packaged) { p.Run("sh", "-c", p.remove) }, want: removed},
		{name: "install what waited", do: func(p *packaged) {
			p.put(oldVersion)
			p.Sh("mv /root/cluster.env /var/lib/istio/envoy")
		}, want: expected{version: oldVersion, enabled: "enabled", kept: true}},
		{name: "join", do: join, want: member(oldVersion)},
		{name: "upgrade", do: putAndWait(newVersion), want: member(newVersion), load: true},
		{name: "dpkg-reconfigure", do: func(p *packaged) { p.Run("dpkg-reconfigure", "wingman") }, want: member(newVersion), load: true},
		{name: "downgrade", do: putAndWait(oldVersion), want: member(oldVersion), load: true},

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
			p.mustFail(p.remove)
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

		// Removals, and back without a token.
		{name: "remove", do: func(p *packaged) {
			queries := startQueries(p.t.(*testing.T), p.Machine, stub, lookUp("www.example.com."))
			p.Run("sh", "-c", p.remove)
			if sent, lost := queries.end(); lost > 0 {
				p.t.Errorf("%d of %d queries were lost, want none", lost, sent)
			}
			p.Run("rm", "/run/secrets/tokens/istio-token")
		}, want: removed},
		{name: "reinstall", do: func(p *packaged) { p.put(oldVersion); p.Run("systemctl", "start", "wingman") }, want: member(oldVersion)},
		{name: "remove with agent and Envoy dead and the program broken", do: func(p *packaged) {
			broken(p)
			p.Run("sh", "-c", p.remove)
			mended(p)
		}, want: expected{kept: true, enabled: "masked", complaints: deadAgent}},
		{name: "reinstall after that", do: func(p *packaged) { p.put(newVersion); p.Run("systemctl", "start", "wingman") }, want: member(newVersion)},
		{name: "remove with the agent masked", do: func(p *packaged) {
			p.Run("systemctl", "mask", "--quiet", "wingman.service")
			p.Run("sh", "-c", p.remove)
		}, want: expected{kept: true, enabled: "masked", complaints: "Failed to add fd to store"}}, // of a masked unit systemd keeps no sockets
		{name: "reinstall masked", do: func(p *packaged) {
			p.put(oldVersion)
			p.Run("systemctl", "unmask", "--quiet", "wingman.service")
			p.Run("systemctl", "enable", "--quiet", "--now", "wingman.service")
		}, want: member(oldVersion)},
		{name: "remove again", do: func(p *packaged) { p.Run("sh", "-c", p.remove) }, want: removed},
		{name: "purge what was removed", do: func(p *packaged) { p.Run("sh", "-c", p.purge); p.settings = "" }, want: expected{}},
		{name: "install once more", do: func(p *packaged) { p.put(newVersion); join(p) }, want: member(newVersion)},
		{name: "purge a member", do: func(p *packaged) { p.Run("sh", "-c", p.purge); p.settings = "" }, want: expected{}},
	}
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
