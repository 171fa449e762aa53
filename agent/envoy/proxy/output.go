package proxy

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// maxLine bounds a line of Envoy's log; what is longer goes on as a line of its own.
const maxLine = 64 << 10

// levels are Envoy's words for the severity of a line (%l).
var levels = map[string]slog.Level{
	"trace": slog.LevelDebug, "debug": slog.LevelDebug, "info": slog.LevelInfo, "warning": slog.LevelWarn,
	"error": slog.LevelError, "critical": slog.LevelError,
}

// relay reads Envoy's log and hands each line to log, with its level and component. Envoy's own --log-level decides what is said:
// the level of log does not filter it again.
type relay struct {
	log *slog.Logger

	mu   sync.Mutex // guards everything below
	last string     // the newest line of level error, but of a backtrace the first
	from string     // its component
}

// complain notes a line of level error. A backtrace says something at its start, and what failed before says more.
func (r *relay) complain(component, text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if component == "backtrace" && (r.from == "backtrace" || r.from == "assert") {
		return
	}
	r.last, r.from = text, component
}

// lastError is what Envoy complained of last: the reason why it ended, most often.
func (r *relay) lastError() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last
}

func (r *relay) run(from io.Reader) {
	level, component := slog.LevelInfo, ""
	eachLine(from, func(line string) {
		text := line
		if l, c, t, ok := parseLog(line); ok {
			level, component, text = l, c, t
		} // else it goes on from the line before, or is from before the log was set up
		if strings.TrimSpace(text) == "" {
			return
		}
		if level >= slog.LevelError {
			r.complain(component, text)
		}
		record := slog.NewRecord(time.Now(), level, text, 0)
		if component != "" {
			record.AddAttrs(slog.String("component", component))
		}
		_ = r.log.Handler().Handle(context.Background(), record) // a log that fails cannot be logged
	})
}

// parseLog reads a line in logFormat.
func parseLog(line string) (level slog.Level, component, text string, ok bool) {
	word, rest, ok := strings.Cut(line, "\t")
	level, known := levels[word]
	if !ok || !known {
		return 0, "", "", false
	}
	component, text, ok = strings.Cut(rest, "\t")
	return level, component, text, ok
}

// eachLine calls f with every line of r, without its end, until r ends.
func eachLine(r io.Reader, f func(line string)) {
	br := bufio.NewReaderSize(r, maxLine)
	for {
		b, err := br.ReadSlice('\n')
		if len(b) > 0 {
			f(strings.TrimSuffix(strings.ToValidUTF8(string(b), "\uFFFD"), "\n"))
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
}

// copyLines hands on what Envoy writes to its standard output, access logs, as it is: whole lines at a time, so that they do not
// mix with others. When to does not take it any more it is read all the same: an Envoy whose output is full stops logging.
func copyLines(to io.Writer, from io.Reader, log *slog.Logger) {
	buf := make([]byte, maxLine)
	kept, broken := 0, false
	write := func(b []byte) {
		if broken || len(b) == 0 {
			return
		}
		if _, err := to.Write(b); err != nil {
			broken = true
			log.Warn("Envoy's access logs are lost: standard output takes them no more", "cause", err)
		}
	}
	for {
		n, err := from.Read(buf[kept:])
		kept += n
		whole := bytes.LastIndexByte(buf[:kept], '\n') + 1
		if err != nil || whole == 0 && kept == len(buf) {
			whole = kept
		}
		write(buf[:whole])
		kept = copy(buf, buf[whole:kept])
		if err != nil {
			return
		}
	}
}
