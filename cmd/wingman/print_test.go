package main

import (
	"strings"
	"testing"
	"time"

	"wingman/agent/status"
	"wingman/bootstrap/identity"
)

// The status notes a certificate of which little is left before that counts as degraded.
func TestPrintStatusNotesACertificateNearItsEnd(t *testing.T) {
	end := time.Date(2026, 11, 24, 11, 0, 0, 0, time.UTC)
	for health, want := range map[identity.Health]string{
		identity.Fine:    "identity   valid spiffe://a until 2026-11-24T11:00:00Z\n",
		identity.Warning: "identity   valid spiffe://a until 2026-11-24T11:00:00Z, warning: little of its life is left and it is not renewed yet\n",
	} {
		var out strings.Builder
		id := identity.State{Phase: identity.Valid, Health: health, SPIFFEID: "spiffe://a", NotAfter: end}
		if err := printStatus(&out, status.Report{Identity: &id}); err != nil || !strings.Contains(out.String(), want) {
			t.Errorf("%s: %v\n%s\nwant the line %s", health, err, out.String(), want)
		}
	}
}

// The time line names what brought the certificate, and each source of tokens that there is something to say about.
func TestPrintIdentityNamesTheSources(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	var out strings.Builder
	err := printIdentity(&out, identity.State{
		Phase: identity.Valid, Health: identity.Fine, SPIFFEID: "spiffe://cluster.local/ns/a/sa/b", Serial: "07",
		ReceivedAt: now.Add(-time.Hour), RenewAt: now.Add(11 * time.Hour), NotAfter: now.Add(23 * time.Hour), Credential: "token", Source: "exec",
		Tokens: []identity.TokenState{
			{Source: "systemd", File: "/run/credentials/wingman.service/istio-token"},
			{Source: "file", File: "/run/istio-token", Present: true, Expires: now.Add(-time.Minute), Problem: "token expired 1 min ago"},
			{Source: "copy", File: "/var/lib/wingman/identity/token"},
			{Source: "exec", File: "/usr/bin/get-token", Present: true, Expires: now.Add(time.Minute), AskedAt: now.Add(-time.Hour)},
			{Source: "gce", File: "169.254.169.254"},
		},
		Copied: "this identity was made on another machine",
	}, now)
	if err != nil {
		t.Fatal(err)
	}
	const want = `state        valid, ok
identity     spiffe://cluster.local/ns/a/sa/b
certificate  07, received 2026-11-23T11:00:00Z (1h0m0s ago), by token of exec
renews       2026-11-23T23:00:00Z (in 11h0m0s)
valid until  2026-11-24T11:00:00Z (in 23h0m0s)
token        file: token expired 1 min ago
token        exec: until 2026-11-23T12:01:00Z (in 1m0s), asked 2026-11-23T11:00:00Z (1h0m0s ago)
token        gce: 169.254.169.254, not asked yet
PROBLEM      this identity was made on another machine
`
	if out.String() != want {
		t.Errorf("printed\n%s\nwant\n%s", out.String(), want)
	}
}

// TestCertShowIsATimeLine holds the whole of what `cert show` prints on a bad day.
func TestCertShowIsATimeLine(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	in := func(d time.Duration) time.Time { return now.Add(d) }
	var out strings.Builder
	err := printIdentity(&out, identity.State{
		Phase: identity.Expiring, Health: identity.Warning, SPIFFEID: "spiffe://cluster.local/ns/forum-services/sa/forum-sa",
		Serial: "5d01", ReceivedAt: in(-20 * time.Hour), RenewAt: in(-8 * time.Hour), NotAfter: in(4 * time.Hour),
		Credential: "token", Source: "file", LastError: "cannot reach istiod's CA at istiod:15012: connection refused", LastErrorAt: in(-3 * time.Second), NextAttempt: in(42 * time.Second),
		Clock:  "the clock is 2 h 3 min behind istiod",
		Tokens: []identity.TokenState{{Source: identity.SourceFile, File: "/run/istio-token", Present: true, Expires: in(time.Hour)}},
		Roots:  []identity.RootState{{Subject: "O=cluster.local", Source: "ca", NotAfter: in(48 * time.Hour)}, {Subject: "O=other", Source: "mesh", NotAfter: in(24 * time.Hour)}},
		Groups: []identity.GroupState{{Group: "myapp", Dir: "/etc/certs/groups/myapp"}},
	}, now)
	want := `state        expiring, warning
identity     spiffe://cluster.local/ns/forum-services/sa/forum-sa
certificate  5d01, received 2026-11-22T16:00:00Z (20h0m0s ago), by token of file
renews       2026-11-23T04:00:00Z (8h0m0s ago)
valid until  2026-11-23T16:00:00Z (in 4h0m0s)
token        file: until 2026-11-23T13:00:00Z (in 1h0m0s)
root         O=cluster.local (ca) until 2026-11-25T12:00:00Z (in 48h0m0s)
root         O=other (mesh) until 2026-11-24T12:00:00Z (in 24h0m0s)
copies       for group myapp in /etc/certs/groups/myapp
PROBLEM      cannot reach istiod's CA at istiod:15012: connection refused
PROBLEM      the clock is 2 h 3 min behind istiod
last error   2026-11-23T11:59:57Z (3s ago)
asks again   2026-11-23T12:00:42Z (in 42s)
`
	if err != nil || out.String() != want {
		t.Errorf("%v\n%s\nwant\n%s", err, out.String(), want)
	}
}
