package binaries

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// docs is where people read what the suites ran against.
const docs = "../../../docs/envoy.md"

// versionRow is a row of the table there: what, module, version.
var versionRow = regexp.MustCompile("(?m)^\\|[^|`]*\\| `([^`]+)` \\| `([^`]+)` \\|$")

func TestTheDocsNameTheVersionsOfTheSuite(t *testing.T) {
	want, err := Versions(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(docs)
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(page), "\n## Versions\n")
	if !found {
		t.Fatalf("%s has no section Versions", docs)
	}
	section, _, _ = strings.Cut(section, "\n## ")
	var got []string
	for _, row := range versionRow.FindAllStringSubmatch(section, -1) {
		got = append(got, row[1]+" "+row[2])
	}
	if !slices.Equal(got, want) {
		t.Errorf("the table of %s says\n%s\nwant what components has:\n%s", docs, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// The version that Istio's binaries tell of themselves is written by hand.
func TestTheStampNamesTheCommit(t *testing.T) {
	versions, err := Versions(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	commit := versions[0][strings.LastIndexByte(versions[0], '-')+1:]
	if !strings.HasSuffix(linkFlags, "."+commit) {
		t.Errorf("binaries are stamped by %q, want the commit %s of %s", linkFlags, commit, versions[0])
	}
}

func TestAComponentWithoutAVersionIsAnError(t *testing.T) {
	_, err := required([]byte(`{"Require": [{"Path": "istio.io/istio", "Version": "v1.0.0"}, {"Path": "k8s.io/kubernetes", "Version": "v1.36.3"}]}`))
	if err == nil || !strings.Contains(err.Error(), "go.etcd.io/etcd/server/v3 is not required") {
		t.Errorf("error is %v, want one that names etcd", err)
	}
	if _, err := required([]byte("no JSON")); err == nil {
		t.Error("what is no JSON has versions")
	}
}
