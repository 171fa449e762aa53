package vm

import (
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
)

func powerCuts(r *row) {
	const unit = "/etc/systemd/system/early.service"
	r.forum.Write(unit, `[Unit]
DefaultDependencies=no
After=local-fs.target
[Service]
Type=exec
ExecStart=/usr/bin/client first `+stub+" "+catalogName+" "+r.catalogVIP+`
StandardOutput=file:/run/first-answer
[Install]
WantedBy=sysinit.target
`, 0o644)
	r.forum.Enable("early.service")
	r.plane.killIstiod()
	defer r.plane.startIstiod()
	var answered []time.Duration
	for range 5 {
		r.forum.PowerCut()
		r.forum.Boot()
		r.forum.mustRun("without a control plane")
		r.forum.waitActive("wingman.service")
		first := ""
		r.forum.await("the first answer", func() bool { first = r.forum.Sh("cat /run/first-answer"); return first != "" })
		at, err := strconv.ParseInt(first, 10, 64)
		if err != nil {
			r.Fatal(err)
		}
		begun := r.forum.monotonic("wingman.service", "InactiveExitTimestampMonotonic")
		answered = append(answered, time.Duration(at-begun)*time.Microsecond)
		r.Logf("after the unit's start: process %d µs, first answer %d µs, ready %d µs", r.forum.monotonic("wingman.service", "ExecMainStartTimestampMonotonic")-begun,
			at-begun, r.forum.monotonic("wingman.service", "ActiveEnterTimestampMonotonic")-begun)
		r.forum.rulesFirst()
		if len(r.forum.rules()) == 0 || !strings.Contains(r.forum.rules(), "--to-ports 15001") {
			r.Error("after the boot traffic is not captured")
		}
	}
	r.forum.Run("systemctl", "disable", "--now", "--quiet", "early.service")
	half := median(answered)
	// The processes of a boot wait for each other, and on a busy computer for those of others too.
	limit := 100 * time.Millisecond
	if busy(r) {
		limit *= 5
	}
	if took := mostly(r, answered); took > limit {
		r.Errorf("DNS answered %s after the unit's start, want %s: %s", took, limit, answered)
	}
	r.note("DNS answers %s after the unit's start (median of five; %s to %s); rules are in before the network is begun", ms(half), ms(answered[0]), ms(answered[len(answered)-1]))
}

// grace is how long istiod keeps the entry of a machine whose stream has ended.
const grace = 10 * time.Second

func stop(r *row) {
	dns := startClient(r, r.forum, "queries of forum", "dns", stub, publicName, publicAddr)
	peers := startClient(r, r.catalog, "requests of catalog to forum", "http", r.forumVIP+":80", forumHost)
	own := startClient(r, r.forum, "requests of forum to elsewhere", "http", planeAddress+":"+elsewherePort, "elsewhere.example")
	at := time.Now()
	r.forum.Run("systemctl", "stop", "wingman")
	took := time.Since(at)
	if out := r.forum.rules(); ours(out) {
		r.Errorf("rules are left:\n%s", out)
	}
	r.forum.await("the proxy to stop", func() bool { return r.forum.show("wingman-proxy", "ActiveState") == "inactive" })
	gone := r.await(r, r.forum, forumEntry, "gone", time.Minute, func(p planeState) bool { return p.Gone })
	if after := gone.At.Sub(at.Add(took)); after > grace+5*time.Second && !busy(r) {
		r.Errorf("the entry was gone %s after the stop, want little more than istiod's grace, %s", after, grace)
	}
	queries, followers, others := dns.end(), peers.end(), own.end()
	r.whole("queries", queries)
	r.whole("requests of peers that follow endpoints", followers)
	r.whole("requests to elsewhere", others)
	r.dns, r.requests = queries.String(), followers.String()+" of peers; "+others.String()+" of its own to elsewhere"
	unhealthy := time.Time{}
	for _, s := range r.plane.states(forumEntry, at) {
		if s.Healthy == "False" && unhealthy.IsZero() {
			unhealthy = s.At
		}
	}
	if unhealthy.IsZero() {
		r.Error("the machine did not say that it is unhealthy before it left")
	}
	r.note("unhealthy after %.1f s, stopped and rules gone after %.1f s, entry gone after %.1f s", unhealthy.Sub(at).Seconds(), took.Seconds(), gone.At.Sub(at).Seconds())
	r.forum.Run("systemctl", "start", "wingman")
}

func crashLoop(r *row) {
	s := r.supervised()
	l := r.begin(publicName, publicAddr)
	r.forum.Sh(`mv /usr/bin/wingman /usr/bin/wingman.good; printf '#!/bin/sh\nexit 1\n' >/usr/bin/wingman; chmod 755 /usr/bin/wingman`)
	began := time.Now()
	r.forum.Run("systemctl", "kill", "--kill-who=main", "--signal=KILL", "wingman")
	r.forum.await("the guard", func() bool { return r.forum.Sh("cat /run/wingman-guard/open 2>/dev/null || :") != "" })
	out, open := r.forum.rules(), time.Now()
	if strings.Contains(out, "--to-ports 15053") {
		r.Errorf("DNS still goes to the agent:\n%s", out)
	}
	if !strings.Contains(out, "--to-ports 15001") {
		r.Errorf("other traffic is not captured any more:\n%s", out)
	}
	var fifth, guard time.Time
	bad := 0
	for _, e := range r.forum.Journal("wingman") {
		if e.At.Before(began) {
			continue
		}
		if strings.Contains(e.Message, "Main process exited") {
			if bad++; bad == 5 {
				fifth = e.At
			}
		}
		if strings.HasPrefix(e.Message, "DNS is taken away from the agent") {
			guard = e.At
		}
	}
	if guard.IsZero() || fifth.IsZero() || guard.Sub(fifth) > time.Second && !busy(r) {
		r.Errorf("the rules were out %s after the fifth bad end, want at most 1 s\n%s", guard.Sub(fifth), r.forum.lastWords())
	}
	// Longer than any client waits for an answer.
	r.forum.await("12 s without the agent", func() bool { return time.Since(open) > 12*time.Second })
	r.forum.Run("mv", "/usr/bin/wingman.good", "/usr/bin/wingman")
	r.settle(r.T)
	if !strings.Contains(r.forum.rules(), "--to-ports 15053") {
		r.Error("the agent is back, and its DNS rules are not")
	}
	dns, requests := l.end()
	r.whole("queries", dns)
	r.whole("requests", requests)
	if now := r.supervised(); now.PID != s.PID {
		r.Errorf("Envoy is process %d, want %d still", now.PID, s.PID)
	}
	r.note("DNS rules out %s after the fifth bad end, traffic rules stay and Envoy serves; all is put back when the agent works again", ms(guard.Sub(fifth)))
}

// tokenCopy is what the agent keeps of a token that a reboot would lose.
const tokenCopy = "/var/lib/wingman/identity/token"

func reboots(r *row) {
	var took []time.Duration
	for range 5 {
		at := time.Now()
		r.forum.Run("rm", "-f", tokenCopy)
		r.forum.Reboot() // /run is empty then
		for _, token := range []string{"/run/secrets/tokens/istio-token", tokenCopy} {
			if _, err := r.forum.Try("test", "-e", token); err == nil {
				r.Errorf("a token is still there, %s", token)
			}
		}
		booted := time.Now()
		joined := r.await(r, r.forum, forumEntry, "healthy again", time.Minute, func(p planeState) bool { return p.serving() && r.left(at) })
		took = append(took, joined.At.Sub(booted))
		r.settle(r.T)
		r.forum.rulesFirst()
	}
	r.note("joined each time without the token, healthy in the cluster %.1f s after the boot (median)", median(took).Seconds())
}

// left reports whether the mesh has seen forum leave since then.
func (r *row) left(since time.Time) bool {
	for _, s := range r.plane.states(forumEntry, since) {
		if !s.serving() {
			return true
		}
	}
	return false
}

// unitProbe is no line of the table: changes of an application's unit are pushed to the mesh.
func unitProbe(r *row) {
	r.forum.Write(settingsFile, "probe: {systemdUnit: app.service}\n", 0o644)
	r.forum.Run("systemctl", "reload", "wingman")
	r.settle(r.T)
	var told []time.Duration
	for range 3 {
		at := time.Now()
		r.forum.Run("systemctl", "stop", "app")
		now := r.await(r, r.forum, forumEntry, "unhealthy", 30*time.Second, func(p planeState) bool { return p.Healthy == "False" })
		if !strings.Contains(now.Why, "systemd unit app.service") {
			r.Errorf("the mesh was told %q, want the unit as the reason", now.Why)
		}
		told = append(told, now.At.Sub(at))
		r.forum.Run("systemctl", "start", "app")
		r.settle(r.T)
	}
	half := median(told)
	if best := told[0]; best > time.Second && !busy(r) {
		r.Errorf("the mesh knew %s after the stop at best, want a second", best)
	}
	r.forum.Run("rm", settingsFile)
	r.forum.Run("systemctl", "reload", "wingman")
	r.note("unhealthy in the cluster after %s (median of three; at most %s)", ms(half), ms(told[len(told)-1]))
}

// noNetworkAtBoot boots a machine that has joined, without network and with a token that has expired.
func noNetworkAtBoot(r *row) {
	const tokenFile = "/var/lib/expired-token"
	r.forum.Write(settingsFile, "identity: {tokenFile: "+tokenFile+"}\n", 0o644)
	r.forum.Write(tokenFile, r.plane.token("forum-services", "forum-sa", -time.Hour), 0o644)
	r.forum.PowerCut()
	r.segment.cable(r, netlink.LinkSetDown)
	off := time.Now()
	r.forum.Boot()
	took := time.Since(off)
	r.forum.mustRun("without network")
	r.forum.waitActive("wingman.service")
	r.forum.mustResolve(catalogName, r.catalogVIP) // from disk
	limit := noNetwork(r)
	r.forum.await("the time without network", func() bool { return time.Since(off) > limit })
	r.forum.mustRun("still without network")
	r.segment.cable(r, netlink.LinkSetUp)
	on := time.Now()
	r.forum.mustResolve(publicName, publicAddr)
	resolved := time.Since(on)
	r.settle(r.T)
	r.forum.Run("rm", settingsFile)
	r.forum.Run("systemctl", "reload", "wingman")
	if took > bootWithoutNetwork {
		r.Errorf("the boot took %s: it waited for the network", took)
	}
	r.note("running %.1f s after the start, names of the mesh answered; %.0f s later the network comes: public names after %.1f s, healthy in the cluster after %.1f s", took.Seconds(), limit.Seconds(), resolved.Seconds(), time.Since(on).Seconds())
}
