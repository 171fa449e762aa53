// Package credential gets tokens from where a machine can get them: a program, and the metadata service of a cloud. It also reads the
// few shapes that tokens are handed over in.
//
// It leaves to bootstrap/identity which source is asked when, what a token claims, files, and the CA. A source opens what it needs when it is asked and keeps
// nothing open; nothing here runs by itself. Answers are bounded in size and time, and no error holds a byte of a token, nor of
// an answer that could be one.
//
// To match: the credential plugins of kubectl (client.authentication.k8s.io/v1), and the metadata services as their vendors document them: GCE's
// (compute/docs/instances/verifying-instance-identity), AWS's IMDSv2 and STS GetWebIdentityToken, Azure's IMDS (how-to-use-vm-token).
package credential

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
)

// ErrNone means that a source has no token, and that this is no fault: its file is not there.
var ErrNone = errors.New("no token")

// MaxToken bounds a token and everything that one is read from, in bytes; real ones have 1 to 4 kB.
const MaxToken = 64 << 10

// A Source is one place that tokens come from.
type Source interface {
	// Name is how settings call it: "file", "exec".
	Name() string
	// Where is the path, program or address that is asked, for people.
	Where() string
	// Local reports that Where is a file: asking it costs nothing, and a change of the file is a reason to ask again.
	Local() bool
	// Token asks. It returns when ctx ends at the latest. An error is one sentence; it wraps ErrNone if there is just nothing there.
	Token(ctx context.Context) (Token, error)
}

// A Token is what a source gave.
type Token struct {
	JWT     Secret
	Warning string // what is wrong with the way it is kept, though it works; "" for nothing
}

// A Secret is a text that cannot be printed by mistake: a function is the one kind of value that fmt never looks into.
type Secret func() string

// Hide makes a Secret.
func Hide(text string) Secret { return func() string { return text } }

func (s Secret) String() string       { return "redacted" }
func (s Secret) GoString() string     { return "redacted" }
func (s Secret) LogValue() slog.Value { return slog.StringValue("redacted") }

// looksLikeJWT reports whether text could be a JWT by its shape alone: three parts between dots, nothing but base64url.
func looksLikeJWT(text string) bool {
	dots := 0
	for _, r := range text {
		switch {
		case r == '.':
			dots++
		case r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '=':
		default:
			return false
		}
	}
	return dots == 2 && len(text) > 20
}

// secretLike is what a token, a key, or a part of one looks like.
var secretLike = regexp.MustCompile(`[A-Za-z0-9_.+=-]{40,}`)

// quoted is the first line of foreign text for a sentence: clipped, and without what could be a secret.
func quoted(text string) string {
	const longest = 200
	line, _, _ := strings.Cut(strings.TrimSpace(text), "\n")
	line = secretLike.ReplaceAllString(line, "[redacted]")
	if len(line) > longest {
		line = strings.ToValidUTF8(line[:longest], "") + "…"
	}
	return fmt.Sprintf("%q", line)
}
