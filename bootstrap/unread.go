package bootstrap

import (
	"maps"
	"slices"
	"strings"
)

// Unread names the variables of sidecar.env and cluster.env, each with its file and line, that neither this agent nor istiod makes anything of: somebody who comes from
// another agent may rely on them. What Load has warned of already is not among them.
func (c *Config) Unread() (out []string) {
	known := knownVariables()
	for _, name := range slices.Sorted(maps.Keys(c.env)) {
		v := c.env[name]
		_, dead := deadVariables[name]
		_, idle := idleVariables[name]
		if v.rank == rankMesh || known[name] || dead || idle || strings.HasPrefix(name, "-") || strings.HasPrefix(name, metaPrefix) || strings.HasPrefix(name, metaJSONPrefix) || nearVariable(name) != "" {
			continue
		}
		out = append(out, Problem{File: v.file, Line: v.line, Key: name, Found: "a variable that nothing reads"}.String())
	}
	return out
}
