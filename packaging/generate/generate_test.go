package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"wingman/bootstrap"
)

// With every comment sign of a setting taken away the file is YAML in which each key stands where the daemon looks for it, and
// with all of them in place the daemon takes it.
func TestTheSettingsFileIsWhatTheDaemonReads(t *testing.T) {
	text := settingsFile(bootstrap.SettingDocs())
	_, body, _ := strings.Cut(text, "\n\n")
	var bare strings.Builder
	for line := range strings.Lines(body) {
		bare.WriteString(strings.TrimPrefix(line, "#"))
	}
	var tree map[string]any
	if err := yaml.Unmarshal([]byte(bare.String()), &tree); err != nil {
		t.Fatalf("uncommented: %v\n%s", err, bare.String())
	}
	for _, d := range bootstrap.SettingDocs() {
		at := any(tree)
		for _, part := range strings.Split(d.Key, ".") {
			m, ok := at.(map[string]any)
			if !ok {
				t.Fatalf("%s: %q is not below a mapping", d.Key, part)
			}
			if at, ok = m[part]; !ok {
				t.Fatalf("%s is not in the file", d.Key)
			}
		}
	}

	root := t.TempDir()
	for name, content := range map[string]string{"/etc/wingman/wingman.yaml": text} {
		if err := os.MkdirAll(filepath.Dir(root+name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(root+name, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	_, problems := bootstrap.Load(root)
	for _, p := range problems {
		if strings.HasSuffix(p.File, "wingman.yaml") {
			t.Errorf("the daemon says of the file: %s", p)
		}
	}
}

func TestTheChangelogHasTheNewestSectionAsThisVersion(t *testing.T) {
	at := time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)
	got := changelog("# Changelog\n\nWords.\n\n## Unreleased\n\n- New: `x`\n  and more.\n- Second.\n\n## 1.0.0 (2025-12-24)\n\n- First.\n", "1.1.0", "A <a@b.example>", at)
	var entries []struct {
		Semver  string
		Date    time.Time
		Changes []struct{ Note string }
	}
	if err := yaml.Unmarshal([]byte(got), &entries); err != nil {
		t.Fatalf("%v\n%s", err, got)
	}
	if len(entries) != 2 || entries[0].Semver != "1.1.0" || !entries[0].Date.Equal(at) || entries[1].Semver != "1.0.0" || entries[1].Date.Day() != 24 {
		t.Fatalf("entries: %+v", entries)
	}
	if notes := entries[0].Changes; len(notes) != 2 || notes[0].Note != "New: x and more." {
		t.Errorf("notes: %+v", notes)
	}
}
