package status

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"
)

// Sanity, not policy: an endless body must end some time, and Envoy's honest one has had 20 MB.
const (
	maxBody = 1 << 30
	maxLine = 64 << 10
)

var lineBuffers = sync.Pool{New: func() any { return new([maxLine]byte) }}

// errSink is what copyLines returns when it is the writer that failed.
var errSink = errors.New("the scraper does not take it")

// copyLines passes whole lines from src to dst in constant memory. A body that breaks off leaves no half line behind, and one that
// ends without a newline gets it, so that what follows starts on a line of its own.
//
// check, if not nil, sees each line without its newline; it says whether to pass it on, or ends the copy with an error. The
// first error of reading or checking is returned, or one that wraps errSink.
func copyLines(dst io.Writer, src io.Reader, check func(line []byte) (pass bool, err error)) error {
	buffer := lineBuffers.Get().(*[maxLine]byte)
	defer lineBuffers.Put(buffer)
	src = io.LimitReader(src, maxBody)
	total, filled := 0, 0
	for {
		n, readErr := src.Read(buffer[filled : maxLine-1]) // one byte left for a last newline
		total, filled = total+n, filled+n
		whole := bytes.LastIndexByte(buffer[:filled], '\n') + 1
		if readErr == io.EOF && whole < filled {
			buffer[filled] = '\n'
			filled++
			whole = filled
		}
		if err := passLines(dst, buffer[:whole], check); err != nil {
			return err
		}
		filled = copy(buffer[:], buffer[whole:filled])
		switch {
		case readErr == io.EOF && total >= maxBody:
			return fmt.Errorf("more than %d MiB", maxBody>>20)
		case readErr == io.EOF:
			return nil
		case readErr != nil:
			return readErr
		case filled == maxLine-1:
			return fmt.Errorf("a line of more than %d KiB", maxLine>>10)
		}
	}
}

// passLines writes the lines that check lets pass, in as few writes as can be.
func passLines(dst io.Writer, lines []byte, check func([]byte) (bool, error)) error {
	from := 0 // start of what is passed on and not written yet
	var bad error
	end := len(lines)
	for at := 0; check != nil && at < len(lines); {
		next := at + bytes.IndexByte(lines[at:], '\n') + 1
		pass, err := check(lines[at : next-1])
		if err != nil {
			bad, end = err, at
			break
		}
		if !pass {
			if err := write(dst, lines[from:at]); err != nil {
				return err
			}
			from = next
		}
		at = next
	}
	if err := write(dst, lines[from:end]); err != nil {
		return err
	}
	return bad
}

func write(dst io.Writer, b []byte) error {
	if len(b) == 0 {
		return nil
	}
	if _, err := dst.Write(b); err != nil {
		return fmt.Errorf("%w: %w", errSink, err)
	}
	return nil
}

// lineCheck returns the check of an application's lines. It lets pass what Prometheus reads: one bad line, and it throws away all that
// came with it, ours and Envoy's too. Comments that it would stumble over are left out, and so is the mark of OpenMetrics' end, behind
// which nothing is read.
func lineCheck(openMetrics bool) func(line []byte) (pass bool, err error) {
	return func(line []byte) (bool, error) {
		line = bytes.TrimRight(line, " \t\r")
		switch {
		case len(line) == 0:
			return false, nil // OpenMetrics knows no empty line
		case !utf8.Valid(line) || bytes.IndexByte(line, 0) >= 0:
			return false, errors.New("a line that is not UTF-8")
		case line[0] == '#':
			return isReadComment(string(line), openMetrics), nil
		case isSample(line, openMetrics):
			return true, nil
		}
		if len(line) > 60 {
			line = append(bytes.ToValidUTF8(line[:60:60], nil), "..."...)
		}
		return false, fmt.Errorf("a line that is no metric: %q", line)
	}
}

// Types that a TYPE line may name (Prometheus model/textparse).
const (
	textTypes        = "counter gauge histogram summary untyped"
	openMetricsTypes = "counter gauge histogram summary unknown gaugehistogram info stateset"
)

// isReadComment reports whether a line that starts with # can be passed on. Text may have any comment, OpenMetrics only its own.
func isReadComment(line string, openMetrics bool) bool {
	if line == endMark {
		return false
	}
	types := textTypes
	if openMetrics {
		types = openMetricsTypes
	}
	switch f := strings.Fields(line); {
	case strings.HasPrefix(line, "# TYPE "):
		return len(f) == 4 && slices.Contains(strings.Fields(types), f[3])
	case strings.HasPrefix(line, "# HELP "), strings.HasPrefix(line, "# UNIT "):
		return len(f) > 2
	}
	return !openMetrics
}

// isSample reports whether a line has the form of a sample: a name, perhaps labels, a number, perhaps a time, in OpenMetrics perhaps
// an exemplar.
func isSample(line []byte, openMetrics bool) bool {
	name := nameLength(line)
	rest := bytes.TrimLeft(line[name:], " \t")
	switch {
	case len(rest) > 0 && rest[0] == '{':
		end := labelsLength(rest)
		rest = rest[end:]
		if end == 0 {
			return false
		}
	case name == 0, len(rest) == len(line)-name:
		return false
	}
	numbers, _, exemplar := bytes.Cut(rest, []byte("#"))
	if exemplar && !openMetrics {
		return false
	}
	count := 0
	for f := range bytes.FieldsSeq(numbers) {
		if _, err := strconv.ParseFloat(string(f), 64); err != nil && !errors.Is(err, strconv.ErrRange) {
			return false
		}
		count++
	}
	return count == 1 || count == 2
}

// nameLength is how long the name at the start of a line is.
func nameLength(line []byte) int {
	for i, c := range line {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_' || c == ':'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return i
		}
	}
	return len(line)
}

// labelsLength is how long the labels are that s starts with, braces included; 0 when they do not end. Quoted values may hold braces.
func labelsLength(s []byte) int {
	quoted := false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case c == '}' && !quoted:
			return i + 1
		}
	}
	return 0
}
