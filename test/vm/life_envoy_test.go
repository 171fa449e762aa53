package vm

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"wingman/agent/envoy/proxy"
)

// supervised is what the supervisor of forum's Envoy wrote down last.
func (r *row) supervised() (s proxy.State) {
	r.Helper()
	if err := json.Unmarshal([]byte(r.forum.Sh("cat /run/wingman-proxy/state.json")), &s); err != nil {
		r.Fatal(err)
	}
	return s
}

// awaitNextEnvoy waits until another Envoy than before serves.
func (r *row) awaitNextEnvoy(before proxy.State) (now proxy.State) {
	r.Helper()
	r.forum.await("another Envoy", func() bool {
		now = r.supervised()
		return now.Phase == proxy.PhaseLive && now.PID != before.PID
	})
	return now
}

func envoyKills(r *row) {
	before, began, agent := r.plane.now(forumEntry), time.Now(), r.forum.mainPID("wingman")
	l := r.usual()
	var kills []time.Time
	var away []time.Duration
	for n := range 10 {
		if n%3 == 0 { // three in a row, then one that served for a while: else each waits longer than the one before, as in a crash loop
			r.forum.await("an Envoy that served for ten seconds", func() bool {
				s := r.supervised()
				return s.Phase == proxy.PhaseLive && time.Since(s.Since) > 10*time.Second
			})
		}
		s, at := r.supervised(), time.Now()
		r.forum.Run("kill", "-KILL", fmt.Sprint(s.PID))
		back := r.awaitNextEnvoy(s).Since
		kills, away = append(kills, at), append(away, back.Sub(at))
	}
	dns, requests := l.end()
	r.whole("queries", dns)
	var ends []time.Time
	for _, e := range r.forum.Journal("wingman-proxy.service") {
		if e.At.After(kills[0]) && strings.HasPrefix(e.Message, "Envoy ended") {
			ends = append(ends, e.At)
		}
	}
	if len(ends) != len(kills) {
		r.Fatalf("the journal tells of %d ends of Envoy, want %d", len(ends), len(kills))
	}
	for _, f := range requests.Failed { // in flight when Envoy ended; who came later waited for the next one
		if !slices.ContainsFunc(ends, func(end time.Time) bool {
			return f.Began.Before(end) && f.Began.Add(f.Took).After(end.Add(-time.Second))
		}) {
			r.Errorf("a request failed that was not in flight when Envoy ended: at %s, for %s: %s", f.Began.Format("15:04:05.000"), f.Took, f.Err)
		}
	}
	half := median(away)
	if half > time.Second && !busy(r) {
		r.Errorf("half of the times Envoy was back after more than %s, want a second: %s", half, away)
	}
	if now := r.forum.mainPID("wingman"); now != agent {
		r.Errorf("the agent is process %d, want %d: it has nothing to do with Envoy's end", now, agent)
	}
	if away[len(away)-1] < 2*time.Second { // the agent bears with three
		r.sameEntry(before, began)
	}
	r.requests = fmt.Sprintf("%d of %d, all of them in flight", len(requests.Failed), requests.Sent)
	r.note("back after %s (median; %s to %s); three at a time, as more in a row are a crash loop", ms(half), ms(away[0]), ms(away[len(away)-1]))
}

// frozenFor is how long the event of a frozen Envoy takes.
const frozenFor = 20 * time.Second

func frozenEnvoy(r *row) {
	agent, s := r.forum.mainPID("wingman"), r.supervised()
	l := r.usual()
	peers := startClient(r, r.catalog, "requests of catalog to forum", "http", r.forumVIP+":80", forumHost)
	at := time.Now()
	r.forum.Run("kill", "-STOP", fmt.Sprint(s.PID))
	next := r.awaitNextEnvoy(s)
	r.forum.await("the end of the 20 s", func() bool { return time.Since(at) > frozenFor })
	r.settle(r.T)
	dns, requests := l.end()
	followers := peers.end()
	r.whole("queries", dns)
	for what, o := range map[string]outcome{"a request of forum": requests, "a request to forum": followers} {
		if last := o.lastBegan(); last.After(next.Since) {
			r.Errorf("%s that began %s after the freeze failed; another Envoy served after %s: %s", what, last.Sub(at), next.Since.Sub(at), o)
		}
	}
	if now := r.forum.mainPID("wingman"); now != agent {
		r.Errorf("the agent is process %d, want %d", now, agent)
	}
	var noticed time.Time
	for _, e := range r.forum.Journal("wingman-proxy") {
		if e.At.After(at) && strings.HasPrefix(e.Message, "Envoy does not answer; it is aborted") {
			noticed = e.At
		}
	}
	// Peers, too, lose requests until another one serves: it does before they could be told.
	if noticed.IsZero() || !busy(r) && (noticed.Sub(at) > 12*time.Second || next.Since.Sub(noticed) > 2*time.Second) {
		r.Errorf("the freeze was noticed after %s, another Envoy served after %s; want at most 12 s, and 2 s more", noticed.Sub(at), next.Since.Sub(at))
	}
	r.requests = fmt.Sprintf("%d of %d, of peers %d of %d: begun until another Envoy served", len(requests.Failed), requests.Sent, len(followers.Failed), followers.Sent)
	r.note("noticed by the hang check after %.1f s and aborted; another Envoy serves %s later", noticed.Sub(at).Seconds(), ms(next.Since.Sub(noticed)))
}
