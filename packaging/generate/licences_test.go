package main

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A text is let in as a whole: a word more is another licence, and so is one with words of two that are let in.
func TestLicencesAreKnownByTheirWholeText(t *testing.T) {
	modules := linked(t)
	text := func(path, file string) string {
		i := slices.IndexFunc(modules, func(m module) bool { return m.Path == path })
		if i < 0 {
			t.Fatalf("%s is not linked in: take another with that licence", path)
		}
		b, err := os.ReadFile(filepath.Join(modules[i].Dir, file))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	mit, two := text("github.com/beorn7/perks", "LICENSE"), text("github.com/godbus/dbus/v5", "LICENSE")
	three, apache := text("github.com/spf13/pflag", "LICENSE"), text("google.golang.org/grpc", "LICENSE")
	note := text("google.golang.org/grpc", "NOTICE.txt")
	with := func(text, old, new string) string {
		if !strings.Contains(text, old) {
			t.Fatalf("%q is not in:\n%s", old, text)
		}
		return strings.Replace(text, old, new, 1)
	}
	for _, tc := range []struct {
		name, file, text, want string // no names: refused
	}{
		{"MIT", "LICENSE", mit, "MIT"},
		{"in one line", "LICENSE.txt", strings.Join(strings.Fields(mit), " "), "MIT"},
		{"two clauses", "COPYING", two, "BSD-2-Clause"},
		{"three clauses", "LICENCE", three, "BSD-3-Clause"},
		{"Apache, indented otherwise", "LICENSE", strings.ReplaceAll(apache, "   ", "\t"), "Apache-2.0"},
		{"for good, not evil", "LICENSE", mit + "\nThe Software shall be used for Good, not Evil.\n", ""},
		{"four clauses, one of them for advertising", "LICENSE", with(three, "   * Neither the name of",
			"   * All advertising materials mentioning features or use of this software must display an acknowledgement.\n   * Neither the name of"), ""},
		{"source alone", "LICENSE", with(two, "2. Redistributions in binary form must reproduce", "2. Redistribution in binary form is prohibited. Otherwise reproduce"), ""},
		{"not for commerce", "LICENSE", "PolyForm Noncommercial License 1.0.0\n\nNeither the name of the licensor …\n", ""},
		{"another's with the words of one", "LICENSE", "EUROPEAN UNION PUBLIC LICENCE v. 1.2\n\n" + mit, ""},
		{"GPL", "COPYING", "GNU GENERAL PUBLIC LICENSE Version 2, June 1991", ""},
		{"nobody's", "LICENSE", "Ask me.", ""},
		{"none", "README", "hello", ""},
		{"a notice in the place of one", "LICENSE", note, ""},
		{"a notice that says more", "NOTICE", note + "\nParts are under the GNU General Public License.\n", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := module{Path: "example.com/strange", Version: "v1.0.0", Dir: t.TempDir()}
			if err := os.WriteFile(filepath.Join(m.Dir, tc.file), []byte(tc.text), 0o644); err != nil {
				t.Fatal(err)
			}
			if strings.HasPrefix(tc.file, "NOTICE") { // beside a licence that is let in
				if err := os.WriteFile(filepath.Join(m.Dir, "LICENSE"), []byte(mit), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			_, got, err := m.licence()
			if strings.Join(got, " ") != tc.want || (err == nil) != (tc.want != "") {
				t.Errorf("licence = %q, %v; want %q", got, err, tc.want)
			}
			// What is refused fails everything that is made of the list.
			for name, make := range map[string]func([]module) ([]byte, error){"copyright": debianCopyright, "page": licencesPage, "texts": inRoot(t, allLicences)} {
				if _, err := make([]module{m}); (err == nil) != (tc.want != "") || err != nil && !strings.Contains(err.Error(), "example.com/strange") {
					t.Errorf("%s: error %v; want one that names the module, if any", name, err)
				}
			}
		})
	}
}

// inRoot is for what reads files of the repository.
func inRoot(t *testing.T, make func([]module) ([]byte, error)) func([]module) ([]byte, error) {
	return func(m []module) ([]byte, error) {
		t.Chdir("../..")
		defer t.Chdir("packaging/generate")
		return make(m)
	}
}

func TestTheTableOfLicences(t *testing.T) {
	hash := textSum("x")
	for _, tc := range []struct{ name, table, wrong string }{
		{"one, two and none", "# read\n\n" + hash + " MIT a place/LICENSE\n" + textSum("y") + " Apache-2.0,MIT b/LICENSE\n" + textSum("z") + " notice c/NOTICE\n", ""},
		{"one that may not be linked in", hash + " GPL-3.0-only a/LICENSE\n", "GPL-3.0-only"},
		{"beside one that may", hash + " MIT,MPL-2.0 a/LICENSE\n", "MPL-2.0"},
		{"twice", hash + " notice a/NOTICE\n" + hash + " MIT a/LICENSE\n", "not above"},
		{"no hash", "MIT a/LICENSE\n", "MIT"},
		{"no place", hash + " MIT\n", "a place"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := parseTable(tc.table)
			if (err == nil) != (tc.wrong == "") || err != nil && !strings.Contains(err.Error(), tc.wrong) {
				t.Errorf("error %v; want %q", err, tc.wrong)
			}
			if err == nil && len(got) != 3 {
				t.Errorf("read: %v", got)
			}
		})
	}
	used := map[string]bool{}
	for _, m := range linked(t) {
		words, _, err := m.licence()
		if err != nil {
			t.Fatal(err)
		}
		for _, dir := range append([]string{m.Dir}, m.inside...) {
			files, _ := filepath.Glob(filepath.Join(dir, "[CLN][OI][PCT]*")) // COPYING, LICENSE, LICENCE, NOTICE
			for _, f := range files {
				if b, err := os.ReadFile(f); err == nil && strings.Contains(words, strings.TrimSpace(string(b))) {
					used[textSum(string(b))] = true
				}
			}
		}
	}
	for sum, names := range filesRead {
		if !used[sum] {
			t.Errorf("licences.txt has %s (%s), which is of nothing that is linked in: take its line out", sum, strings.Join(names, ","))
		}
	}
}

// linked are the modules of the program.
func linked(t *testing.T) []module {
	t.Helper()
	t.Chdir("../..")
	defer t.Chdir("packaging/generate")
	modules, err := linkedModules()
	if err != nil {
		t.Fatal(err)
	}
	return modules
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
