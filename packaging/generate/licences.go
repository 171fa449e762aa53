package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// A module is one whose code is linked into the program.
type module struct {
	Path, Version, Dir string
	inside             []string // folders of its packages that are linked in, and those between, where code of others may have a licence of its own
}

// linkedModules returns the modules of the packages that the program consists of, Go's own library first.
func linkedModules() ([]module, error) {
	cmd := exec.Command("go", "list", "-deps", "-tags", "grpcnotrace", "-json=Module,Dir", "./cmd/wingman")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return nil, fmt.Errorf("go env: %w", err)
	}
	all := map[string]*module{}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct {
			Dir    string
			Module *struct {
				Path, Version, Dir string
				Main               bool
			}
		}
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("go list: %w", err)
		}
		m := p.Module
		if m == nil || m.Main {
			continue
		}
		if all[m.Path] == nil {
			all[m.Path] = &module{Path: m.Path, Version: m.Version, Dir: m.Dir}
		}
		for dir := p.Dir; dir != m.Dir && strings.HasPrefix(dir, m.Dir); dir = filepath.Dir(dir) {
			if !slices.Contains(all[m.Path].inside, dir) {
				all[m.Path].inside = append(all[m.Path].inside, dir)
			}
		}
	}
	list := []module{{Path: "Go's standard library", Version: strings.TrimPrefix(runtime.Version(), "go"), Dir: strings.TrimSpace(string(goroot))}}
	for _, m := range all {
		slices.Sort(m.inside)
		list = append(list, *m)
	}
	slices.SortFunc(list[1:], func(a, b module) int { return strings.Compare(a.Path, b.Path) })
	return list, nil
}

// Marks in what licence returns: before each notice, and before each licence of a folder inside the module.
const (
	noticeMark = "\x00"
	folderMark = "\x01"
)

// licence returns a module's licences and then its notices, in their own words, and the names of the licences. A file that nobody has read is an error.
func (m module) licence() (words string, names []string, err error) {
	var text, notices strings.Builder
	for i, dir := range append([]string{m.Dir}, m.inside...) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return "", nil, fmt.Errorf("%s: %w", m.Path, err)
		}
		for _, e := range entries {
			name := strings.ToUpper(e.Name())
			to, before := &text, ""
			if i > 0 {
				before = folderMark
			}
			switch {
			case e.IsDir() || strings.HasSuffix(name, ".GO"):
				continue
			case strings.HasPrefix(name, "NOTICE"):
				to, before = &notices, noticeMark
			case !strings.HasPrefix(name, "LICENSE") && !strings.HasPrefix(name, "LICENCE") && !strings.HasPrefix(name, "COPYING"):
				continue
			}
			file := filepath.Join(dir, e.Name())
			content, err := os.ReadFile(file)
			if err != nil {
				return "", nil, fmt.Errorf("%s: %w", m.Path, err)
			}
			named, read := filesRead[textSum(string(content))]
			if !read {
				return "", nil, fmt.Errorf("%s %s: nobody has read %s yet; if it asks for no more than to be named, its line in packaging/generate/licences.txt is: %s NAME %s/%s",
					m.Path, m.Version, file, textSum(string(content)), m.Path, e.Name())
			}
			names = append(names, named...)
			if i > 0 {
				within, _ := filepath.Rel(m.Dir, dir) // below it
				fmt.Fprintf(to, "%sOf its folder %s:\n\n%s\n", before, within, bytes.TrimSpace(content))
				continue
			}
			fmt.Fprintf(to, "%s%s\n", before, bytes.TrimSpace(content))
		}
	}
	if text.Len() == 0 || len(names) == 0 {
		return "", nil, fmt.Errorf("%s %s has no licence in %s", m.Path, m.Version, m.Dir)
	}
	slices.Sort(names)
	return text.String() + notices.String(), slices.Compact(names), nil
}

// debianCopyright is the .deb's copyright file, in Debian's machine-readable form. Of the licences that every Debian system has in
// /usr/share/common-licenses it names the place, as Debian's policy demands; of all others it holds the words.
func debianCopyright(modules []module) ([]byte, error) {
	var b bytes.Buffer
	b.WriteString(`Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: wingman

Files: *
Copyright: The Wingman authors
License: Apache-2.0
 On Debian systems the whole text is in /usr/share/common-licenses/Apache-2.0.
`)
	err := eachLicence(modules, func(m module, names []string, text, same string) {
		name := strings.Join(names, " and ")
		fmt.Fprintf(&b, "\nComment: %s %s is linked into /usr/bin/wingman under %s.\n", m.Path, m.Version, name)
		switch {
		case same != "":
			fmt.Fprintf(&b, " Its licence has the words of that of %s.\n", same)
		case name == "Apache-2.0":
			b.WriteString(" Its licence is in /usr/share/common-licenses/Apache-2.0.\n")
			if _, notice, ok := strings.Cut(text, noticeMark); ok {
				b.WriteString(indent(unmarked(notice)))
			}
		default:
			for part := range strings.SplitSeq(text, folderMark) {
				licence, notices, _ := strings.Cut(part, noticeMark)
				if strings.Contains(licence, "TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION") {
					licence = "The words of Apache-2.0 are in /usr/share/common-licenses/Apache-2.0.\n"
				}
				b.WriteString(" .\n" + indent(unmarked(licence+noticeMark+notices)))
			}
		}
	})
	return b.Bytes(), err
}

// allLicences is the same in plain words, with every text.
func allLicences(modules []module) ([]byte, error) {
	own, err := os.ReadFile("LICENSE")
	if err != nil {
		return nil, fmt.Errorf("own licence: %w", err)
	}
	b := bytes.NewBuffer(own)
	b.WriteString("\nWhat follows is linked into /usr/bin/wingman.\n")
	err = eachLicence(modules, func(m module, names []string, text, same string) {
		fmt.Fprintf(b, "\n-- %s %s: %s\n\n", m.Path, m.Version, strings.Join(names, " and "))
		if same != "" {
			fmt.Fprintf(b, "The words of the licence of %s.\n", same)
			return
		}
		b.WriteString(unmarked(text))
	})
	return b.Bytes(), err
}

// licencesPage is docs/licences.md.
func licencesPage(modules []module) ([]byte, error) {
	var b bytes.Buffer
	b.WriteString(`# Licences

Wingman itself is under Apache-2.0. What follows is linked into the program, by name and version; the packages hold the words: the .deb in
/usr/share/doc/wingman/copyright, the .rpm in /usr/share/licenses/wingman/LICENSES. This page is written by
"go test ./packaging/generate -run TestLicencesPage -update" from the licence files of the modules themselves, and a test compares.

Only licences that ask for no more than to be named are let in: Apache-2.0, MIT, ISC and BSD with two or three clauses. Each file with a licence or a notice
that is linked in was read, and stands in packaging/generate/licences.txt with the hash of its whole text. Any other text, one word more or less, and a module
without a licence fail "make test" and every build of a package, until somebody has read it and put it there.

| module | version | licence |
|---|---|---|
`)
	err := eachLicence(modules, func(m module, names []string, _, _ string) {
		version := m.Version
		if m.Path == modules[0].Path {
			version = "of the toolchain" // another patch release is no news
		}
		fmt.Fprintf(&b, "| %s | %s | %s |\n", m.Path, version, strings.Join(names, ", "))
	})
	return b.Bytes(), err
}

// eachLicence tells of every module the names and words of its licences, and the module before it that has the same words.
func eachLicence(modules []module, tell func(m module, names []string, text, same string)) error {
	seen := map[string]string{}
	for _, m := range modules {
		text, names, err := m.licence()
		if err != nil {
			return err
		}
		tell(m, names, text, seen[text])
		if seen[text] == "" {
			seen[text] = m.Path
		}
	}
	return nil
}

// unmarked puts an empty line at each mark.
func unmarked(text string) string {
	return strings.NewReplacer(noticeMark, "\n", folderMark, "\n").Replace(text)
}

// indent makes a text the continuation of a field.
func indent(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, " \t\r\n")
		if line == "" {
			line = "."
		}
		fmt.Fprintf(&b, " %s\n", line)
	}
	return b.String()
}
