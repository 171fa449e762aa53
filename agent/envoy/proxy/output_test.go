package proxy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"
)

// told runs a relay over what Envoy says and returns one line for each record.
func told(said string) (lines []string, last string) {
	var b bytes.Buffer
	// Errors alone: Envoy's lines pass whatever the level is.
	r := relay{log: slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{Level: slog.LevelError, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))}
	r.run(strings.NewReader(said))
	return strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n"), r.lastError()
}

func TestRelay(t *testing.T) {
	tests := []struct {
		name, said string
		want       []string
		last       string
	}{
		{"each level", "trace\tmain\ta\ndebug\thttp\tb\ninfo\tconfig\tc\nwarning\tconfig\td\nerror\tconfig\te\ncritical\tmain\tf\n",
			[]string{"level=DEBUG msg=a component=main", "level=DEBUG msg=b component=http", "level=INFO msg=c component=config",
				"level=WARN msg=d component=config", "level=ERROR msg=e component=config", "level=ERROR msg=f component=main"}, "f"},
		{"a message of several lines keeps its level", "warning\tconfig\tlisteners:\n  virtualInbound: no\n\ninfo\tmain\tnext\n",
			[]string{`level=WARN msg=listeners: component=config`, `level=WARN msg="  virtualInbound: no" component=config`, `level=INFO msg=next component=main`}, ""},
		{"before the log is set up", "error while loading shared libraries\n", []string{`level=INFO msg="error while loading shared libraries"`}, ""},
		{"tabs in the text", "info\tmain\ta\tb\n", []string{`level=INFO msg="a\tb" component=main`}, ""},
		{"an unknown level is text", "loud\tmain\ta\n", []string{`level=INFO msg="loud\tmain\ta"`}, ""},
		{"no end of line at the end", "critical\tmain\tlast words", []string{`level=ERROR msg="last words" component=main`}, "last words"},
		{"a backtrace says something at its start", "critical\tbacktrace\tCaught Aborted\ncritical\tbacktrace\t#0: [0x1]\n",
			[]string{`level=ERROR msg="Caught Aborted" component=backtrace`, `level=ERROR msg="#0: [0x1]" component=backtrace`}, "Caught Aborted"},
		{"what failed before it says more", "critical\tassert\tassert failure: x\ncritical\tbacktrace\tCaught Aborted\n",
			[]string{`level=ERROR msg="assert failure: x" component=assert`, `level=ERROR msg="Caught Aborted" component=backtrace`}, "assert failure: x"},
		{"bytes that are no text", "info\tmain\t\xff\xfe!\n", []string{"level=INFO msg=\"\uFFFD!\" component=main"}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, last := told(tt.said)
			if strings.Join(got, "\n") != strings.Join(tt.want, "\n") || last != tt.last {
				t.Errorf("got\n%s\nlast %q; want\n%s\nlast %q", strings.Join(got, "\n"), last, strings.Join(tt.want, "\n"), tt.last)
			}
		})
	}
}

func TestALineWithoutEndIsCut(t *testing.T) {
	n := 0
	eachLine(strings.NewReader(strings.Repeat("x", 3*maxLine)+"\ny\n"), func(line string) {
		if len(line) > maxLine {
			t.Errorf("a line of %d bytes", len(line))
		}
		n++
	})
	if n < 4 {
		t.Errorf("%d lines, want at least 4", n)
	}
}

// chunks gives what it holds in pieces of odd sizes.
type chunks struct {
	text string
	size int
}

func (c *chunks) Read(b []byte) (int, error) {
	if c.text == "" {
		return 0, io.EOF
	}
	c.size = c.size%7 + 1
	n := copy(b, c.text[:min(c.size, len(c.text))])
	c.text = c.text[n:]
	return n, nil
}

// wholeLines complains of a write that ends within a line.
type wholeLines struct {
	t testing.TB
	bytes.Buffer
}

func (w *wholeLines) Write(b []byte) (int, error) {
	if len(b) < maxLine && !bytes.HasSuffix(b, []byte("\n")) {
		w.t.Errorf("half a line: %q", b)
	}
	return w.Buffer.Write(b)
}

func TestAccessLogsArriveAsTheyAre(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	var text strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&text, `{"path":"/%d","bytes":%d}`+"\n", i, i*i)
	}
	out := &wholeLines{t: t}
	copyLines(out, &chunks{text: text.String()}, log)
	if out.String() != text.String() {
		t.Error("what arrives is not what was written")
	}
	long := strings.Repeat("x", 2*maxLine+5) + "\n"
	var b bytes.Buffer
	copyLines(&b, strings.NewReader(long), log)
	if b.String() != long {
		t.Errorf("a line of %d bytes arrives as %d", len(long), b.Len())
	}
}

type fullDisk struct{ writes int }

func (f *fullDisk) Write([]byte) (int, error) {
	f.writes++
	return 0, errors.New("no space left on device")
}

// An Envoy whose output is full would stop logging: it is read on, and the loss is said once.
func TestOutputThatNobodyTakes(t *testing.T) {
	var logs bytes.Buffer
	to, from := &fullDisk{}, &chunks{text: strings.Repeat("line\n", 1000)}
	copyLines(to, from, slog.New(slog.NewTextHandler(&logs, nil)))
	if from.text != "" {
		t.Errorf("%d bytes were left unread", len(from.text))
	}
	if to.writes != 1 || strings.Count(logs.String(), "lost") != 1 {
		t.Errorf("%d attempts to write, said:\n%s", to.writes, &logs)
	}
}

func FuzzRelay(f *testing.F) {
	f.Add("info\tmain\ttext\nnext\n")
	f.Add("\t\t\n\x00\xff")
	f.Fuzz(func(t *testing.T, said string) {
		for _, line := range func() []string { l, _ := told(said); return l }() {
			if line != "" && !strings.HasPrefix(line, "level=") {
				t.Errorf("%q makes the line %q", said, line)
			}
		}
	})
}

func FuzzParseStat(f *testing.F) {
	f.Add("812 (nginx) S 1 812 812 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 1 2")
	f.Add("1 (a) b) c) R")
	f.Fuzz(func(t *testing.T, stat string) {
		if state, start, ok := parseStat(stat); !ok && (state != "" && start != 0) {
			t.Errorf("%q is not ok and gives %q, %d", stat, state, start)
		}
	})
}

func TestParseStat(t *testing.T) {
	const tail = " 1 812 812 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 1 2"
	for _, tt := range []struct {
		stat, state string
		start       uint64
		ok          bool
	}{
		{"812 (nginx) S" + tail, "S", 4711, true},
		{"812 (a) Z (b)) R" + tail, "R", 4711, true},
		{"812 (nginx) S 1 2 3", "", 0, false},
		{"812 nginx S" + tail, "", 0, false},
	} {
		if state, start, ok := parseStat(tt.stat); state != tt.state || start != tt.start || ok != tt.ok {
			t.Errorf("%q: %q, %d, %v; want %q, %d, %v", tt.stat, state, start, ok, tt.state, tt.start, tt.ok)
		}
	}
}
