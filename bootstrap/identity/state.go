package identity

import (
	"fmt"
	"time"
)

// A State is everything there is to say about the identity, for `wingman status` and `wingman cert show`. It holds no secret.
type State struct {
	Phase         Phase        `json:"state"`
	Health        Health       `json:"health"`
	SPIFFEID      string       `json:"spiffeId"`
	Serial        string       `json:"serial,omitempty"`
	NotBefore     time.Time    `json:"notBefore,omitzero"`
	NotAfter      time.Time    `json:"notAfter,omitzero"`
	ReceivedAt    time.Time    `json:"receivedAt,omitzero"`
	RenewAt       time.Time    `json:"renewAt,omitzero"`
	NextAttempt   time.Time    `json:"nextAttempt,omitzero"` // zero: a request is under way, or none is needed before RenewAt
	Attempts      int          `json:"failedAttempts,omitempty"`
	Credential    string       `json:"credential,omitempty"` // what got the certificate: "token", "certificate"; "" after a start: the disk
	Source        string       `json:"source,omitempty"`     // of the token that got it
	LastError     string       `json:"lastError,omitempty"`  // of the last request; "" once one has succeeded
	LastErrorAt   time.Time    `json:"lastErrorAt,omitzero"`
	Issuer        string       `json:"issuer,omitempty"`      // where certificates come from, when not from istiod's CA
	Clock         string       `json:"clock,omitempty"`       // what is wrong with the clock
	LifeProblem   string       `json:"lifeProblem,omitempty"` // the CA gives far less life than it was asked for
	Copied        string       `json:"copied,omitempty"`      // the identity came with a disk from another machine
	Token         TokenState   `json:"token"`                 // of the token file
	Tokens        []TokenState `json:"tokens"`                // of every source of tokens, in the order they are tried
	Roots         []RootState  `json:"roots"`
	RootProblem   string       `json:"rootProblem,omitempty"` // the root file cannot be used
	StoreDir      string       `json:"storeDir"`
	Sealed        bool         `json:"sealed,omitempty"`       // key and token at rest are
	StoreProblem  string       `json:"storeProblem,omitempty"` // the certificate in use is not on disk, or what was there is corrupt or cannot be removed
	OutputDir     string       `json:"outputDir,omitempty"`
	OutputProblem string       `json:"outputProblem,omitempty"` // OutputDir does not follow
	Groups        []GroupState `json:"groups,omitempty"`        // who else may read copies
}

// A TokenState is what is known of a source of tokens: of a file as of now, of any other as it was last asked.
type TokenState struct {
	Source   string    `json:"source,omitempty"` // "systemd", "file", "copy", "exec", "gce", "aws", "azure"
	File     string    `json:"file,omitempty"`   // or program, or address
	AskedAt  time.Time `json:"askedAt,omitzero"` // zero: not yet; it is asked when a token is needed
	Present  bool      `json:"present"`
	Expires  time.Time `json:"expires,omitzero"`
	Audience []string  `json:"audience,omitempty"`
	Subject  string    `json:"subject,omitempty"`
	Problem  string    `json:"problem,omitempty"` // why there is none, or istiod will not take it
	Warning  string    `json:"warning,omitempty"` // it works, but others can read it
}

// A RootState is one trusted root.
type RootState struct {
	Subject  string    `json:"subject"`
	Serial   string    `json:"serial"`
	NotAfter time.Time `json:"notAfter"`
	Source   string    `json:"source"`         // "file", "ca", "mesh", "spiffe" or "federated"
	Until    time.Time `json:"until,omitzero"` // the CA does not name it any more: trusted until then
}

// A Health is how worried one should be.
type Health string

const (
	Fine     Health = "ok"
	Warning  Health = "warning"  // expiring: a quarter of the life is left, or half of what renewal began with
	Degraded Health = "degraded" // no usable certificate, or a tenth of its life left (a fifth of what renewal began with)
)

// health judges a life at now.
func (p policy) health(l life, now time.Time) Health {
	left := l.notAfter.Sub(now)
	switch {
	case l == life{}, left <= time.Duration(min(0.10, p.ratio/5)*float64(l.length())):
		return Degraded
	case !now.Before(p.expiringAt(l)):
		return Warning
	}
	return Fine
}

// shortLife says that a CA gives so little life that renewing is all that the agent does; "" when it does not. got is the life as received.
func shortLife(got, asked time.Duration) string {
	if got >= time.Minute || got >= asked/10 {
		return ""
	}
	return fmt.Sprintf("the CA gives certificates for %s where %s were asked for, and is asked again every %s: look at the CA's own limit (istiod: MAX_WORKLOAD_CERT_TTL)",
		span(got.Round(time.Second)), span(asked), span(max(got/2, shortestPause)))
}

func rootStates(a anchors) []RootState {
	list := make([]RootState, 0, len(a))
	for _, x := range a {
		list = append(list, RootState{
			Subject: x.cert.Subject.String(), Serial: serialOf(x.cert),
			NotAfter: x.cert.NotAfter, Source: x.source, Until: x.until,
		})
	}
	return list
}
