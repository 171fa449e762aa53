package systemd

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"
)

// ScopeKey is the attribute that names the part of the daemon a record comes from: log.With(systemd.ScopeKey, "dns").
const ScopeKey = "scope"

// logTime is how lines tell the time where the journal does not.
const logTime = "2006-01-02T15:04:05.000Z07:00"

// LogConfig is what a LogHandler is made from.
type LogConfig struct {
	Stream *os.File // where records go, os.Stderr in the daemon

	// Getenv is os.Getenv in the daemon. JOURNAL_STREAM tells whether Stream is the journal.
	Getenv func(string) string

	// JSON makes each record one JSON object, with time and level. Else it is the message, then key=value.
	JSON bool

	// Level is the least level that is written; nil is info.
	Level slog.Leveler

	// Scopes overrides Level for loggers that carry that value of ScopeKey. Istio: --log_output_level=dns:debug.
	Scopes map[string]slog.Level

	// File gets every record too, appended, with its time; empty for none. A new one has mode 0640.
	File string
}

// A LogHandler writes records as one line each, in one write. In the journal a line has a level prefix (sd-daemon(3)) and
// neither time nor level, which the journal keeps itself; anywhere else it begins with both. Safe for concurrent use.
type LogHandler struct {
	slog.Handler
	file *logFile // nil for none
}

// NewLogHandler returns the handler, with cfg.File open if one is wanted.
func NewLogHandler(cfg LogConfig) (*LogHandler, error) {
	level := cfg.Level
	if level == nil {
		level = slog.LevelInfo
	}
	h := &LogHandler{}
	handlers := []slog.Handler{newLineHandler(cfg.Stream, isJournal(cfg.Stream, cfg.Getenv("JOURNAL_STREAM")), cfg.JSON)}
	if cfg.File != "" {
		h.file = &logFile{path: cfg.File}
		if err := h.file.reopen(); err != nil {
			return nil, err
		}
		handlers = append(handlers, newLineHandler(h.file, false, cfg.JSON))
	}
	h.Handler = scoped{Handler: slog.NewMultiHandler(handlers...), level: level, scopes: maps.Clone(cfg.Scopes)}
	return h, nil
}

// Reopen opens the log file again, for logrotate. On an error the old one stays in use.
func (h *LogHandler) Reopen() error {
	if h.file == nil {
		return nil
	}
	return h.file.reopen()
}

// scoped drops records below the level of their scope.
type scoped struct {
	slog.Handler
	level  slog.Leveler
	scopes map[string]slog.Level
}

func (h scoped) Enabled(_ context.Context, level slog.Level) bool { return level >= h.level.Level() }

func (h scoped) WithAttrs(attrs []slog.Attr) slog.Handler {
	for _, a := range attrs {
		if level, ok := h.scopes[a.Value.String()]; ok && a.Key == ScopeKey {
			h.level = level
		}
	}
	h.Handler = h.Handler.WithAttrs(attrs)
	return h
}

func (h scoped) WithGroup(name string) slog.Handler {
	h.Handler = h.Handler.WithGroup(name)
	return h
}

// lineHandler puts a prefix and the message in front of what package slog makes of the fields.
type lineHandler struct {
	line   *line
	prefix func(slog.Record) string
	json   bool
	fields slog.Handler // writes to line.buf
}

// line is shared by all handlers that derive from one.
type line struct {
	mu  sync.Mutex // guards everything below
	out io.Writer
	buf bytes.Buffer
}

func newLineHandler(out io.Writer, journal, json bool) *lineHandler {
	h := &lineHandler{line: &line{out: out}, json: json}
	switch {
	case journal:
		h.prefix = journalPrefix
	case json:
		h.prefix = func(slog.Record) string { return "" }
	default:
		h.prefix = plainPrefix
	}
	options := &slog.HandlerOptions{Level: slog.Level(math.MinInt)} // scoped decides what is written
	if json {
		h.fields = slog.NewJSONHandler(&h.line.buf, options)
		return h
	}
	options.ReplaceAttr = func(groups []string, a slog.Attr) slog.Attr {
		_, isLevel := a.Value.Any().(slog.Level)
		if len(groups) == 0 && (a.Key == slog.LevelKey && isLevel || a.Key == slog.MessageKey && a.Value.String() == "") {
			return slog.Attr{}
		}
		return a
	}
	h.fields = slog.NewTextHandler(&h.line.buf, options)
	return h
}

func (h *lineHandler) Enabled(context.Context, slog.Level) bool { return true }

func (h *lineHandler) Handle(ctx context.Context, r slog.Record) error {
	h.line.mu.Lock()
	defer h.line.mu.Unlock()
	buf := &h.line.buf
	buf.Reset()
	buf.WriteString(h.prefix(r))
	if !h.json {
		buf.WriteString(printable(r.Message))
		buf.WriteByte(' ')
		fields := slog.NewRecord(time.Time{}, r.Level, "", 0)
		r.Attrs(func(a slog.Attr) bool { fields.AddAttrs(a); return true })
		r = fields
	}
	if err := h.fields.Handle(ctx, r); err != nil {
		return err
	}
	if bytes.HasSuffix(buf.Bytes(), []byte(" \n")) { // a message without fields
		buf.Truncate(buf.Len() - len(" \n"))
		buf.WriteByte('\n')
	}
	_, err := h.line.out.Write(buf.Bytes())
	return err
}

func (h *lineHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	next := *h
	next.fields = h.fields.WithAttrs(attrs)
	return &next
}

func (h *lineHandler) WithGroup(name string) slog.Handler {
	next := *h
	next.fields = h.fields.WithGroup(name)
	return &next
}

// journalPrefix is the syslog priority that the journal reads off each line and takes away: sd-daemon(3).
func journalPrefix(r slog.Record) string {
	switch {
	case r.Level >= slog.LevelError:
		return "<3>"
	case r.Level >= slog.LevelWarn:
		return "<4>"
	case r.Level >= slog.LevelInfo:
		return "<6>"
	}
	return "<7>"
}

func plainPrefix(r slog.Record) string {
	return fmt.Sprintf("%s %-5s ", r.Time.Format(logTime), r.Level)
}

// printable keeps a message on its line.
func printable(message string) string {
	if strings.ContainsFunc(message, unicode.IsControl) {
		return strconv.Quote(message)
	}
	return message
}

// isJournal reports whether f is the journal's stream, whose device and inode systemd puts in JOURNAL_STREAM as
// "DEVICE:INODE": systemd.exec(5). The variable alone says nothing, since the stream may have been redirected.
func isJournal(f *os.File, journalStream string) bool {
	device, inode, ok := strings.Cut(journalStream, ":")
	if !ok {
		return false
	}
	dev, err1 := strconv.ParseUint(device, 10, 64)
	ino, err2 := strconv.ParseUint(inode, 10, 64)
	if err1 != nil || err2 != nil {
		return false
	}
	info, err := f.Stat()
	if err != nil {
		return false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && st.Dev == dev && st.Ino == ino
}

// logFile is a file that can be opened again under its name.
type logFile struct {
	path string

	mu   sync.Mutex // guards file
	file *os.File
}

func (l *logFile) reopen() error {
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
	if err != nil {
		return fmt.Errorf("open log file: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != nil {
		l.file.Close() // each line is written whole; nothing is pending
	}
	l.file = f
	return nil
}

func (l *logFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.file.Write(p)
}
