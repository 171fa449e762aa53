package bootstrap

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// This file reads what probes of wingman.yaml have and Istio's do not.

// unitKinds are the kinds of units that can be active for as long as a workload serves.
var unitKinds = []string{".service", ".socket", ".target", ".mount", ".path", ".timer", ".scope", ".slice", ".device"}

func (r *probeReader) unit(n *yaml.Node, key string, to *string) {
	r.text(n, key, to)
	dot := strings.LastIndexByte(*to, '.')
	if dot < 1 || !slices.Contains(unitKinds, (*to)[dot:]) || strings.ContainsAny(*to, "/ \t\n*?[") || len(*to) > 255 {
		r.y.refuse(n, key, describe(n), "the name of a unit, as myapp.service", "")
	}
}

// all reads a list of probes, none of which is one of all.
func (r *probeReader) all(n *yaml.Node, path string) (all []Probe) {
	if n.Kind != yaml.SequenceNode || len(n.Content) == 0 {
		r.y.refuse(n, path, describe(n), "a list of probes", "")
		return []Probe{{}}
	}
	part := *r
	part.methods = append(slices.Clone(probeMethods), "systemdUnit")
	for i, item := range n.Content {
		part.before = len(r.y.problems)
		if p := part.probe(resolve(item), fmt.Sprintf("%s[%d]", path, i)); p != nil {
			all = append(all, *p)
		}
	}
	return all
}

func (r *probeReader) damping(n *yaml.Node, path string) (d Damping) {
	before := len(r.y.problems)
	r.mapping(n, path, func(name, key string, v *yaml.Node) bool {
		switch name {
		case "changes":
			r.count(v, key, &d.Changes)
		case "windowSeconds":
			r.seconds(v, key, &d.Window, false)
		case "holdSeconds":
			r.seconds(v, key, &d.Hold, false)
		default:
			return false
		}
		return true
	}, []string{"changes", "windowSeconds", "holdSeconds"})
	if len(r.y.problems) == before && (d.Changes < 2 || d.Window < time.Second || d.Hold < time.Second) {
		r.y.refuse(n, path, fmt.Sprintf("changes %d, windowSeconds %d, holdSeconds %d", d.Changes, d.Window/time.Second, d.Hold/time.Second),
			"at least 2 changes, and both times at least 1", "")
	}
	return d
}

func (r *probeReader) bytes(n *yaml.Node, key string, to *uint64) {
	const least = 1 << 20 // less than any program needs
	v, err := strconv.ParseUint(n.Value, 10, 48)
	if n.Kind != yaml.ScalarNode || err != nil || v < least {
		r.y.refuse(n, key, describe(n), fmt.Sprintf("a number of bytes from %d on", least), "")
		return
	}
	*to = v
}
