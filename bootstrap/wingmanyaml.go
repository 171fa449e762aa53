package bootstrap

import (
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// ownTree is a setting of wingman.yaml that is a mapping itself.
type ownTree struct {
	y    *yamlFile
	node *yaml.Node
	key  *yaml.Node
}

// readWingman reads wingman.yaml, which need not exist. Every key must be in the table of settings.
func (l *loader) readWingman() {
	l.ownTrees = map[string]ownTree{}
	file := l.c.Paths.WingmanYAML
	src, ok := l.read(file, Problem{})
	if !ok {
		return
	}
	y := &yamlFile{file: file}
	if top := y.parse(src); top != nil {
		l.ownKeys(y, top, "")
	}
	l.add(y.problems...)
}

// ownKeys reads the mapping at path.
func (l *loader) ownKeys(y *yamlFile, n *yaml.Node, path string) {
	for _, e := range y.entries(n, path) {
		key := join(path, e.name)
		s, leaf := settingByKey(key)
		switch {
		case isNull(e.value):
			if !leaf && len(keysBelow(key)) == 0 {
				l.unknownKey(y, e, path)
			}
		case leaf && s.tree:
			l.ownTrees[key] = ownTree{y: y, node: e.value, key: e.key}
		case leaf:
			l.ownValue(y, e, s)
		case len(keysBelow(key)) == 0:
			l.unknownKey(y, e, path)
		case e.value.Kind != yaml.MappingNode:
			y.refuse(e.value, key, describe(e.value), "a mapping with "+strings.Join(keysBelow(key), ", "), "")
		default:
			l.ownKeys(y, e.value, key)
		}
	}
}

// ownValue reads a scalar, or a list where the setting is one.
func (l *loader) ownValue(y *yamlFile, e entry, s setting) {
	text, ok := scalarText(e.value, s.list)
	switch {
	case !ok:
		y.refuse(e.value, s.key, describe(e.value), s.accepts, "")
		return
	case text == "" && !s.empty:
		y.refuse(e.value, s.key, "an empty value", s.accepts, "leave the key out for what the other files say")
		return
	}
	l.own[s.key] = value{text: text, file: y.file, line: y.line(e.key), key: s.key, rank: rankWingman}
}

// scalarText returns a scalar's text, or with lists a list of scalars as one text with commas.
func scalarText(n *yaml.Node, lists bool) (text string, ok bool) {
	if n.Kind != yaml.SequenceNode || !lists {
		return n.Value, n.Kind == yaml.ScalarNode && !isNull(n)
	}
	var parts []string
	for _, item := range n.Content {
		item = resolve(item)
		if item.Kind != yaml.ScalarNode || isNull(item) {
			return "", false
		}
		parts = append(parts, item.Value)
	}
	return strings.Join(parts, ","), true
}

// unknownKey refuses a key and names the nearest: among its siblings, else the full path of one that ends in that name.
func (l *loader) unknownKey(y *yamlFile, e entry, path string) {
	siblings := keysBelow(path)
	hint := didYouMean(e.name, siblings)
	if hint == "" {
		for _, s := range settings {
			if last := s.key[strings.LastIndex(s.key, ".")+1:]; strings.EqualFold(last, e.name) {
				hint = "did you mean " + s.key + "?"
			}
		}
	}
	if s, ok := settingByIstio(e.name); ok && hint == "" {
		hint = "Istio's " + e.name + " is " + s.key + " here"
	}
	y.refuse(e.key, join(path, e.name), "an unknown key", "one of "+strings.Join(siblings, ", "), hint)
}

// settingByKey returns the setting at a dotted path.
func settingByKey(key string) (setting, bool) {
	for _, s := range settings {
		if s.key == key {
			return s, true
		}
	}
	return setting{}, false
}

// settingByIstio returns the first setting that a variable or flag sets.
func settingByIstio(name string) (setting, bool) {
	for _, s := range settings {
		for _, istio := range s.istio {
			if istio == name {
				return s, true
			}
		}
	}
	return setting{}, false
}

// keysBelow returns the keys of the mapping at path, in the table's order; none when path is not a mapping of ours.
func keysBelow(path string) []string {
	var keys []string
	prefix := path + "."
	if path == "" {
		prefix = ""
	}
	for _, s := range settings {
		rest, ok := strings.CutPrefix(s.key, prefix)
		if !ok {
			continue
		}
		name, _, _ := strings.Cut(rest, ".")
		if !slices.Contains(keys, name) {
			keys = append(keys, name)
		}
	}
	return keys
}
