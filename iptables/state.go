package iptables

import (
	"bufio"
	"fmt"
	"slices"
	"strings"
)

// state is what iptables-save printed for one family: table by name.
type state map[string]*savedTable

// savedTable is one table as the kernel has it.
type savedTable struct {
	chains map[string][]string // rules of every chain in order, canonical, without "-A chain "
	order  []string            // chain names as printed
	raw    map[string][]string // as chains, but as printed: what -D needs
	policy map[string]string   // of built-in chains
	// missing are built-in chains of nf_tables that the table does not have: of others only, and iptables-nft makes them when needed.
	missing []string
}

func newSavedTable() *savedTable {
	return &savedTable{chains: map[string][]string{}, raw: map[string][]string{}, policy: map[string]string{}}
}

func (t *savedTable) has(chain string) bool {
	_, ok := t.policy[chain]
	return ok
}

// hasPrefix reports whether a chain's name begins so.
func (t *savedTable) hasPrefix(prefix string) bool {
	return slices.ContainsFunc(t.order, func(c string) bool { return strings.HasPrefix(c, prefix) })
}

// parseSave reads the output of iptables-save or ip6tables-save, with or without counters.
//
// An error names the line that is not of that form; nothing is guessed, because what is not understood could be removed by
// mistake.
func parseSave(text string) (state, error) {
	s := state{}
	var table *savedTable
	lines := bufio.NewScanner(strings.NewReader(text))
	lines.Buffer(nil, 1<<20)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		bad := func(why string) error { return fmt.Errorf("iptables-save output, line %d: %s: %q", n, why, line) }
		switch {
		case line == "" || strings.HasPrefix(line, "#"):
		case strings.HasPrefix(line, "*"):
			name := line[1:]
			if table != nil || name == "" || s[name] != nil {
				return nil, bad("unexpected table")
			}
			table = newSavedTable()
			s[name] = table
		case table == nil:
			return nil, bad("outside a table")
		case line == "COMMIT":
			table = nil
		case strings.HasPrefix(line, ":"):
			f := strings.Fields(line[1:])
			if len(f) < 2 || table.has(f[0]) {
				return nil, bad("unexpected chain")
			}
			table.order = append(table.order, f[0])
			table.policy[f[0]] = f[1]
		default:
			chain, spec, ok := cutRule(line)
			if !ok || !table.has(chain) {
				return nil, bad("not a rule of a known chain")
			}
			table.chains[chain] = append(table.chains[chain], canonical(spec))
			table.raw[chain] = append(table.raw[chain], spec)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("iptables-save output: %w", err)
	}
	if table != nil {
		return nil, fmt.Errorf("iptables-save output ends inside a table")
	}
	return s, nil
}

// cutRule splits "[1:60] -A CHAIN spec" into chain and spec.
func cutRule(line string) (chain, spec string, ok bool) {
	if strings.HasPrefix(line, "[") {
		_, rest, found := strings.Cut(line, "] ")
		if !found {
			return "", "", false
		}
		line = rest
	}
	line, ok = strings.CutPrefix(line, "-A ")
	if !ok {
		return "", "", false
	}
	chain, spec, _ = strings.Cut(line, " ")
	return chain, strings.TrimSpace(spec), chain != ""
}

// canonical undoes the liberties that versions of iptables take when they print the same rule, so that rules can be compared
// as text. Only forms of matches that we use are known; other text passes unchanged.
func canonical(spec string) string {
	words := strings.Fields(spec)
	out := words[:0]
	for i := 0; i < len(words); i++ {
		w := words[i]
		switch {
		case w == "-p" && i+1 < len(words):
			out = append(out, w)
			i++
			switch words[i] { // 1.8.8 and some others print protocols by number
			case "6":
				out = append(out, "tcp")
			case "17":
				out = append(out, "udp")
			default:
				out = append(out, words[i])
			}
			continue
		case w == "-m" && i+1 < len(words) && (words[i+1] == "tcp" || words[i+1] == "udp"):
			i++ // implied by -p and the port match; some print it without a port match, too
			continue
		case w == "--to-port":
			w = "--to-ports"
		case w == "--set-mark":
			w = "--set-xmark"
		case w == "ESTABLISHED,RELATED":
			w = "RELATED,ESTABLISHED"
		}
		out = append(out, w)
	}
	return strings.Join(out, " ")
}

// target is the chain or verdict that a rule ends in.
func target(spec string) string {
	words := strings.Fields(spec)
	for i := 0; i+1 < len(words); i++ {
		if words[i] == "-j" || words[i] == "-g" {
			return words[i+1]
		}
	}
	return ""
}
