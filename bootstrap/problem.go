package bootstrap

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Severity says whether a problem stops the agent.
type Severity int

const (
	// Warning marks something that works, but not as its author seems to believe.
	Warning Severity = iota
	// Error marks something that cannot be acted on; the running settings stay.
	Error
)

// String returns "warning" or "error".
func (s Severity) String() string {
	if s == Error {
		return "error"
	}
	return "warning"
}

// MarshalText makes a severity readable in JSON.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// KeyRootCert is the Key of every problem with the root certificate file. An agent whose own store holds roots of an earlier join
// can live with it (Problems.Without); one that never joined cannot.
const KeyRootCert = "root-cert"

// Problem is one thing wrong in the files, told so that its reader knows where to look and what to write there.
type Problem struct {
	Severity Severity `json:"severity"`
	File     string   `json:"file,omitempty"`     // path on this machine
	Line     int      `json:"line,omitempty"`     // 1 is the first; 0 when the problem has no line
	Key      string   `json:"key,omitempty"`      // variable of an env file, dotted path of a YAML file, or one of the Key constants
	Found    string   `json:"found,omitempty"`    // as it stands there, shortened; never a secret
	Expected string   `json:"expected,omitempty"` // what would have been right
	Hint     string   `json:"hint,omitempty"`     // the next step
}

// String returns the problem as one sentence: place, key, found, expected, next step.
func (p Problem) String() string {
	var b strings.Builder
	if p.File != "" {
		b.WriteString(p.File)
		if p.Line > 0 {
			fmt.Fprintf(&b, ":%d", p.Line)
		}
		b.WriteString(": ")
	}
	if p.Key != "" {
		b.WriteString(p.Key + ": ")
	}
	b.WriteString("found " + p.Found)
	if p.Expected != "" {
		b.WriteString(", expected " + p.Expected)
	}
	if p.Hint != "" {
		b.WriteString(" (" + p.Hint + ")")
	}
	return b.String()
}

// Problems are all that Load found, in the order of file and line.
type Problems []Problem

// Err returns nil when there are only warnings, else one error that holds every problem of severity Error, one line each.
func (ps Problems) Err() error {
	var lines []string
	for _, p := range ps {
		if p.Severity == Error {
			lines = append(lines, p.String())
		}
	}
	if len(lines) == 0 {
		return nil
	}
	return errors.New(strings.Join(lines, "\n"))
}

// Without returns the problems whose Key is none of keys.
func (ps Problems) Without(keys ...string) Problems {
	return slices.DeleteFunc(slices.Clone(ps), func(p Problem) bool { return slices.Contains(keys, p.Key) })
}

// Warnings returns the problems that stop nothing.
func (ps Problems) Warnings() Problems {
	return slices.DeleteFunc(slices.Clone(ps), func(p Problem) bool { return p.Severity == Error })
}

// sorted returns the problems in the order of file and line, each once.
func (ps Problems) sorted() Problems {
	seen := map[Problem]bool{}
	once := slices.DeleteFunc(slices.Clone(ps), func(p Problem) bool {
		again := seen[p]
		seen[p] = true
		return again
	})
	slices.SortStableFunc(once, func(a, b Problem) int {
		return cmp.Or(strings.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line))
	})
	return once
}

// quote shows a value in a message: quoted and at most 60 characters long.
func quote(s string) string {
	if r := []rune(s); len(r) > 60 {
		s = string(r[:57]) + "..."
	}
	return fmt.Sprintf("%q", s)
}
