package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// This file is what the agent makes of the crash guard (systemd/units/crash-guard), which takes the DNS rules out of a machine whose agent keeps dying.

// guardOpen is where the guard says so, below root: "<time, RFC 3339> <why>". It is root's, and stays until the agent's next end.
const guardOpen = "run/wingman-guard/open"

// guardNews is how long after the start that ended a crash loop the status still tells of it; the journal always does.
const guardNews = 10 * time.Minute

// guardNote is what the guard said; its zero value says nothing.
type guardNote struct {
	At  time.Time
	Why string // one sentence without a period: "the agent ended badly 5 times within 30 s, last with …"
}

func (n guardNote) said() bool { return n.Why != "" }

// readGuard reads the note. One that cannot be understood is no note.
func readGuard(root string) guardNote {
	b, err := os.ReadFile(filepath.Join(root, guardOpen))
	if err != nil {
		return guardNote{}
	}
	return parseGuard(string(b))
}

func parseGuard(text string) guardNote {
	at, why, _ := strings.Cut(strings.TrimSpace(text), " ")
	t, err := time.Parse(time.RFC3339, at)
	if why = strings.TrimSpace(why); err != nil || why == "" || strings.ContainsAny(why, "\n\r") {
		return guardNote{}
	}
	return guardNote{At: t, Why: why}
}

// over is what the status of an agent that came up says of the loop before.
func (n guardNote) over(up time.Time) string {
	return fmt.Sprintf("%s, at %s: DNS was not redirected until %s (journalctl -u wingman says why)", n.Why, n.At.Format(time.RFC3339), up.UTC().Format(time.RFC3339))
}

// WhyDown says why no daemon of that root runs, as far as the crash guard knows; empty: it does not.
func WhyDown(root string) string {
	n := readGuard(root)
	if !n.said() {
		return ""
	}
	return fmt.Sprintf("%s, at %s: DNS is not redirected until it starts again, which systemd goes on trying (journalctl -u wingman says why)", n.Why, n.At.Format(time.RFC3339))
}
