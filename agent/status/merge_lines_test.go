package status

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestIsSample(t *testing.T) {
	for _, tc := range []struct {
		line              string
		text, openMetrics bool
	}{
		{"up 1", true, true},
		{"up\t1", true, true},
		{"up 1 1700000000000", true, true},
		{"up{} 1", true, true},
		{"up {a=\"b\"} 1", true, true},
		{`up{a="}",b="\"}{"} NaN`, true, true},
		{`up{a="x # {y"} +Inf`, true, true},
		{`{"a.b",c="d"} 1e-9`, true, true},
		{"up 1e999", true, true},
		{`up{a="b"} 1 # {trace_id="x"} 0.5 1.5`, false, true},
		{`up_total 1 # {trace_id="x"} 0.5`, false, true},
		{"OK", false, false},
		{"not ready yet", false, false},
		{"<html>", false, false},
		{`{"status": "up"}`, false, false},
		{`{"status": "up"} 1`, true, true}, // no parser, a guard
		{"up", false, false},
		{"up ", false, false},
		{"up{a=\"b\"}", false, false},
		{`up{a="b 1`, false, false},
		{"up one", false, false},
		{"up 1 2 3", false, false},
		{"up 1 yesterday", false, false},
		{"1up 1", false, false},
		{"", false, false},
		{"{", false, false},
		{`{"\`, false, false},
	} {
		if got := isSample([]byte(tc.line), false); got != tc.text {
			t.Errorf("isSample(%q) of text = %v, want %v", tc.line, got, tc.text)
		}
		if got := isSample([]byte(tc.line), true); got != tc.openMetrics {
			t.Errorf("isSample(%q) of OpenMetrics = %v, want %v", tc.line, got, tc.openMetrics)
		}
	}
}

func TestCopyLines(t *testing.T) {
	long := "a" + strings.Repeat("b", maxLine)
	broken := errors.New("broken off")
	for _, tc := range []struct {
		name        string
		body        io.Reader
		check       bool
		openMetrics bool
		want, err   string
	}{
		{"nothing", strings.NewReader(""), true, false, "", ""},
		{"whole lines", strings.NewReader("a 1\nb 2\n"), true, false, "a 1\nb 2\n", ""},
		{"the last newline is missing", strings.NewReader("a 1\nb 2"), false, false, "a 1\nb 2\n", ""},
		{"only a newline is missing", strings.NewReader("a 1"), true, false, "a 1\n", ""},
		{"a byte at a time", iotest.OneByteReader(strings.NewReader("a 1\nb 2")), true, false, "a 1\nb 2\n", ""},
		{"the end comes with the data", iotest.DataErrReader(strings.NewReader("a 1\nb 2")), true, false, "a 1\nb 2\n", ""},
		{"half a line when it breaks off", io.MultiReader(strings.NewReader("a 1\nb{c=\"d"), iotest.ErrReader(broken)), false, false, "a 1\n", "broken off"},
		{"nobody looks at Envoy's lines", strings.NewReader("# EOF\n\n?\n"), false, false, "# EOF\n\n?\n", ""},
		{"a mark in the middle", strings.NewReader("a 1\n# EOF\nb 2\n# EOF"), true, true, "a 1\nb 2\n", ""},
		{"a mark of Windows", strings.NewReader("a 1\r\n# EOF\r\n"), true, false, "a 1\r\n", ""},
		{"empty lines", strings.NewReader("\na 1\n\n \nb 2\n"), true, true, "a 1\nb 2\n", ""},
		{"comments are text's", strings.NewReader("# hi\n#x\na 1\n"), true, false, "# hi\n#x\na 1\n", ""},
		{"comments are not OpenMetrics'", strings.NewReader("# hi\n#x\n# HELP a b\n# UNIT a s\n# TYPE a info\na 1\n"), true, true, "# HELP a b\n# UNIT a s\n# TYPE a info\na 1\n", ""},
		{"types that text does not know", strings.NewReader("# TYPE a info\n# TYPE a\n# TYPE a counter\na 1\n"), true, false, "# TYPE a counter\na 1\n", ""},
		{"a page", strings.NewReader("<html>\n<p>hi\n"), true, false, "", `a line that is no metric: "<html>"`},
		{"a bad line late", strings.NewReader("a 1\n# EOF\nb 2\noops\nc 3\n"), true, false, "a 1\nb 2\n", `a line that is no metric: "oops"`},
		{"not UTF-8", strings.NewReader("a 1\nb{c=\"\xff\"} 2\n"), true, false, "a 1\n", "a line that is not UTF-8"},
		{"a zero byte", strings.NewReader("a 1\nb{c=\"\x00\"} 2\n"), true, false, "a 1\n", "a line that is not UTF-8"},
		{"a line without an end", strings.NewReader("a 1\n" + long), true, false, "a 1\n", "a line of more than 64 KiB"},
		{"the longest line", strings.NewReader(long[:maxLine-4] + " 1\n"), true, false, long[:maxLine-4] + " 1\n", ""},
		{"the longest line, and no newline", strings.NewReader(long[:maxLine-4] + " 1"), true, false, long[:maxLine-4] + " 1\n", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out bytes.Buffer
			check := lineCheck(tc.openMetrics)
			if !tc.check {
				check = nil
			}
			err := copyLines(&out, tc.body, check)
			if got := message(err); got != tc.err {
				t.Errorf("error %q, want %q", got, tc.err)
			}
			if out.String() != tc.want {
				t.Errorf("passed on %.200q, want %.200q", out.String(), tc.want)
			}
		})
	}
}

func message(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// A scraper that does not take it is no failure of the source.
func TestCopyLinesTellsWhoFailed(t *testing.T) {
	for _, check := range []func([]byte) (bool, error){nil, lineCheck(false)} {
		r, w := io.Pipe()
		r.CloseWithError(errors.New("gone"))
		if err := copyLines(w, strings.NewReader("a 1\n# EOF\nb 2\n"), check); !errors.Is(err, errSink) {
			t.Errorf("copyLines to a scraper that went away = %v, want errSink", err)
		}
	}
}

// endless is a body of one line again and again.
type endless struct {
	line string
	sent int64
}

func (e *endless) Read(b []byte) (int, error) {
	n := 0
	for n < len(b) {
		m := copy(b[n:], e.line[e.sent%int64(len(e.line)):])
		n, e.sent = n+m, e.sent+int64(m)
	}
	return n, nil
}

func TestCopyLinesEndsAnEndlessBody(t *testing.T) {
	if err := copyLines(io.Discard, &endless{line: strings.Repeat("a", 16<<10) + " 1\n"}, nil); message(err) != "more than 1024 MiB" {
		t.Errorf("copyLines of an endless body = %v", err)
	}
}

func FuzzCopyLines(f *testing.F) {
	f.Add([]byte("# HELP a b\n# TYPE a counter\na{b=\"c\"} 1 # {d=\"e\"} 2\n# EOF\n"), true)
	f.Add([]byte("up 1\r\n\nup{a=\"\\\"}\"} NaN 5"), false)
	f.Add([]byte("<html>"), false)
	f.Fuzz(func(t *testing.T, body []byte, openMetrics bool) {
		var out bytes.Buffer
		_ = copyLines(&out, iotest.HalfReader(bytes.NewReader(body)), lineCheck(openMetrics))
		got := out.Bytes()
		if len(got) > 0 && got[len(got)-1] != '\n' {
			t.Fatalf("%q ends without a newline", got)
		}
		rest := bytes.Split(body, []byte("\n"))
		for line := range bytes.Lines(got) {
			line = bytes.TrimSuffix(line, []byte("\n"))
			for len(rest) > 0 && !bytes.Equal(rest[0], line) {
				rest = rest[1:]
			}
			if len(rest) == 0 {
				t.Fatalf("%q is no line of %q, or came out of order", line, body)
			}
			rest = rest[1:]
			if trimmed := bytes.TrimSpace(line); len(trimmed) == 0 || string(trimmed) == endMark && bytes.HasPrefix(line, []byte("#")) {
				t.Fatalf("%q passed", line)
			}
		}
	})
}

func BenchmarkCopyLines(b *testing.B) {
	body := []byte("# HELP http_requests_total Requests.\n# TYPE http_requests_total counter\n" +
		strings.Repeat(`http_requests_total{method="GET",path="/api/v1/posts",code="200",instance="forum-vm"} 1027`+"\n", 10_000))
	for name, check := range map[string]func([]byte) (bool, error){"Envoy": nil, "application": lineCheck(false)} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				if err := copyLines(io.Discard, bytes.NewReader(body), check); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
