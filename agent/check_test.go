package agent

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"wingman/bootstrap"
)

// A token file that is not there is an error only where nothing else can bring a token.
func TestCheckOfAMissingTokenFile(t *testing.T) {
	for _, tt := range []struct {
		sources []string
		member  bool
		want    string
	}{
		{nil, false, "error"},
		{[]string{"systemd", "file"}, false, "error"},
		{[]string{"systemd", "file"}, true, "warning"},
		{[]string{"file", "exec"}, false, "warning"},
		{[]string{"gce"}, false, ""},
	} {
		cfg := &bootstrap.Config{}
		cfg.Identity.Credentials = tt.sources
		cfg.Paths.Token = filepath.Join(t.TempDir(), "istio-token")
		got := ""
		for _, p := range checkToken(cfg, func() ([]byte, error) { return os.ReadFile(cfg.Paths.Token) }, tt.member, time.Now()) {
			got = map[bootstrap.Severity]string{bootstrap.Error: "error", bootstrap.Warning: "warning"}[p.Severity]
		}
		if got != tt.want {
			t.Errorf("sources %v, member %v: %q, want %q", tt.sources, tt.member, got, tt.want)
		}
	}
}

// Settings are judged by what they bring: nothing of what istioctl's files, which may come later, lack; all that is wrong with the settings or comes of them.
func TestCheckSettings(t *testing.T) {
	root := t.TempDir() // a machine that has nothing yet
	file := bootstrap.DefaultPaths(root).WingmanYAML
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("log: {level: loud}\n"), 0o644); err != nil { // what is in place does not count
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, content string
		want          []string // key and found of each error
	}{
		{"no setting at all", "", nil},
		{"good ones", "log: {level: debug}\nistiod: {address: \"192.0.2.1:15012\"}\n", nil},
		{"a value and a key that do not exist", "log: {level: loud}\ndns: {lisen: x}\n", []string{"log.level: \"loud\"", "dns.lisen: an unknown key"}},
		{"what another place of files lacks", "identity: {provisionedDir: /srv/certs}\n", []string{"root-cert: no file"}},
		{"not YAML", "{{{", []string{": no expected node content"}},
	} {
		var got []string
		for _, p := range CheckSettings(root, []byte(tt.content)) {
			if p.Severity == bootstrap.Error {
				got = append(got, p.Key+": "+p.Found)
			}
		}
		slices.Sort(got)
		slices.Sort(tt.want)
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: errors %q, want %q", tt.name, got, tt.want)
		}
	}
}
