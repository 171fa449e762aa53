package systemd

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// stream is a pipe in the journal's place, and the JOURNAL_STREAM that names it.
func stream(t *testing.T) (w *os.File, journalStream string, read func() string) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	info, err := w.Stat()
	if err != nil {
		t.Fatal(err)
	}
	st := info.Sys().(*syscall.Stat_t)
	return w, fmt.Sprintf("%d:%d", st.Dev, st.Ino), func() string {
		t.Helper()
		w.Close()
		all, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		return string(all)
	}
}

func newLog(t *testing.T, cfg LogConfig) *slog.Logger {
	t.Helper()
	h, err := NewLogHandler(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return slog.New(h)
}

// speak logs one record of each kind.
func speak(log *slog.Logger) {
	log.Debug("query", "name", "a.example.")
	log.Info("certificate renewed", "serial", "4711", "seconds", 0.25)
	log.Warn("stream broke", "error", errors.New("reset\nby peer"), "again", 3*time.Second)
	log.Error("no configuration")
	log.With("scope", "dns").WithGroup("q").With("id", 7).Info("two\nlines", "level", "x")
}

func TestJournalLinesHaveALevelAndNoTime(t *testing.T) {
	w, journalStream, read := stream(t)
	speak(newLog(t, LogConfig{Stream: w, Getenv: env("JOURNAL_STREAM", journalStream), Level: slog.LevelDebug}))
	want := `<7>query name=a.example.
<6>certificate renewed serial=4711 seconds=0.25
<4>stream broke error="reset\nby peer" again=3s
<3>no configuration
<6>"two\nlines" scope=dns q.id=7 q.level=x
`
	if got := read(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestOtherLinesHaveTimeAndLevel(t *testing.T) {
	for _, tt := range []struct {
		name          string
		journalStream func(real string) string
	}{
		{"no journal", func(string) string { return "" }},
		{"a journal that the stream was taken away from", func(real string) string { return real + "1" }},
		{"a variable that makes no sense", func(string) string { return "8:x" }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w, real, read := stream(t)
			speak(newLog(t, LogConfig{Stream: w, Getenv: env("JOURNAL_STREAM", tt.journalStream(real))}))
			const at = `\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}(Z|[+-]\d\d:\d\d) `
			want := regexp.MustCompile(`^` + at + `INFO  certificate renewed serial=4711 seconds=0\.25
` + at + `WARN  stream broke error="reset\\nby peer" again=3s
` + at + `ERROR no configuration
` + at + `INFO  "two\\nlines" scope=dns q\.id=7 q\.level=x
$`)
			if got := read(); !want.MatchString(got) {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

func TestJSON(t *testing.T) {
	for _, journal := range []bool{true, false} {
		w, journalStream, read := stream(t)
		if !journal {
			journalStream = ""
		}
		log := newLog(t, LogConfig{Stream: w, JSON: true, Getenv: env("JOURNAL_STREAM", journalStream)})
		log.Warn("stream broke", "attempt", 2)
		got := read()
		line, prefixed := strings.CutPrefix(got, "<4>")
		if prefixed != journal {
			t.Errorf("journal %v: %q, want the level prefix in the journal alone", journal, got)
		}
		var fields map[string]any
		if err := json.Unmarshal([]byte(line), &fields); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		at, err := time.Parse(time.RFC3339Nano, fmt.Sprint(fields["time"]))
		if err != nil || time.Since(at) > time.Hour {
			t.Errorf("time %v: %v", fields["time"], err)
		}
		delete(fields, "time")
		if want := "map[attempt:2 level:WARN msg:stream broke]"; fmt.Sprint(fields) != want {
			t.Errorf("fields %v, want %s", fields, want)
		}
	}
}

func TestLevelsByScope(t *testing.T) {
	w, journalStream, read := stream(t)
	level := new(slog.LevelVar)
	log := newLog(t, LogConfig{
		Stream: w, Getenv: env("JOURNAL_STREAM", journalStream), Level: level,
		Scopes: map[string]slog.Level{"dns": slog.LevelDebug, "xds": slog.LevelError},
	})
	dns, xds := log.With(ScopeKey, "dns"), log.With("a", "dns").WithGroup("g").With(ScopeKey, "xds")
	say := func(text string) {
		log.Debug(text + " root debug")
		log.Info(text + " root info")
		dns.Debug(text + " dns debug")
		xds.Warn(text + " xds warning")
		xds.Error(text + " xds error")
	}
	say("before")
	level.Set(slog.LevelDebug)
	say("after")
	want := `<6>before root info
<7>before dns debug scope=dns
<3>before xds error a=dns g.scope=xds
<7>after root debug
<6>after root info
<7>after dns debug scope=dns
<3>after xds error a=dns g.scope=xds
`
	if got := read(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestAFileGetsTheRecordsTooAndCanBeReopened(t *testing.T) {
	w, journalStream, read := stream(t)
	path := filepath.Join(t.TempDir(), "wingman.log")
	if err := os.WriteFile(path, []byte("from before\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	h, err := NewLogHandler(LogConfig{Stream: w, Getenv: env("JOURNAL_STREAM", journalStream), File: path})
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(h)
	log.Info("one", "n", 1)
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	log.Info("two")
	if err := h.Reopen(); err != nil {
		t.Fatal(err)
	}
	log.Info("three")
	if err := os.Mkdir(path+".dir", 0o700); err != nil {
		t.Fatal(err)
	}
	h.file.path = path + ".dir" // cannot be opened for writing
	if err := h.Reopen(); err == nil {
		t.Error("reopened a folder as the log file")
	}
	log.Info("four")

	if got, want := read(), "<6>one n=1\n<6>two\n<6>three\n<6>four\n"; got != want {
		t.Errorf("the journal got %q, want %q", got, want)
	}
	for name, want := range map[string]string{path + ".1": "from before|INFO  one n=1|INFO  two|", path: "INFO  three|INFO  four|"} {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		got := regexp.MustCompile(`(?m)^\d{4}-\S+ `).ReplaceAllString(string(data), "")
		if got = strings.ReplaceAll(got, "\n", "|"); got != want {
			t.Errorf("%s holds %q, want %q", filepath.Base(name), got, want)
		}
	}
}

func TestALogFileThatCannotBeOpened(t *testing.T) {
	_, err := NewLogHandler(LogConfig{Stream: os.Stderr, Getenv: env(), File: "/no/such/folder/log"})
	if err == nil || err.Error() != "open log file: open /no/such/folder/log: no such file or directory" {
		t.Errorf("error %v, want one that names the file", err)
	}
}

// writes counts calls of Write.
type writes struct {
	bytes.Buffer
	calls int
}

func (w *writes) Write(p []byte) (int, error) { w.calls++; return w.Buffer.Write(p) }

func TestEachRecordIsOneWrite(t *testing.T) {
	var out writes
	log := slog.New(newLineHandler(&out, true, false))
	var writing sync.WaitGroup
	for range 8 {
		writing.Go(func() {
			for range 100 {
				log.With("from", "here").Info("message", "key", "value")
			}
		})
	}
	writing.Wait()
	if out.calls != 800 || out.String() != strings.Repeat("<6>message from=here key=value\n", 800) {
		t.Errorf("%d writes, want 800 whole lines", out.calls)
	}
}
