package bootstrap

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// yamlFile is a parsed YAML text that reports what is wrong in it.
type yamlFile struct {
	file     string
	offset   int // lines before its first, for YAML inside another file
	lines    int // that it has
	problems Problems
}

var yamlErrorLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)`)

// parse returns the mapping at the top of src, nil when there is none. An empty text is none without a problem.
func (y *yamlFile) parse(src []byte) *yaml.Node {
	y.lines = bytes.Count(src, []byte("\n")) + 1
	dec := yaml.NewDecoder(bytes.NewReader(src))
	var doc yaml.Node
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		y.syntaxError(err)
		return nil
	}
	if err := dec.Decode(new(yaml.Node)); err == nil {
		y.refuse(&doc, "", "several documents", "one", "remove what follows ---")
		return nil
	} else if !errors.Is(err, io.EOF) {
		y.syntaxError(err)
		return nil
	}
	top := resolve(doc.Content[0])
	switch {
	case isNull(top):
		return nil
	case top.Kind != yaml.MappingNode:
		y.refuse(top, "", describe(top), "a mapping of keys to values", "")
		return nil
	}
	return top
}

func (y *yamlFile) syntaxError(err error) {
	line, text := 0, err.Error()
	if m := yamlErrorLine.FindStringSubmatch(text); m != nil {
		line, _ = strconv.Atoi(m[1])
		text = m[2]
	}
	if line > 0 {
		line = y.line(&yaml.Node{Line: line})
	}
	text = strings.TrimPrefix(strings.Replace(text, "did not find", "no", 1), "found ")
	y.problems = append(y.problems, Problem{Severity: Error, File: y.file, Line: line, Found: text, Expected: "valid YAML"})
}

func (y *yamlFile) refuse(at *yaml.Node, key, found, expected, hint string) {
	y.problems = append(y.problems, Problem{Severity: Error, File: y.file, Line: y.line(at), Key: key, Found: found, Expected: expected, Hint: hint})
}

func (y *yamlFile) warn(at *yaml.Node, key, found, expected, hint string) {
	y.problems = append(y.problems, Problem{Severity: Warning, File: y.file, Line: y.line(at), Key: key, Found: found, Expected: expected, Hint: hint})
}

// line is where a node stands, as an editor counts. The parser counts more: a CR or the end of the text begins a line there.
func (y *yamlFile) line(n *yaml.Node) int { return min(n.Line, y.lines) + y.offset }

// entry is one key of a mapping.
type entry struct {
	name  string
	key   *yaml.Node
	value *yaml.Node
}

// entries returns the entries of a mapping, in order, each name once; path is the mapping's own.
func (y *yamlFile) entries(n *yaml.Node, path string) []entry {
	var list []entry
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k := resolve(n.Content[i])
		if k.Kind != yaml.ScalarNode {
			y.refuse(k, path, describe(k)+" as a key", "text", "")
			continue
		}
		if first, ok := seen[k.Value]; ok {
			y.refuse(k, join(path, k.Value), "the key a second time", "it once", fmt.Sprintf("line %d has it already", first))
			continue
		}
		seen[k.Value] = y.line(k)
		list = append(list, entry{name: k.Value, key: k, value: resolve(n.Content[i+1])})
	}
	return list
}

// resolve follows an alias to what it stands for.
func resolve(n *yaml.Node) *yaml.Node {
	for n.Kind == yaml.AliasNode && n.Alias != nil {
		n = n.Alias
	}
	return n
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

// describe says what stands at a node, for messages.
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.ScalarNode:
		if n.Tag == "!!null" {
			return "nothing"
		}
		return quote(n.Value)
	}
	return "something else"
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}
