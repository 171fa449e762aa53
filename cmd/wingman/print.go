package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"wingman/agent/status"
	"wingman/bootstrap/identity"
)

// printAnswer prints a DNS answer for people.
func printAnswer(w io.Writer, a status.DNSAnswer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s in %s\n", a.Question, a.RCode, time.Duration(a.Micros)*time.Microsecond)
	for _, rr := range a.Answers {
		fmt.Fprintf(&b, "  %s\n", rr)
	}
	if a.Explain != nil {
		text, err := json.MarshalIndent(a.Explain, "  ", "  ")
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "  %s\n", text)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// printIdentity prints a time line: what is good until when.
func printIdentity(w io.Writer, id identity.State, now time.Time) error {
	var b strings.Builder
	line := func(key, format string, args ...any) {
		fmt.Fprintf(&b, "%-12s %s\n", key, fmt.Sprintf(format, args...))
	}
	at := func(t time.Time) string {
		if t.IsZero() {
			return "-"
		}
		d := t.Sub(now).Round(time.Second)
		if d < 0 {
			return fmt.Sprintf("%s (%s ago)", t.Format(time.RFC3339), -d)
		}
		return fmt.Sprintf("%s (in %s)", t.Format(time.RFC3339), d)
	}
	line("state", "%s, %s", id.Phase, id.Health)
	line("identity", "%s", id.SPIFFEID)
	if id.Serial != "" {
		line("certificate", "%s, received %s%s", id.Serial, at(id.ReceivedAt), byWhat(id))
		line("renews", "%s", at(id.RenewAt))
		line("valid until", "%s", at(id.NotAfter))
	}
	if id.Issuer != "" {
		line("issuer", "%s; no token is needed", id.Issuer)
	}
	for _, t := range id.Tokens {
		if text := tokenLine(t, at); text != "" {
			line("token", "%s", text)
		}
		if t.Warning != "" {
			line("", "%s", t.Warning)
		}
	}
	for _, r := range id.Roots {
		line("root", "%s (%s) until %s", r.Subject, r.Source, at(r.NotAfter))
	}
	for _, g := range id.Groups {
		if g.Problem == "" {
			line("copies", "for group %s in %s", g.Group, g.Dir)
		} else {
			line("PROBLEM", "%s", g.Problem)
		}
	}
	for _, problem := range []string{id.LastError, id.Copied, id.Clock, id.LifeProblem, id.RootProblem, id.StoreProblem, id.OutputProblem} {
		if problem != "" {
			line("PROBLEM", "%s", problem)
		}
	}
	if id.LastError != "" {
		line("last error", "%s", at(id.LastErrorAt))
	}
	if !id.NextAttempt.IsZero() {
		line("asks again", "%s", at(id.NextAttempt))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// byWhat says which credential brought the certificate; "" when it was on disk at the start.
func byWhat(id identity.State) string {
	switch {
	case id.Credential == "":
		return ""
	case id.Source == "":
		return ", by " + id.Credential
	}
	return ", by " + id.Credential + " of " + id.Source
}

// tokenLine says what became of a source of tokens, "" when there is nothing to say: the ones that are there only if somebody made them.
func tokenLine(t identity.TokenState, at func(time.Time) string) string {
	asked := ""
	if !t.AskedAt.IsZero() {
		asked = ", asked " + at(t.AskedAt)
	}
	switch local := t.Source == identity.SourceFile || t.Source == identity.SourceSystemd || t.Source == identity.SourceCopy; {
	case t.Problem != "":
		return t.Source + ": " + t.Problem + asked
	case t.Present:
		return t.Source + ": until " + at(t.Expires) + asked
	case t.Source == identity.SourceFile:
		return t.Source + ": none at " + t.File
	case local:
		return ""
	case t.AskedAt.IsZero():
		return t.Source + ": " + t.File + ", not asked yet"
	}
	return t.Source + ": none at " + t.File + asked
}
