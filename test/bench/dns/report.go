package main

import (
	"fmt"
	"io"
	"slices"
)

// Names of the tables.
const (
	residentTable = "resident, with 10,000 services"
	changeTable   = "one service of them changes"
	meshTable     = "a name of the mesh"
	cachedTable   = "an external name, cached"
	uncachedTable = "an external name, not cached"
	lowTable      = "a name of the mesh at 500 questions/s"
	latencyTable  = "p99 at 20,000 questions/s, on one core"
	firstTable    = "first answer after exec, from the disk's table, no control plane"
)

// goals are what the project wants of the daemon's figures: at most this share of another figure, or this much where there is none.
var goals = []struct {
	table   string
	to      string // the peer
	toTable string // where its figure is; empty: the same
	most    float64
}{
	{table: meshTable, to: "knot", most: 0.8},
	{table: cachedTable, to: "knot", toTable: meshTable, most: 0.8},
	{table: uncachedTable, to: "pilot-agent", most: 0.3},
	{table: residentTable, to: "pilot-agent", most: 0.3},
	{table: changeTable, to: "pilot-agent", most: 0.2},
	{table: firstTable, most: 50},
	{table: latencyTable, to: "unbound", most: 1},
	{table: lowTable, to: "knot"},
}

// figure is what was measured of one server, round by round.
type figure struct {
	server string
	taken  []float64
	note   string
}

func (f figure) median() float64 {
	values := slices.Sorted(slices.Values(f.taken))
	return values[len(values)/2]
}

// table holds the figures of one measurement.
type table struct {
	name, unit string
	figures    []figure
}

// report is all that was measured.
type report struct {
	tables        []table
	before, after string // load average
}

// add keeps a table, and prints it: a run takes minutes.
func (r *report) add(t table) {
	r.tables = append(r.tables, t)
	fmt.Printf("%s (%s)\n", t.name, t.unit)
	for _, f := range t.figures {
		fmt.Printf("  %-12s %8.2f", f.server, f.median())
		if len(f.taken) > 1 {
			fmt.Printf("   (%.2f–%.2f)", slices.Min(f.taken), slices.Max(f.taken))
		}
		fmt.Printf("   %s\n", f.note)
	}
}

// find returns the median of a server in a table.
func (r *report) find(name, server string) (median float64, unit string, ok bool) {
	for _, t := range r.tables {
		for _, f := range t.figures {
			if t.name == name && f.server == server {
				return f.median(), t.unit, true
			}
		}
	}
	return 0, "", false
}

// print writes every goal with what was found.
func (r *report) print(w io.Writer) {
	fmt.Fprintf(w, "\n| | wingman | compared with | ratio | at most | |\n|---|---|---|---|---|---|\n")
	for _, g := range goals {
		ours, unit, ok := r.find(g.table, wingmanName)
		if !ok {
			continue
		}
		line := fmt.Sprintf("| %s | %.2f %s |", g.table, ours, unit)
		value := ours
		if g.to == "" {
			line += " | |"
		} else {
			in := g.table
			if g.toTable != "" {
				in = g.toTable
			}
			theirs, _, ok := r.find(in, g.to)
			if !ok {
				fmt.Fprintf(w, "%s %s is not there | | | |\n", line, g.to)
				continue
			}
			value = ours / theirs
			name := g.to
			if in != g.table {
				name += ", " + in
			}
			line += fmt.Sprintf(" %s: %.2f | %.2f |", name, theirs, value)
		}
		switch {
		case g.most == 0:
			line += " | |"
		case value <= g.most:
			line += fmt.Sprintf(" %g | met |", g.most)
		default:
			line += fmt.Sprintf(" %g | MISSED |", g.most)
		}
		fmt.Fprintln(w, line)
	}
	fmt.Fprintf(w, "\nload average of the machine: %s before, %s after\n", r.before, r.after)
}
