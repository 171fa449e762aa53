package bootstrap

import "slices"

// A SettingDoc says what a setting is, for manuals.
type SettingDoc struct {
	Key     string   // dotted path in wingman.yaml
	Istio   []string // Istio's names of it: variables, flags of ISTIO_AGENT_FLAGS, defaultConfig.FIELD of mesh.yaml
	Accepts string   // what it may be
	Default string   // built-in value; empty: none
	When    When     // when a change takes effect
	Doc     string   // what it means, in Markdown
}

// SettingDocs returns what there is to say of every setting, in the order of docs/settings.md.
func SettingDocs() []SettingDoc {
	docs := make([]SettingDoc, 0, len(settings))
	for _, s := range settings {
		d := SettingDoc{Key: s.key, Accepts: s.accepts, Default: s.def, When: s.when, Doc: s.doc}
		if s.mesh != "" {
			d.Istio = append(d.Istio, "defaultConfig."+s.mesh)
		}
		d.Istio = append(d.Istio, slices.Clone(s.istio)...)
		docs = append(docs, d)
	}
	return docs
}
