package vm

import (
	"strings"
	"time"
)

// orderlyReboot has systemd-logind call a reboot off, and then carry one out.
func orderlyReboot(r *row) {
	const told = "this machine shuts down"
	if out := r.forum.Run("systemd-inhibit", "--list", "--no-legend", "--no-pager"); !strings.Contains(out, "Wingman") {
		r.Errorf("systemd-logind does not wait for the agent:\n%s", out)
	}
	entry, began := r.plane.now(forumEntry), time.Now()
	peers := startClient(r, r.catalog, "requests of catalog to forum", "http", r.forumVIP+":80", forumHost)
	r.forum.Run("systemctl", "reboot")
	r.forum.Run("systemctl", "mask", "--runtime", "reboot.target") // what cannot be started at the end of the wait is called off
	away := r.await(r, r.forum, forumEntry, "unhealthy", time.Minute, func(p planeState) bool { return p.Healthy == "False" })
	back := r.await(r, r.forum, forumEntry, "healthy again", time.Minute, func(p planeState) bool { return p.serving() && p.At.After(away.At) })
	if !strings.Contains(away.Why, told) {
		r.Errorf("the mesh was told %q, want %q", away.Why, told)
	}
	if back.UID != entry.UID {
		r.Errorf("WorkloadEntry %s, want the one from before, %s", back.UID, entry.UID)
	}
	r.forum.Run("systemctl", "unmask", "--runtime", "reboot.target")
	r.settle(r.T)

	at := time.Now()
	r.forum.Reboot()
	r.await(r, r.forum, forumEntry, "healthy again", time.Minute, func(p planeState) bool { return p.serving() && r.left(at) })
	r.settle(r.T)
	o := peers.end()
	r.whole("requests of peers that follow endpoints", o)
	r.requests = o.String() + " of peers"
	first := away.At
	for _, s := range r.plane.states(forumEntry, at) {
		if s.Healthy == "False" {
			if first = s.At; !strings.Contains(s.Why, told) {
				r.Errorf("the mesh was told %q, want %q", s.Why, told)
			}
			break
		}
	}
	r.note("unhealthy after %.1f s, before anything is stopped; one that is called off: unhealthy after %.1f s, healthy again %.1f s later", first.Sub(at).Seconds(),
		away.At.Sub(began).Seconds(), back.At.Sub(away.At).Seconds())
}
