package credential

import (
	"flag"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the table of faults in docs/identity.md")

const (
	page      = "../../../../docs/identity.md"
	pageBegin = "<!-- faults of sources: written by go test ./bootstrap/identity/internal/credential -run TestFaultsPage -update -->\n"
	pageEnd   = "<!-- end of faults of sources -->\n"
)

// TestFaultsPage compares the table of docs/identity.md with the cases that TestExec and TestClouds run.
func TestFaultsPage(t *testing.T) {
	var b strings.Builder
	b.WriteString("| source | fault | what is said |\n|---|---|---|\n")
	row := func(source, name, want string) {
		if want != "" {
			text := strings.NewReplacer("PROGRAM", "/usr/bin/get-token", "HOST", linkLocal, "|", "\\|").Replace(want)
			b.WriteString("| `" + source + "` | " + name + " | " + text + " |\n")
		}
	}
	for _, c := range execCases() {
		row("exec", c.name, c.want)
	}
	for _, c := range cloudCases() {
		row(c.cloud, c.name, c.want)
	}
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), pageBegin)
	got, after, closed := strings.Cut(rest, pageEnd)
	if !ok || !closed {
		t.Fatalf("%s has no table between its two marks", page)
	}
	if *update {
		if err := os.WriteFile(page, []byte(before+pageBegin+b.String()+pageEnd+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if got != b.String() {
		t.Errorf("the table in docs/identity.md is another one; run with -update. Want:\n%s", b.String())
	}
}
