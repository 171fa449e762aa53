package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/cpuguy83/go-md2man/v2/md2man"

	"wingman/bootstrap"
)

// settingsFile is wingman.yaml with every setting in a comment: with its meaning, its default where it has one, and the
// shape of YAML that sets it when the comment signs are taken away.
func settingsFile(docs []bootstrap.SettingDoc) string {
	var b strings.Builder
	b.WriteString(`# Settings of Wingman, the last word after istioctl's files. All are optional; "wingman config show" prints what is in force
# and why, "wingman config check" every problem. wingman.yaml(5) says more. To set one, take "#" off its line and off the
# lines of the levels above it.
`)
	var open []string // levels of the line before
	for _, d := range docs {
		path := strings.Split(d.Key, ".")
		levels, leaf := path[:len(path)-1], path[len(path)-1]
		same := 0
		for same < min(len(open), len(levels)) && open[same] == levels[same] {
			same++
		}
		if same == 0 {
			b.WriteString("\n")
		}
		for i := same; i < len(levels); i++ {
			fmt.Fprintf(&b, "#%s%s:\n", strings.Repeat("  ", i), levels[i])
		}
		open = levels
		indent := strings.Repeat("  ", len(levels))
		for _, line := range wrap(d.Doc, 110-len(indent)) {
			fmt.Fprintf(&b, "#%s# %s\n", indent, line)
		}
		fmt.Fprintf(&b, "#%s# Accepts %s.\n", indent, d.Accepts)
		b.WriteString(strings.TrimRight(fmt.Sprintf("#%s%s: %s", indent, leaf, yamlValue(d.Default)), " ") + "\n")
	}
	return b.String()
}

// yamlValue is a default as YAML takes it: "*" alone would be an alias.
func yamlValue(text string) string {
	if strings.ContainsAny(text, "*&!|>%@`#{}[]") {
		return strconv.Quote(text)
	}
	return text
}

// wrap breaks a text into lines of at most width characters, at spaces.
func wrap(text string, width int) []string {
	var lines []string
	line := ""
	for _, word := range strings.Fields(text) {
		if line != "" && len(line)+1+len(word) > width {
			lines, line = append(lines, line), ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}

// settingsManual is wingman.yaml(5) in roff.
func settingsManual(docs []bootstrap.SettingDoc, version string, at time.Time) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, `%% "WINGMAN.YAML" "5" %q %q "Wingman"

# NAME

wingman.yaml - settings of the mesh agent

# SYNOPSIS

/etc/wingman/wingman.yaml

# DESCRIPTION

The file is optional. Weakest first, settings come from built-in values, istioctl's mesh.yaml, sidecar.env, cluster.env and this file.
A dot in the names below is a level of YAML. A list may be a YAML list or one text with commas. Durations have a unit: 500ms, 20s, 12h.
Unknown keys are errors. **wingman config check** prints every problem of the files at once, **wingman config show** every setting in force
with the file and line that set it.

# SETTINGS

`, at.Format("Jan 2006"), "wingman "+version)
	for _, d := range docs {
		fmt.Fprintf(&b, "**%s**\n: %s", d.Key, d.Doc)
		fmt.Fprintf(&b, " Accepts %s.", d.Accepts)
		if d.Default != "" {
			fmt.Fprintf(&b, " Default: %s.", d.Default)
		}
		if len(d.Istio) > 0 {
			fmt.Fprintf(&b, " Istio's name: %s.", strings.Join(d.Istio, ", "))
		}
		b.WriteString("\n\n")
	}
	b.WriteString("# SEE ALSO\n\n**wingman**(1), **wingman-config**(1)\n")
	return md2man.Render([]byte(b.String()))
}
