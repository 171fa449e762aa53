package vm

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"wingman/agent/envoy"
	"wingman/agent/envoy/proxy"
)

// buildEnvoyPackage makes wingman-envoy 1 for this computer.
func buildEnvoyPackage(t *testing.T) (deb string) {
	t.Helper()
	Require(t)
	dir := t.TempDir()
	cmd := exec.Command("sh", "../../packaging/envoy/build.sh", runtime.GOARCH)
	cmd.Env = append(cmd.Environ(), "DIST="+dir, "KINDS=deb")
	must(t, cmd)
	found, err := filepath.Glob(filepath.Join(dir, "*-1_*.deb"))
	if err != nil || len(found) != 1 {
		t.Fatalf("packaging/envoy/build.sh left %q, want one file (%v)", found, err)
	}
	return found[0]
}

// envoyVariants makes of 1.deb, in /root of the machine: 2.deb, which is a later one of the same program, and broken.deb, a still later one whose
// program cannot run.
const envoyVariants = `
cd /root; dpkg-deb -R 1.deb variant
sed -i 's/^\(Version: .*\)-1$/\1-2/' variant/DEBIAN/control; dpkg-deb -Zgzip -z1 --build variant 2.deb
sed -i 's/^\(Version: .*\)-2$/\1-3/' variant/DEBIAN/control
printf '#!/bin/sh\necho "error: no such instruction" >&2; exit 132\n' >variant/usr/libexec/wingman-envoy/envoy
cd variant; md5sum usr/libexec/wingman-envoy/envoy >DEBIAN/md5sums; cd ..
dpkg-deb -Zgzip -z1 --build variant broken.deb; rm -r variant`

// The package of Envoy from its installation to its removal on a machine whose traffic goes through it.
func TestAnEnvoyPackageThroughItsLife(t *testing.T) {
	first := buildEnvoyPackage(t)
	m := newMeshWithout(t)
	setResources(t, m.istiod)
	serveOther(t, m.segment)
	m.Boot()
	m.CopyIn(first, "/root/1.deb", 0o644)
	m.Sh(envoyVariants)
	installEnvoy := func(deb string) string {
		out, err := m.Command("dpkg", "--install", "/root/"+deb+".deb").CombinedOutput()
		if err != nil {
			t.Fatalf("dpkg: %v\n%s", err, out)
		}
		return string(out)
	}
	state := func() (s proxy.State) {
		if err := json.Unmarshal([]byte(m.Run("cat", "/run/wingman-proxy/state.json")), &s); err != nil {
			t.Fatal(err)
		}
		return s
	}
	installEnvoy("1")
	m.install(buildPackages(t, "deb")[oldVersion])
	m.settings()
	m.token()
	m.Run("systemctl", "enable", "--now", "wingman")
	m.entry("joined", serving)
	if now := m.awaitEnvoy(); now.Program != envoy.Packaged {
		t.Fatalf("Envoy is %s, want %s", now.Program, envoy.Packaged)
	}
	m.await("Envoy's version in the status", func() bool { return strings.Contains(m.shown(), envoy.Packaged+" 1.40.0") })
	agent, supervisor := m.mainPID("wingman.service"), m.mainPID("wingman-proxy.service")

	// traffic has an event happen while there is traffic, and fails for every request that is lost without having been in flight when Envoy ended.
	traffic := func(event string, do func()) {
		before := time.Now()
		defer func() { t.Logf("%s: %.1f s", event, time.Since(before).Seconds()) }()
		kept, err := m.visit()
		if err != nil {
			t.Fatal(err)
		}
		in, out := m.inbound(), m.outbound()
		m.await("traffic", func() bool { return in.answered() > 50 && out.answered() > 50 })
		do()
		from, to := in.answered(), out.answered()
		m.await("traffic again", func() bool { return in.answered() > from+50 && out.answered() > to+50 })
		var ends []time.Time
		for _, e := range m.Journal("wingman-proxy.service") {
			if e.At.After(before) && (strings.HasPrefix(e.Message, "Envoy has ended") || strings.HasPrefix(e.Message, "Envoy ended")) {
				ends = append(ends, e.At)
			}
		}
		for what, r := range map[string]*requests{"inbound": in, "outbound": out} {
			sent, failed := r.end()
			t.Logf("%s, %s: %d of %d lost, %d ends of Envoy", event, what, len(failed), sent, len(ends))

			told := 0
			for _, f := range failed {
				if told < 3 && !slices.ContainsFunc(ends, func(end time.Time) bool { return f.began.Before(end) && f.ended.After(end.Add(-time.Second)) }) {
					t.Errorf("%s, %s: a request was lost that was not in flight when Envoy ended: begun %s, ended %s: %v", event, what,
						f.began.Format("15:04:05.000"), f.ended.Format("15:04:05.000"), f.err)
					told++
				}
			}
		}
		if len(ends) == 0 {
			if _, err := kept.get("/"); err != nil {
				t.Errorf("%s: a kept connection broke: %v", event, err)
			}
		}
		if now := m.mainPID("wingman.service"); now != agent {
			t.Errorf("%s: the agent is process %d, want %d as before", event, now, agent)
		}
		if now := m.mainPID("wingman-proxy.service"); now != supervisor {
			t.Errorf("%s: the supervisor is process %d, want %d as before", event, now, supervisor)
		}
	}
	replaced := func(event string, do func()) {
		t.Helper()
		was := state()
		traffic(event, do)
		if now := state(); now.PID == was.PID || now.Starts != was.Starts+1 || now.Phase != proxy.PhaseLive || now.Outdated+now.Refused != "" {
			t.Errorf("%s: the state was %+v and is %+v, want another Envoy", event, was, now)
		}
	}
	stays := func(event string, do func()) {
		t.Helper()
		was := state()
		traffic(event, do)
		if now := state(); now.PID != was.PID || now.Phase != proxy.PhaseLive {
			t.Errorf("%s: the state was %+v and is %+v, want the same Envoy", event, was, now)
		}
	}
	degraded := func(text string) {
		t.Helper()
		m.await("a status that says "+text, func() bool {
			r, err := m.status()
			return err == nil && strings.Contains(strings.Join(r.Degraded, "\n"), text)
		})
	}

	replaced("an upgrade", func() { installEnvoy("2") })
	replaced("a downgrade", func() { installEnvoy("1") })
	stays("the scripts again", func() { m.Run("/var/lib/dpkg/info/wingman-envoy.postinst", "configure", "1.40.0-2") })
	replaced("a reload of the unit", func() { m.Run("systemctl", "reload", "wingman-proxy") })
	m.mustBeQuiet()

	// A program that cannot run takes nobody's place, and the package manager goes on.
	stays("an upgrade to a broken one", func() {
		if out := installEnvoy("broken"); !strings.Contains(out, "no such instruction") {
			t.Errorf("dpkg says %s\nwant the reason why Envoy stays", out)
		}
	})
	degraded("no such instruction")
	if out, err := m.Try("systemctl", "reload", "wingman-proxy"); err == nil {
		t.Errorf("a reload with a broken program succeeds: %s", out)
	}
	replaced("the way back from it", func() { installEnvoy("2") })

	// Without istiod the next one would have nothing to serve.
	m.istiod.Stop()
	stays("an upgrade while istiod is away", func() {
		if out := installEnvoy("1"); !strings.Contains(out, "istiod is away") {
			t.Errorf("dpkg says %s", out)
		}
	})
	degraded("another file lies at")
	if err := m.segment.Do(m.istiod.Start); err != nil {
		t.Fatal(err)
	}
	m.entry("joined again", serving)
	replaced("the replacement once istiod is back", func() { m.Run("wingman", "envoy", "replace") })

	stays("a removal", func() { m.Run("dpkg", "--purge", "wingman-envoy") })
	degraded("is gone")
	if left, err := m.Try("find", "/usr", "/etc", "/var/lib", "-name", "*wingman-envoy*", "-not", "-path", "/usr/share/man/*"); err != nil || left != "" {
		t.Errorf("the purge leaves %s (%v)", left, err)
	}
	replaced("an installation after that", func() { installEnvoy("2") })

	// Another Envoy than the package's is left alone.
	m.Sh("cp " + envoy.Packaged + " /usr/local/bin/envoy")
	replaced("Istio's own place", func() {
		m.Run("wingman", "envoy", "replace")
		other := state()
		installEnvoy("1")
		if now := state(); now.PID != other.PID || now.Program != "/usr/local/bin/envoy" {
			t.Errorf("an upgrade of the package changed %+v to %+v", other, now)
		}
	})
	m.Run("dpkg", "--remove", "wingman-envoy")
	m.Run("dpkg", "--purge", "wingman")
	if out, _ := m.Try("pgrep", "-a", "envoy"); out != "" {
		t.Errorf("processes are left: %s", out)
	}
}

// shown is what `wingman status` prints.
func (m *Machine) shown() string {
	m.t.Helper()
	out, _ := m.Try("wingman", "status") // its exit status says how well the machine is
	return fmt.Sprint(out)
}
