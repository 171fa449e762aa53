package main

import (
	"crypto/sha256"
	_ "embed" // licences.txt
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
)

// Licences under which something may be linked in, by SPDX's short names: those that ask for no more than to be named. A program that holds them stays
// under Apache-2.0, source and all.
var allowed = []string{"Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT"}

// notice stands in the place of a licence's name where a file has none, and only says who made something.
const notice = "notice"

//go:embed licences.txt
var licencesTXT string

// filesRead tells of the hash of each licence and notice file that somebody has read which licences it holds. Whole texts are compared, not words in
// them: many a licence that asks for more has all words of one that does not.
var filesRead = mustParse(licencesTXT)

func mustParse(table string) map[string][]string {
	files, err := parseTable(table)
	if err != nil {
		panic("licences.txt: " + err.Error())
	}
	return files
}

// parseTable reads licences.txt: in each line a hash, names with "," between them, and the place where a text with that hash was found first.
func parseTable(table string) (map[string][]string, error) {
	files := map[string][]string{}
	for line := range strings.Lines(table) {
		if strings.TrimSpace(line) == "" || strings.HasPrefix(line, "#") {
			continue
		}
		f := strings.SplitN(strings.TrimSpace(line), " ", 3)
		if len(f) != 3 || len(f[0]) != 2*sha256.Size || files[f[0]] != nil {
			return nil, fmt.Errorf("line %q; expected a hash that is not above, names, and a place", line)
		}
		files[f[0]] = []string{}
		if f[1] == notice {
			continue
		}
		for name := range strings.SplitSeq(f[1], ",") {
			if !slices.Contains(allowed, name) {
				return nil, fmt.Errorf("line %q: under %s nothing may be linked in; expected some of %s, or %s", line, name, strings.Join(allowed, " "), notice)
			}
			files[f[0]] = append(files[f[0]], name)
		}
	}
	return files, nil
}

// textSum is the SHA-256 of a text, whatever its line breaks and indents.
func textSum(text string) string {
	sum := sha256.Sum256([]byte(strings.Join(strings.Fields(text), " ")))
	return hex.EncodeToString(sum[:])
}
