package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// changelog is CHANGELOG.md in the form that nfpm writes .deb and .rpm changelogs from: the newest section becomes the entry
// of this version, older ones keep their own names and dates ("## 1.2.3 (2026-01-31)").
func changelog(markdown, version, maintainer string, at time.Time) string {
	var b strings.Builder
	for i, s := range sections(markdown) {
		name, date := s.name, s.date
		if i == 0 {
			name, date = version, at
		}
		fmt.Fprintf(&b, "- semver: %q\n  date: %s\n  packager: %q\n  deb:\n    urgency: medium\n    distributions: [unstable]\n  changes:\n",
			name, date.Format(time.RFC3339), maintainer)
		for _, note := range s.notes {
			// nfpm puts two blanks and a star before a note, and Debian's lines end at 80.
			lines := wrap(strings.ReplaceAll(note, "`", ""), 70)
			fmt.Fprintf(&b, "    - note: %s\n", strconv.Quote(strings.Join(lines, "\n    ")))
		}
	}
	return b.String()
}

// A section of CHANGELOG.md is what came with one version.
type section struct {
	name  string
	date  time.Time
	notes []string
}

func sections(markdown string) []section {
	var all []section
	for line := range strings.Lines(markdown) {
		line = strings.TrimRight(line, "\n")
		heading, isHeading := strings.CutPrefix(line, "## ")
		item, isItem := strings.CutPrefix(line, "- ")
		switch {
		case isHeading:
			name, rest, _ := strings.Cut(heading, " (")
			s := section{name: name}
			s.date, _ = time.Parse(time.DateOnly, strings.TrimSuffix(rest, ")"))
			all = append(all, s)
		case len(all) == 0:
		case isItem:
			last := &all[len(all)-1]
			last.notes = append(last.notes, item)
		case strings.HasPrefix(line, "  ") && len(all[len(all)-1].notes) > 0:
			notes := all[len(all)-1].notes
			notes[len(notes)-1] += " " + strings.TrimSpace(line)
		}
	}
	return all
}
