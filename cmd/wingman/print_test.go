package main

import (
	"strings"
	"testing"
	"time"

	"wingman/bootstrap/identity"
)

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
