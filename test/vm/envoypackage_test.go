package vm

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
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

// Packages of Envoy that the tests install over each other, by their own number after Envoy's version: two of the same program, and a still later one whose
// program cannot run.
const (
	firstEnvoy  = "1"
	secondEnvoy = "2"
	brokenEnvoy = "3"
)

// buildEnvoyPackages makes them for this computer.
func buildEnvoyPackages(t *testing.T, kind string) map[string]string {
	t.Helper()
	Require(t)
	dir, made := t.TempDir(), map[string]string{}
	for _, step := range []struct{ release, line string }{
		{firstEnvoy, `sh packaging/envoy/build.sh "$ARCH"`},
		{secondEnvoy, `sed -i '/^release:/s/1/2/' "$DIST/$ARCH/envoy.yaml"; again`},
		{brokenEnvoy, `sed -i '/^release:/s/2/3/' "$DIST/$ARCH/envoy.yaml"; program=$DIST/$ARCH/envoy/envoy/_bin/envoy
			printf '#!/bin/sh\necho "error: no such instruction" >&2; exit 132\n' >"$program"; again`},
	} {
		cmd := exec.Command("sh", "-euc", `again() { go run "$NFPM" package --config "$DIST/$ARCH/envoy.yaml" --packager "$KINDS" --target "$DIST/"; }; `+step.line)
		cmd.Dir = "../.."
		cmd.Env = append(os.Environ(), "DIST="+dir, "KINDS="+kind, "RELEASE="+firstEnvoy, "ARCH="+runtime.GOARCH, "NFPM="+nfpm)
		must(t, cmd)
		found, err := filepath.Glob(filepath.Join(dir, "wingman-envoy*-"+step.release+"[._]*."+kind))
		if err != nil || len(found) != 1 {
			t.Fatalf("wingman-envoy %s: found %q, want one file (%v)", step.release, found, err)
		}
		made[step.release] = found[0]
	}
	return made
}

// envoyLife is a machine whose traffic goes through an Envoy that a package brought.
type envoyLife struct {
	*mesh
	packager
	at                map[string]string // where the machine has the package of each number, and the agent's of each version
	agent, supervisor int               // processes; an upgrade of Envoy changes neither
}

// newEnvoyLife boots a machine and has it join with the first package of Envoy and the agent's old version.
func newEnvoyLife(t *testing.T, release Release, name string, by packager) *envoyLife {
	t.Helper()
	l := &envoyLife{mesh: newMeshOf(t, release, name), packager: by, at: map[string]string{}}
	setResources(t, l.istiod)
	serveOther(t, l.segment)
	l.Boot()
	l.Sh(by.prepare)
	for _, files := range []map[string]string{buildEnvoyPackages(t, by.kind), buildPackages(t, by.kind)} {
		for version, file := range files {
			l.at[version] = "/root/" + version + "." + by.kind
			l.CopyIn(file, l.at[version], 0o644)
		}
	}
	l.put(firstEnvoy)
	l.put(oldVersion)
	l.settings()
	l.token()
	l.Run("systemctl", "enable", "--now", "wingman")
	l.entry("joined", serving)
	if now := l.awaitEnvoy(); now.Program != envoy.Packaged {
		t.Fatalf("Envoy is %s, want %s", now.Program, envoy.Packaged)
	}
	l.await("Envoy's version in the status", func() bool { return strings.Contains(l.shown(), envoy.Packaged+" 1.40.0") })
	l.agent, l.supervisor = l.mainPID("wingman.service"), l.mainPID("wingman-proxy.service")
	return l
}

// line runs one of the packager's lines, and returns all that it says.
func (l *envoyLife) line(line string, args ...string) string {
	l.t.Helper()
	out, err := l.Command(append([]string{"sh", "-ec", line, "sh"}, args...)...).CombinedOutput()
	if err != nil {
		l.t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return string(out)
}

// put installs packages over what is there, all at once, and returns what the package manager says.
func (l *envoyLife) put(versions ...string) string {
	l.t.Helper()
	var files []string
	for _, v := range versions {
		files = append(files, l.at[v])
	}
	return l.line(l.packager.install, files...)
}

// state is what the supervisor wrote down.
func (l *envoyLife) state() (s proxy.State) {
	l.t.Helper()
	if err := json.Unmarshal([]byte(l.Run("cat", "/run/wingman-proxy/state.json")), &s); err != nil {
		l.t.Fatal(err)
	}
	return s
}

// traffic has an event happen while there is traffic, and fails for every request that is lost without having been in flight when Envoy ended.
func (l *envoyLife) traffic(event string, do func()) {
	l.t.Helper()
	before := time.Now()
	defer func() { l.t.Logf("%s: %.1f s", event, time.Since(before).Seconds()) }()
	kept, err := l.visit()
	if err != nil {
		l.t.Fatal(err)
	}
	in, out := l.inbound(), l.outbound()
	l.await("traffic", func() bool { return in.answered() > 50 && out.answered() > 50 })
	do()
	from, to := in.answered(), out.answered()
	l.await("traffic again", func() bool { return in.answered() > from+50 && out.answered() > to+50 })
	var ends []time.Time
	for _, e := range l.Journal("wingman-proxy.service") {
		if e.At.After(before) && (strings.HasPrefix(e.Message, "Envoy has ended") || strings.HasPrefix(e.Message, "Envoy ended")) {
			ends = append(ends, e.At)
		}
	}
	for what, r := range map[string]*requests{"inbound": in, "outbound": out} {
		sent, failed := r.end()
		l.t.Logf("%s, %s: %d of %d lost, %d ends of Envoy", event, what, len(failed), sent, len(ends))

		told := 0
		for _, f := range failed {
			if told < 3 && !slices.ContainsFunc(ends, func(end time.Time) bool { return f.began.Before(end) && f.ended.After(end.Add(-time.Second)) }) {
				l.t.Errorf("%s, %s: a request was lost that was not in flight when Envoy ended: begun %s, ended %s: %v", event, what,
					f.began.Format("15:04:05.000"), f.ended.Format("15:04:05.000"), f.err)
				told++
			}
		}
	}
	if len(ends) == 0 {
		if _, err := kept.get("/"); err != nil {
			l.t.Errorf("%s: a kept connection broke: %v", event, err)
		}
	}
	if now := l.mainPID("wingman.service"); now != l.agent {
		l.t.Errorf("%s: the agent is process %d, want %d as before", event, now, l.agent)
	}
	if now := l.mainPID("wingman-proxy.service"); now != l.supervisor {
		l.t.Errorf("%s: the supervisor is process %d, want %d as before", event, now, l.supervisor)
	}
}

// replaced has an event happen that puts another Envoy in the place of the one that runs.
func (l *envoyLife) replaced(event string, do func()) {
	l.t.Helper()
	was := l.state()
	l.traffic(event, do)
	if now := l.state(); now.PID == was.PID || now.Starts != was.Starts+1 || now.Phase != proxy.PhaseLive || now.Outdated+now.Refused != "" {
		l.t.Errorf("%s: the state was %+v and is %+v, want another Envoy", event, was, now)
	}
}

// stays has an event happen over which the Envoy that runs goes on.
func (l *envoyLife) stays(event string, do func()) {
	l.t.Helper()
	was := l.state()
	l.traffic(event, do)
	if now := l.state(); now.PID != was.PID || now.Phase != proxy.PhaseLive {
		l.t.Errorf("%s: the state was %+v and is %+v, want the same Envoy", event, was, now)
	}
}

// says fails the test unless what a package manager wrote has a text in it.
func (l *envoyLife) says(out, text string) {
	l.t.Helper()
	if !strings.Contains(out, text) {
		l.t.Errorf("%s says %q, want %q in it", l.kind, out, text)
	}
}

func (l *envoyLife) degraded(text string) {
	l.t.Helper()
	l.await("a status that says "+text, func() bool {
		r, err := l.status()
		return err == nil && strings.Contains(strings.Join(r.Degraded, "\n"), text)
	})
}

// live takes the package from its first upgrade to its removal, and the agent's with it.
func (l *envoyLife) live() {
	l.replaced("an upgrade", func() { l.put(secondEnvoy) })
	l.replaced("a downgrade", func() { l.put(firstEnvoy) })
	l.stays("the script again", func() { l.line(l.script, "wingman-envoy") })
	l.replaced("a reload of the unit", func() { l.Run("systemctl", "reload", "wingman-proxy") })
	l.replaced("an upgrade together with the agent's", func() {
		l.put(newVersion, secondEnvoy)
		l.waitActive("wingman.service")
		was := l.agent
		if l.agent = l.mainPID("wingman.service"); l.agent == was {
			l.t.Error("the agent was not restarted")
		}
	})
	l.mustBeQuiet()

	l.stays("an upgrade whose script is killed", func() {
		l.killsCaller("wingman")
		l.Try("sh", "-ec", l.packager.install, "sh", l.at[firstEnvoy]) // dpkg fails, rpm does not
		if left := l.Sh("ls /usr/sbin/wingman 2>/dev/null || :"); left != "" {
			l.t.Error("the script was not killed")
		}
	})
	l.degraded("another file lies at")
	l.replaced("what was killed is taken up again", func() { l.line(l.finish, "wingman-envoy") })

	// A program that cannot run takes nobody's place, and the package manager goes on.
	l.stays("an upgrade to a broken one", func() { l.says(l.put(brokenEnvoy), "no such instruction") })
	l.degraded("no such instruction")
	if out, err := l.Try("systemctl", "reload", "wingman-proxy"); err == nil {
		l.t.Errorf("a reload with a broken program succeeds: %s", out)
	}
	l.replaced("the way back from it", func() { l.put(secondEnvoy) })

	// Without istiod the next one would have nothing to serve.
	l.istiod.Stop()
	l.stays("an upgrade while istiod is away", func() { l.says(l.put(firstEnvoy), "istiod is away") })
	l.degraded("another file lies at")
	if err := l.segment.Do(l.istiod.Start); err != nil {
		l.t.Fatal(err)
	}
	l.entry("joined again", serving)
	l.replaced("the replacement once istiod is back", func() { l.Run("wingman", "envoy", "replace") })

	l.stays("a removal", func() { l.says(l.line(cmp.Or(l.purge, l.remove), "wingman-envoy"), "the Envoy that runs goes on") })
	l.degraded("is gone")
	if left, err := l.Try("find", "/usr", "/etc", "/var/lib", "-name", "*wingman-envoy*", "-not", "-path", "/usr/share/man/*"); err != nil || left != "" {
		l.t.Errorf("the removal leaves %s (%v)", left, err)
	}
	l.replaced("an installation after that", func() { l.put(secondEnvoy) })

	// Another Envoy than the package's is left alone.
	l.Sh("cp " + envoy.Packaged + " /usr/local/bin/envoy")
	l.replaced("Istio's own place", func() {
		l.Run("wingman", "envoy", "replace")
		other := l.state()
		l.put(firstEnvoy)
		if now := l.state(); now.PID != other.PID || now.Program != "/usr/local/bin/envoy" {
			l.t.Errorf("an upgrade of the package changed %+v to %+v", other, now)
		}
	})
	l.line(l.remove, "wingman-envoy")
	l.line(cmp.Or(l.purge, l.remove), "wingman")
	if out, _ := l.Try("pgrep", "-a", "envoy"); out != "" {
		l.t.Errorf("processes are left: %s", out)
	}
}

// The package of Envoy from its installation to its removal, on a machine whose traffic goes through it.
func TestAnEnvoyPackageThroughItsLife(t *testing.T) {
	for _, c := range []struct {
		release Release
		name    string
		by      packager
	}{
		{Bookworm, "envoydeb", dpkg},
		{Trixie, "envoyrpm", rpm},
	} {
		t.Run(c.by.kind, func(t *testing.T) {
			t.Parallel()
			newEnvoyLife(t, c.release, c.name, c.by).live()
		})
	}
}

// shown is what `wingman status` prints.
func (m *Machine) shown() string {
	m.t.Helper()
	out, _ := m.Try("wingman", "status") // its exit status says how well the machine is
	return fmt.Sprint(out)
}
