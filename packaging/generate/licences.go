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
}

// linkedModules returns the modules of the packages that the program consists of, Go's own library first.
func linkedModules() ([]module, error) {
	cmd := exec.Command("go", "list", "-deps", "-tags", "grpcnotrace", "-json=Module", "./cmd/wingman")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return nil, fmt.Errorf("go env: %w", err)
	}
	all := map[string]module{}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct {
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
		if m := p.Module; m != nil && !m.Main {
			all[m.Path] = module{m.Path, m.Version, m.Dir}
		}
	}
	list := []module{{"Go's standard library", strings.TrimPrefix(runtime.Version(), "go"), strings.TrimSpace(string(goroot))}}
	for _, m := range all {
		list = append(list, m)
	}
	slices.SortFunc(list[1:], func(a, b module) int { return strings.Compare(a.Path, b.Path) })
	return list, nil
}

// noticeMark stands before each notice in what licence returns.
const noticeMark = "\x00"

// licence returns a module's licences and then its notices, in their own words.
func (m module) licence() (string, error) {
	entries, err := os.ReadDir(m.Dir)
	if err != nil {
		return "", fmt.Errorf("%s: %w", m.Path, err)
	}
	var text, notices strings.Builder
	for _, e := range entries {
		name := strings.ToUpper(e.Name())
		to, before := &text, ""
		switch {
		case e.IsDir():
			continue
		case strings.HasPrefix(name, "NOTICE"):
			to, before = &notices, noticeMark
		case !strings.HasPrefix(name, "LICENSE") && !strings.HasPrefix(name, "LICENCE") && !strings.HasPrefix(name, "COPYING"):
			continue
		}
		content, err := os.ReadFile(filepath.Join(m.Dir, e.Name()))
		if err != nil {
			return "", fmt.Errorf("%s: %w", m.Path, err)
		}
		fmt.Fprintf(to, "%s%s\n", before, bytes.TrimSpace(content))
	}
	if text.Len() == 0 {
		return "", fmt.Errorf("%s %s has no licence file in %s", m.Path, m.Version, m.Dir)
	}
	return text.String() + notices.String(), nil
}

// Names of licences, with words that each holds and the ones above it do not. A licence with none of them is refused: somebody
// has to read it first.
var names = []struct{ name, words string }{
	{"Apache-2.0", "Apache License\nVersion 2.0"},
	{"MPL-2.0", "Mozilla Public License Version 2.0"},
	{"ISC", "Permission to use, copy, modify, and/or distribute this software for any purpose with or without fee"},
	{"MIT", "Permission is hereby granted, free of charge, to any person obtaining a copy"},
	{"BSD-3-clause", "Neither the name of"},
	{"BSD-2-clause", "Redistributions of source code must retain"},
}

// licenceName names a licence by SPDX's short names as Debian writes them.
func licenceName(text string) (string, bool) {
	text = strings.Join(strings.Fields(text), " ")
	for _, n := range names {
		if strings.Contains(strings.ToLower(text), strings.ToLower(strings.Join(strings.Fields(n.words), " "))) {
			return n.name, true
		}
	}
	return "", false
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
	err := eachLicence(modules, func(m module, name, text, same string) {
		fmt.Fprintf(&b, "\nComment: %s %s is linked into /usr/bin/wingman under %s.\n", m.Path, m.Version, name)
		switch {
		case same != "":
			fmt.Fprintf(&b, " Its licence has the words of that of %s.\n", same)
		case name == "Apache-2.0":
			b.WriteString(" Its licence is in /usr/share/common-licenses/Apache-2.0.\n")
			if _, notice, ok := strings.Cut(text, noticeMark); ok {
				b.WriteString(indent(notice))
			}
		default:
			b.WriteString(" .\n" + indent(strings.ReplaceAll(text, noticeMark, "\n")))
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
	err = eachLicence(modules, func(m module, name, text, same string) {
		fmt.Fprintf(b, "\n-- %s %s: %s\n\n", m.Path, m.Version, name)
		if same != "" {
			fmt.Fprintf(b, "The words of the licence of %s.\n", same)
			return
		}
		b.WriteString(strings.ReplaceAll(text, noticeMark, "\n"))
	})
	return b.Bytes(), err
}

// eachLicence tells of every module its licence's name and words, and the module before it that has the same words.
func eachLicence(modules []module, tell func(m module, name, text, same string)) error {
	seen := map[string]string{}
	for _, m := range modules {
		text, err := m.licence()
		if err != nil {
			return err
		}
		name, known := licenceName(text)
		if !known {
			return fmt.Errorf("%s %s: a licence that nobody has read yet in %s", m.Path, m.Version, m.Dir)
		}
		tell(m, name, text, seen[text])
		if seen[text] == "" {
			seen[text] = m.Path
		}
	}
	return nil
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
