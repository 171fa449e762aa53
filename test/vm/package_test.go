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

// keysElsewhere has the agent put its certificate, copies for a group and its log into folders of the owner's, and then the owner break the settings.
func keysElsewhere(p *packaged) {
	p.t.Helper()
	p.Sh(`install -d -o istio-proxy -g istio-proxy /srv/mesh /srv/log /etc/systemd/system/wingman.service.d
		printf '[Service]\nReadWritePaths=/srv/mesh /srv/log\n' >/etc/systemd/system/wingman.service.d/elsewhere.conf; systemctl daemon-reload`)
	p.Write(settingsFile, p.Read(settingsFile)+"identity: {outputDir: /srv/mesh, groups: [adm]}\nlog: {file: /srv/log/agent.log}\n", 0o644)
	p.Run("systemctl", "restart", "wingman")
	p.await("keys and a log elsewhere", func() bool {
		_, err := p.Try("sh", "-c", "test -s /srv/mesh/key.pem && test -s /srv/mesh/groups/adm/key.pem && test -s /srv/log/agent.log")
		return err == nil
	})
	p.Write(settingsFile, "identity: {outputDir: [broken\n", 0o644)
}

// killsCaller puts a program in the way of one that a maintainer script calls: it kills the script, once.
func (m *Machine) killsCaller(program string) {
	m.t.Helper()
	m.Write("/usr/sbin/"+program, // where dpkg's scripts look first, and rpm's too
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

// member is what holds where a version has joined and serves.
func member(version string) expected {
	return expected{version: version, enabled: "enabled", member: true}
}

// stopped is what holds where a version is installed and the agent, which ran once, does not run.
func stopped(version, enabled string) expected {
	return expected{version: version, enabled: enabled, kept: true}
}

// removed is what holds after the removal of a package that was a member.
func (by packager) removed() expected { return expected{kept: true, enabled: by.leaves} }

// joins is a first join of oldVersion, and other versions under traffic; it ends with a member of oldVersion.
func joins() []chapter {
	return []chapter{
		{name: "join", do: join, want: member(oldVersion)},
		{name: "upgrade", do: putAndWait(newVersion), want: member(newVersion), load: true},
		{name: "downgrade", do: putAndWait(oldVersion), want: member(oldVersion), load: true},
	}
}

// ownersWord: what the owner stopped, disabled or masked stays so whatever version comes. It begins with oldVersion and ends with a member of newVersion.
func ownersWord() []chapter {
	return []chapter{
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
	}
}

// removals: two ways out, and after each of them back without a token. It begins with a member, and ends with one of newVersion.
func removals(by packager) []chapter {
	reinstall := func(version string) func(*packaged) {
		return func(p *packaged) { p.put(version); p.Sh(p.resume) }
	}
	return []chapter{
		{name: "remove", do: func(p *packaged) {
			queries := startQueries(p.t.(*testing.T), p.Machine, stub, lookUp("www.example.com."))
			p.takeOut()
			if sent, lost := queries.end(); lost > 0 {
				p.t.Errorf("%d of %d queries were lost, want none", lost, sent)
			}
			p.Run("rm", "/run/secrets/tokens/istio-token")
		}, want: by.removed()},
		{name: "reinstall", do: reinstall(oldVersion), want: member(oldVersion)},
		{name: "remove with agent and Envoy dead and the program broken", do: func(p *packaged) {
			broken(p)
			p.takeOut()
			mended(p)
		}, want: expected{kept: true, enabled: by.leaves, complaints: deadAgent}},
		{name: "reinstall after that", do: reinstall(newVersion), want: member(newVersion)},
	}
}
