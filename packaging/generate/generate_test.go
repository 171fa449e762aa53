package main

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
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

func TestLicencesAreNamedByTheirWords(t *testing.T) {
	const apache = "                                 Apache License\n                           Version 2.0, January 2004\n"
	const mit = "Permission is hereby granted, free of\ncharge, to any person obtaining a copy"
	for _, tc := range []struct {
		name, text, want string
	}{
		{"Apache", apache, "Apache-2.0"},
		{"MIT with odd line breaks", mit, "MIT"},
		{"two at once", mit + "\n\n" + apache, "Apache-2.0 MIT"},
		{"three clauses", "Redistributions of source code must retain …\n * Neither the name of Google Inc. nor …", "BSD-3-Clause"},
		{"two clauses", "Redistributions of source code must retain …", "BSD-2-Clause"},
		{"one that nobody has read", "You may use this on Tuesdays.", ""},
		{"one that asks for the source", "GNU GENERAL PUBLIC LICENSE\n   Version 3, 29 June 2007", ""},
		{"one that asks for the source, beside one that does not", mit + "\nParts are under the GNU Affero\nGeneral Public License.", ""},
		{"one for files", "Mozilla Public License Version 2.0", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := licenceNames(tc.text)
			if strings.Join(got, " ") != tc.want || (err == nil) != (tc.want != "") {
				t.Errorf("licenceNames = %q, %v; want %q", got, err, tc.want)
			}
		})
	}
}

// A module whose licence is not let in fails everything that is made of the list.
func TestAModuleUnderAnotherLicenceIsRefused(t *testing.T) {
	dir := t.TempDir()
	strange := []module{{Path: "example.com/strange", Version: "v1.0.0", Dir: dir}}
	for _, tc := range []struct{ name, file, text string }{
		{"without any", "README", "hello"},
		{"GPL", "COPYING", "GNU GENERAL PUBLIC LICENSE Version 2, June 1991"},
		{"unknown", "LICENSE", "Ask me."},
	} {
		t.Run(tc.name, func(t *testing.T) {
			file := filepath.Join(dir, tc.file)
			if err := os.WriteFile(file, []byte(tc.text), 0o644); err != nil {
				t.Fatal(err)
			}
			defer os.Remove(file)
			for name, make := range map[string]func([]module) ([]byte, error){"copyright": debianCopyright, "page": licencesPage} {
				if _, err := make(strange); err == nil || !strings.Contains(err.Error(), "example.com/strange") {
					t.Errorf("%s: error %v; want one that names the module", name, err)
				}
			}
		})
	}
}

var update = flag.Bool("update", false, "write docs/licences.md")

func TestLicencesPage(t *testing.T) {
	t.Chdir("../..")
	modules, err := linkedModules()
	if err != nil {
		t.Fatal(err)
	}
	want, err := licencesPage(modules)
	if err != nil {
		t.Fatal(err)
	}
	const page = "docs/licences.md"
	if *update {
		if err := os.WriteFile(page, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s is not what is linked in (go test ./packaging/generate -run TestLicencesPage -update), (-linked +page):\n%s", page, diff)
	}
}

func TestEveryLinkedModuleHasALicenceThatWasRead(t *testing.T) {
	t.Chdir("../..")
	modules, err := linkedModules()
	if err != nil {
		t.Fatal(err)
	}
	text, err := debianCopyright(modules)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range modules {
		if !strings.Contains(string(text), m.Path+" "+m.Version) {
			t.Errorf("%s is linked in and not in the copyright file", m.Path)
		}
	}
	// Debian's policy: of Apache-2.0 the place of its words, not the words; and all words of others, also of folders inside a module (go-jose's json).
	if strings.Contains(string(text), "TERMS AND CONDITIONS FOR USE, REPRODUCTION") || strings.ContainsAny(string(text), noticeMark+folderMark) {
		t.Error("the copyright file has the whole of Apache-2.0, or a mark of ours")
	}
	_, jose, _ := strings.Cut(string(text), "go-jose/go-jose/v4 ")
	jose, _, _ = strings.Cut(jose, "\nComment:")
	if !strings.Contains(jose, "Of its folder json:") || !strings.Contains(jose, "Redistributions of source code") || !strings.Contains(jose, "/usr/share/common-licenses/Apache-2.0") {
		t.Errorf("what the copyright file says of go-jose:\n%s", jose)
	}
	if len(modules) < 10 {
		t.Errorf("only %d modules: is the list whole?", len(modules))
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
