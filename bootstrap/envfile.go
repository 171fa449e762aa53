package bootstrap

import (
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"
)

// envSupported tells what an env file may hold; it ends every complaint about shell that is not understood.
const envSupported = "env files are read, never executed: NAME=value, export, quotes, backslashes, comments and $NAME of earlier lines are supported"

// envVar is a variable and where it was set.
type envVar struct {
	value string
	file  string
	line  int
	rank  int // of its source; the higher one wins
}

// envReader reads one env file: the part of the shell's grammar (POSIX 2.2 and 2.3) that sets variables. What bash would
// have set by "." on the same file is set here too, or the line is refused.
type envReader struct {
	file     string
	src      string
	pos      int
	line     int // of pos, counted from 1
	rank     int
	vars     map[string]envVar
	problems Problems

	broken map[string]bool // variables whose line was refused: using them is not a second problem
	opened int             // line of the first quote that swallowed what looks like an assignment; 0: none
	inside int             // line that looks like an assignment and stands inside that quote
}

// readEnv reads the assignments of src into vars, which also holds what earlier files set.
func readEnv(file string, src []byte, rank int, vars map[string]envVar) Problems {
	r := &envReader{file: file, src: string(src), line: 1, rank: rank, vars: vars, broken: map[string]bool{}}
	if i := strings.IndexByte(r.src, 0); i >= 0 || !utf8.ValidString(r.src) {
		r.refuse(0, "", "bytes that are not text", "lines of NAME=value in UTF-8", "copy the file again")
		return r.problems
	}
	if strings.Contains(r.src, "\r\n") {
		r.src = strings.ReplaceAll(r.src, "\r\n", "\n")
		r.warn(1, "", "lines that end in CR LF", "LF", "the CRs were left out; a shell would make them part of each value")
	}
	r.src = strings.TrimPrefix(r.src, "\uFEFF")
	for r.pos < len(r.src) {
		r.command()
	}
	r.blameQuote()
	return r.problems
}

// command reads to the end of one line, or of one part of it that ends in ";".
func (r *envReader) command() {
	exported := false
	for words := 0; ; words++ {
		r.blanks()
		switch c := r.peek(); {
		case c == 0:
			return
		case c == '\n' || c == ';':
			r.next()
			return
		case c == '#':
			r.skipLine()
			continue
		}
		start, line := r.pos, r.line
		name := envName.FindString(r.src[r.pos:])
		after := r.pos + len(name)
		switch {
		case name == "export" && words == 0 && after < len(r.src) && (r.src[after] == ' ' || r.src[after] == '\t'):
			r.pos = after
			exported = true
		case name != "" && strings.HasPrefix(r.src[after:], "="):
			r.pos = after + 1
			value, ok := r.word()
			if !ok {
				r.broken[name] = true
				r.skipLine()
				return
			}
			r.vars[name] = envVar{value: value, file: r.file, line: line, rank: r.rank}
		case exported && name != "" && r.endsWord(after):
			r.pos = after // "export NAME": every variable is exported anyway
		default:
			r.refuseCommand(start, words)
			return
		}
	}
}

var (
	envName       = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*`)
	envAssignment = regexp.MustCompile(`^[ \t]*(export[ \t]+)?[A-Za-z_][A-Za-z0-9_]*=`)
	envSpaced     = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*[ \t]+=`)
)

// refuseCommand refuses what is not an assignment and goes on with the next line.
func (r *envReader) refuseCommand(start, words int) {
	line := r.line
	r.skipLine()
	text := strings.TrimSpace(r.src[start:r.pos])
	shown := text
	if redact(strings.ToUpper(text), text) != text {
		shown, _, _ = strings.Cut(text, " ")
	}
	hint := envSupported
	switch {
	case envSpaced.MatchString(text):
		hint = "write no spaces around ="
	case words > 0:
		hint = "a value with spaces needs quotes"
	}
	r.refuse(line, "", quote(shown), "NAME=value", hint)
}

// word reads a value up to the next unquoted blank. It returns false when the value was refused.
func (r *envReader) word() (string, bool) {
	var b strings.Builder
	if r.peek() == '~' {
		return r.unsupported("~", "the full path")
	}
	for {
		switch c := r.peek(); c {
		case 0, ' ', '\t', '\n', ';':
			return b.String(), true
		case '\'':
			if !r.singleQuoted(&b) {
				return "", false
			}
		case '"':
			if !r.doubleQuoted(&b) {
				return "", false
			}
		case '\\':
			r.next()
			switch c := r.next(); c {
			case '\n': // joins two lines
			case 0:
				b.WriteByte('\\')
			default:
				b.WriteByte(c)
			}
		case '$':
			if !r.dollar(&b, false) {
				return "", false
			}
		case '`':
			return r.unsupported("a command in backquotes", "its result")
		case '&', '|', '<', '>', '(', ')':
			return r.unsupported(fmt.Sprintf("an unquoted %c", c), "the value in quotes")
		default:
			b.WriteByte(r.next())
		}
	}
}

// singleQuoted reads '...': nothing is special up to the next single quote.
func (r *envReader) singleQuoted(b *strings.Builder) bool {
	line := r.line
	r.next()
	for {
		switch c := r.next(); c {
		case 0:
			return r.unclosed(line, "'")
		case '\'':
			return true
		default:
			r.noteLine(line, c)
			b.WriteByte(c)
		}
	}
}

// doubleQuoted reads "...": $ expands, a backslash protects only $, `, ", \ and the line's end.
func (r *envReader) doubleQuoted(b *strings.Builder) bool {
	line := r.line
	r.next()
	for {
		switch c := r.peek(); c {
		case 0:
			return r.unclosed(line, `"`)
		case '"':
			r.next()
			return true
		case '$':
			if !r.dollar(b, true) {
				return false
			}
		case '`':
			_, ok := r.unsupported("a command in backquotes", "its result")
			return ok
		case '\\':
			r.next()
			switch c := r.peek(); c {
			case '$', '`', '"', '\\':
				b.WriteByte(r.next())
			case '\n':
				r.next()
			default:
				b.WriteByte('\\')
			}
		default:
			r.next()
			r.noteLine(line, c)
			b.WriteByte(c)
		}
	}
}

// dollar expands $NAME and ${NAME}.
func (r *envReader) dollar(b *strings.Builder, quoted bool) bool {
	r.next()
	rest := r.src[r.pos:]
	name := envName.FindString(rest)
	switch {
	case name != "":
		r.pos += len(name)
	case strings.HasPrefix(rest, "{"):
		name = envName.FindString(rest[1:])
		if name == "" || !strings.HasPrefix(rest[1+len(name):], "}") {
			_, ok := r.unsupported("a ${...} that is more than a name", "${NAME}")
			return ok
		}
		r.pos += len(name) + 2
	case strings.HasPrefix(rest, "("):
		_, ok := r.unsupported("a command substitution $(...)", "its result")
		return ok
	case !quoted && (strings.HasPrefix(rest, "'") || strings.HasPrefix(rest, `"`)):
		_, ok := r.unsupported("a quote after $", "plain quotes")
		return ok
	case rest != "" && strings.ContainsRune("0123456789?!#@*$-", rune(rest[0])):
		_, ok := r.unsupported("the shell's own parameter $"+rest[:1], `a name, or \$`)
		return ok
	default:
		b.WriteByte('$')
		return true
	}
	v, ok := r.vars[name]
	if !ok && !r.broken[name] {
		r.warn(r.line, "", "$"+name, "a variable that an earlier line sets", "it is empty here; the environment of the process is not read")
	}
	b.WriteString(v.value)
	return true
}

// noteLine remembers a quote that runs over its line's end into something that looks like an assignment.
func (r *envReader) noteLine(opened int, c byte) {
	if c == '\n' && r.opened == 0 && envAssignment.MatchString(r.src[r.pos:]) {
		r.opened, r.inside = opened, r.line
	}
}

// blameQuote puts the blame for a forgotten quote where it belongs. Every later quote of such a file means the opposite of what
// its author meant, so what it seemed to say after that line is dropped.
func (r *envReader) blameQuote() {
	if r.opened == 0 {
		return
	}
	misread := func(p Problem) bool { return p.Severity == Error && p.Line >= r.opened }
	kept := Problems{}
	failed := false
	for _, p := range r.problems {
		if misread(p) {
			failed = true
			continue
		}
		kept = append(kept, p)
	}
	found := "a quote that is not closed on its line"
	if failed {
		r.problems = kept
		r.refuse(r.opened, "", found, "a closing quote", fmt.Sprintf("it swallows line %d", r.inside))
		return
	}
	r.warn(r.opened, "", found, "a closing quote", fmt.Sprintf("line %d looks like an assignment and became part of the value", r.inside))
}

func (r *envReader) unclosed(line int, mark string) bool {
	r.refuse(line, "", "a quote that is never closed", "a closing "+mark, "")
	return false
}

func (r *envReader) unsupported(found, expected string) (string, bool) {
	r.refuse(r.line, "", found, expected, envSupported)
	return "", false
}

func (r *envReader) refuse(line int, key, found, expected, hint string) {
	r.problems = append(r.problems, Problem{Severity: Error, File: r.file, Line: line, Key: key, Found: found, Expected: expected, Hint: hint})
}

func (r *envReader) warn(line int, key, found, expected, hint string) {
	r.problems = append(r.problems, Problem{Severity: Warning, File: r.file, Line: line, Key: key, Found: found, Expected: expected, Hint: hint})
}

// peek returns the next byte, 0 at the end.
func (r *envReader) peek() byte {
	if r.pos >= len(r.src) {
		return 0
	}
	return r.src[r.pos]
}

func (r *envReader) next() byte {
	c := r.peek()
	if c != 0 {
		r.pos++
	}
	if c == '\n' {
		r.line++
	}
	return c
}

// blanks skips spaces, tabs and joined lines.
func (r *envReader) blanks() {
	for {
		switch {
		case r.peek() == ' ' || r.peek() == '\t':
			r.next()
		case strings.HasPrefix(r.src[r.pos:], "\\\n"):
			r.next()
			r.next()
		default:
			return
		}
	}
}

// skipLine goes to the end of the line, before its newline.
func (r *envReader) skipLine() {
	for r.peek() != 0 && r.peek() != '\n' {
		r.next()
	}
}

// endsWord reports whether a word ends at offset i.
func (r *envReader) endsWord(i int) bool {
	return i >= len(r.src) || strings.ContainsRune(" \t\n;", rune(r.src[i]))
}
