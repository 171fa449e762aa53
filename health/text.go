package health

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// oneLine makes s fit for a log line and a condition: line breaks become " | ", other control characters and invalid
// UTF-8 become "?", surrounding space goes.
func oneLine(s string) string {
	var b strings.Builder
	for _, line := range strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' }) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		if b.Len() > 0 {
			b.WriteString(" | ")
		}
		for _, r := range line {
			switch {
			case r == '\t':
				b.WriteByte(' ')
			case r == utf8.RuneError || unicode.IsControl(r):
				b.WriteByte('?')
			default:
				b.WriteRune(r)
			}
		}
	}
	return b.String()
}

// clip shortens s to at most limit bytes, marking the cut, without splitting a character. limit is at least 4.
func clip(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	s = s[:limit-len("…")]
	for len(s) > 0 {
		if r, size := utf8.DecodeLastRuneInString(s); r != utf8.RuneError || size != 1 {
			break
		}
		s = s[:len(s)-1]
	}
	return s + "…"
}
