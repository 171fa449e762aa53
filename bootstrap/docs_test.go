package bootstrap

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite golden files and docs/settings.md")

const settingsPage = "../docs/settings.md"

// sections are the headings of the page, by the first part of a setting's key.
var sections = []struct{ title, keys string }{
	{"Control plane", "istiod xds"},
	{"Workload", "workload dualStack user"},
	{"Identity", "identity"},
	{"Health", "probe probeLocalhost drain"},
	{"DNS", "dns"},
	{"Capture", "capture rules"},
	{"Envoy", "envoy"},
	{"Status, metrics and logs", "status metrics log"},
}

// settingsDoc renders the page from the table of settings.
func settingsDoc() string {
	var b strings.Builder
	b.WriteString(`# Settings

Made from the table in bootstrap/settings.go by ` + "`go test ./bootstrap -run TestSettingsPage -update`" + `; a test compares the two.

Weakest first: built-in values, ` + "`/etc/istio/config/mesh`" + ` (istioctl's mesh.yaml: fields of defaultConfig, and its proxyMetadata as variables),
` + "`/var/lib/istio/envoy/sidecar.env`, `/var/lib/istio/envoy/cluster.env`, `/etc/wingman/wingman.yaml`" + `. A flag is one of ISTIO_AGENT_FLAGS. Where a
setting has several variables, the last one named wins. ` + "`wingman config show`" + ` prints every value with the file and line that set it, ` + "`wingman config check`" + `
every problem; with ` + "`--settings FILE`" + ` those that a wingman.yaml would bring, before it is put in place.

"Changes at" says when a change takes effect: at a ` + "`systemctl reload wingman`" + `, not before a ` + "`systemctl restart wingman`" + `, or, a restart of Envoy, not
before a ` + "`systemctl restart wingman-proxy`" + `. Files that cannot be used change nothing at a reload. ` + "`wingman status`" + ` names what waits for a restart.

In wingman.yaml a dot is a level: ` + "`dns.listen`" + ` is ` + "`listen`" + ` below ` + "`dns`" + `. A list may be a YAML list or one text with commas. Durations have a unit
(500ms, 20s, 12h). Unknown keys are errors. In the env files they are not: ISTIO_META_* and ISTIO_METAJSON_* go to the node's metadata, the rest
is kept and has no effect. Env files are read by the shell's grammar and never executed: assignments, export, quotes, backslashes, comments and
$NAME of earlier lines; anything else is an error with its line. All paths lie below ` + "`--root`" + `.
`)
	for _, section := range sections {
		fmt.Fprintf(&b, "\n## %s\n\n| wingman.yaml | Istio | accepts | default | changes at | meaning |\n|---|---|---|---|---|---|\n", section.title)
		for _, s := range SettingDocs() {
			if first, _, _ := strings.Cut(s.Key, "."); !slices.Contains(strings.Fields(section.keys), first) {
				continue
			}
			def := ""
			if s.Default != "" {
				def = "`" + s.Default + "`"
			}
			names := ""
			if len(s.Istio) > 0 {
				names = "`" + strings.Join(s.Istio, "`, `") + "`"
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s | %s |\n", s.Key, names, s.Accepts, def, s.When, s.Doc)
		}
	}
	b.WriteString("\n## Variables without effect\n\nPeople set these and nothing reads them; the agent warns and names what does.\n\n| variable | instead |\n|---|---|\n")
	for _, name := range mapKeys(deadVariables) {
		fmt.Fprintf(&b, "| `%s` | %s |\n", name, deadVariables[name])
	}
	b.WriteString("\nThese are Istio's, but choose what this agent does otherwise.\n\n| variable | because |\n|---|---|\n")
	for _, name := range mapKeys(idleVariables) {
		fmt.Fprintf(&b, "| `%s` | %s |\n", name, idleVariables[name])
	}
	return b.String()
}

func TestSettingsPage(t *testing.T) {
	want := settingsDoc()
	if *update {
		if err := os.MkdirAll("../docs", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(settingsPage, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(settingsPage)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("docs/settings.md is not what the table says; run with -update (-table +page):\n%s", diff)
	}
	for _, s := range settings {
		if !strings.Contains(want, "| `"+s.key+"` |") {
			t.Errorf("%s is in no section of the page", s.key)
		}
	}
}
