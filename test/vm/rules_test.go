package vm

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// rulesWatch is `nft monitor` at work on a machine: the kernel tells of every change of nf_tables, also of those that iptables-nft makes.
type rulesWatch struct {
	t     *testing.T
	m     *Machine
	lines <-chan string
	marks int
}

func watchRules(t *testing.T, m *Machine) *rulesWatch {
	t.Helper()
	w := &rulesWatch{t: t, m: m, lines: readLines(t, m.Command("nft", "monitor"))}
	m.await("nft monitor", func() bool { // it does not say when it begins
		w.mark()
		select {
		case <-w.lines:
			return true
		case <-time.After(50 * time.Millisecond):
			return false
		}
	})
	w.gone()
	return w
}

// mark makes the kernel tell of a table of that name.
func (w *rulesWatch) mark() (table string) {
	w.t.Helper()
	w.marks++
	table = fmt.Sprintf("mark%d", w.marks)
	w.m.Sh(fmt.Sprintf("nft add table inet %s; nft delete table inet %s", table, table))
	return table
}

// gone lists what the kernel told since the last time of rules, chains and tables that went.
func (w *rulesWatch) gone() (lines []string) {
	w.t.Helper()
	end := "delete table inet " + w.mark()
	late := time.After(time.Minute)
	for {
		select {
		case line := <-w.lines:
			switch {
			case strings.HasPrefix(line, end):
				return lines
			case strings.Contains(line, "table inet mark"), strings.HasPrefix(line, "# "), strings.HasPrefix(line, "add "):
			default: // delete, destroy, flush
				lines = append(lines, line)
			}
		case <-late:
			w.t.Fatal("nft monitor has ended, or says nothing")
		}
	}
}
