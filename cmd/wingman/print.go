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
		line("certificate", "%s, received %s", id.Serial, at(id.ReceivedAt))
		line("renews", "%s", at(id.RenewAt))
		line("valid until", "%s", at(id.NotAfter))
	}
	switch t := id.Token; {
	case !t.Present:
		line("token", "none at %s", t.File)
	case t.Problem != "":
		line("token", "%s", t.Problem)
	default:
		line("token", "until %s", at(t.Expires))
	}
	if id.Token.Warning != "" {
		line("", "%s", id.Token.Warning)
	}
	for _, r := range id.Roots {
		line("root", "%s (%s) until %s", r.Subject, r.Source, at(r.NotAfter))
	}
	for _, problem := range []string{id.LastError, id.Clock, id.LifeProblem, id.RootProblem, id.StoreProblem, id.OutputProblem} {
		if problem != "" {
			line("PROBLEM", "%s", problem)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}
