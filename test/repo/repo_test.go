package repo

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"wingman/agent/envoy"
	"wingman/systemd/units"
)

// pkg is what `go list` tells of a package.
type pkg struct {
	ImportPath   string
	Dir          string
	Imports      []string
	TestImports  []string
	XTestImports []string
	Deps         []string
	GoFiles      []string
}

func list(t *testing.T, args ...string) []pkg {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json", "-tags", "grpcnotrace"}, args...)...)
	cmd.Dir = root(t)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var pkgs []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// layer is the part of the import path that the rules speak of: "agent" of wingman/agent/xds.
func layer(path string) string {
	rest, ours := strings.CutPrefix(path, "wingman/")
	if !ours {
		return ""
	}
	top, _, _ := strings.Cut(rest, "/")
	return top
}

// Imports point one way: cmd → agent → the leaf packages, which know nothing of each other. What several of them need and none of them is about is a small
// package below internal, which imports none of ours.
func TestImportsPointOneWay(t *testing.T) {
	leaves := []string{"bootstrap", "dnsproxy", "health", "iptables", "systemd"}
	may := map[string][]string{
		"cmd":      append([]string{"agent", "cmd", "internal"}, leaves...),
		"agent":    append([]string{"agent", "internal"}, leaves...),
		"internal": nil,
	}
	for _, l := range leaves {
		may[l] = []string{"internal"}
	}
	helpers := []string{"wingman/test/freeport", "wingman/test/netns", "wingman/test/syncbuffer"} // of tests, which leaf packages may have too
	for _, p := range list(t, "./...") {
		from := layer(p.ImportPath)
		allowed, ruled := may[from]
		if !ruled {
			continue // test, packaging: may import all
		}
		for _, imp := range p.Imports {
			to := layer(imp)
			if strings.HasSuffix(p.ImportPath, "test") && imp == "wingman/test/netns" {
				continue // a package of fakes for tests
			}
			if to != "" && !slices.Contains(allowed, to) && !strings.HasPrefix(imp, p.ImportPath+"/internal/") {
				t.Errorf("%s imports %s: %s may import only %v of ours", p.ImportPath, imp, from, allowed)
			}
		}
		if from == "agent" || from == "cmd" {
			continue
		}
		for _, imp := range slices.Concat(p.TestImports, p.XTestImports) {
			if to := layer(imp); to != "" && imp != p.ImportPath && !slices.Contains(helpers, imp) && !strings.HasPrefix(imp, p.ImportPath+"/internal/") {
				t.Errorf("tests of %s import %s: a leaf package is tested alone (%v may help)", p.ImportPath, imp, helpers)
			}
		}
	}
}

// The daemon must not pull in what makes it large. text/template keeps every method of every type alive once its reflection is reachable; cobra
// imports it for templates that nobody sets, which the linker drops.
func TestDaemonStaysSmall(t *testing.T) {
	banned := map[string]string{
		"text/template":              "its reflection keeps every exported method in the binary",
		"html/template":              "its reflection keeps every exported method in the binary",
		"istio.io/api/mesh/v1alpha1": "1.4 MB of binary and 2 MB of memory for a few fields",
		"golang.org/x/net/trace":     "build with -tags grpcnotrace",
		"github.com/envoyproxy/go-control-plane/envoy/config/core/v3":       "a megabyte for a node: agent/xds/discovery has it",
		"github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3": "a megabyte for four messages: agent/xds/discovery has them",
		"github.com/golang/protobuf/jsonpb":                                 "90 kB of JSON for messages that are never JSON",
	}
	for _, p := range list(t, "-deps", "./cmd/wingman") {
		for _, imp := range p.Imports {
			if why, bad := banned[imp]; bad && p.ImportPath != "github.com/spf13/cobra" {
				t.Errorf("%s imports %s: %s", p.ImportPath, imp, why)
			}
		}
	}
}

// Every package opens with its page: one file whose package comment starts as godoc wants it.
func TestEveryPackageHasItsPage(t *testing.T) {
	for _, p := range list(t, "./...") {
		if len(p.GoFiles) == 0 || strings.HasPrefix(p.ImportPath, "wingman/tmpdeps") {
			continue
		}
		name, doc := "", ""
		for _, f := range p.GoFiles {
			file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, f), nil, parser.ParseComments|parser.PackageClauseOnly)
			if err != nil {
				t.Fatal(err)
			}
			name = file.Name.Name
			if file.Doc != nil && len(file.Doc.Text()) > len(doc) {
				doc = file.Doc.Text()
			}
		}
		want := "Package " + name + " "
		if name == "main" {
			want = "Command "
		}
		if strings.HasSuffix(p.ImportPath, "/nds") {
			continue // generated
		}
		if !strings.HasPrefix(doc, want) {
			t.Errorf("%s: package comment starts with %.40q, expected %q", p.ImportPath, doc, want)
		}
	}
}

// Code is read by people: a file that outgrows a few screens hides a second concept.
func TestFilesStayReadable(t *testing.T) {
	const most = 450
	for _, p := range list(t, "./...") {
		for _, f := range p.GoFiles {
			b, err := os.ReadFile(filepath.Join(p.Dir, f))
			if err != nil {
				t.Fatal(err)
			}
			if n := strings.Count(string(b), "\n"); n > most && !strings.HasSuffix(f, ".pb.go") {
				t.Errorf("%s/%s has %d lines, more than %d: which second concept is in it?", p.ImportPath, f, n, most)
			}
		}
	}
}

// Every metric is explained in docs/metrics.md, and nothing else is.
func TestMetricsAreDocumented(t *testing.T) {
	name := regexp.MustCompile(`"(wingman_[a-z0-9_]+)"`)
	inCode := map[string]string{}
	for _, p := range list(t, "./agent/...", "./bootstrap/...", "./dnsproxy/...", "./health/...", "./iptables/...", "./systemd/...") {
		for _, f := range p.GoFiles {
			b, err := os.ReadFile(filepath.Join(p.Dir, f))
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range name.FindAllStringSubmatch(string(b), -1) {
				inCode[m[1]] = p.ImportPath
			}
		}
	}
	b, err := os.ReadFile(filepath.Join(root(t), "docs/metrics.md"))
	if err != nil {
		t.Fatal(err)
	}
	inDocs := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `(wingman_[a-z0-9_]+)`").FindAllStringSubmatch(string(b), -1) {
		inDocs[m[1]] = true
		if _, ok := inCode[m[1]]; !ok {
			t.Errorf("docs/metrics.md explains %s, which no package has", m[1])
		}
	}
	for n, pkg := range inCode {
		if !inDocs[n] {
			t.Errorf("%s of %s is not in docs/metrics.md", n, pkg)
		}
	}
}

// What the units package says belongs onto a machine is in the packages, with its mode.
func TestPackagesHoldEveryUnit(t *testing.T) {
	content, err := os.ReadFile(filepath.Join(root(t), "packaging/nfpm.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range units.Files() {
		want := fmt.Sprintf("dst: %s, file_info: {mode: %04o}", f.Path, f.Mode)
		if !strings.Contains(string(content), want) {
			t.Errorf("packaging/nfpm.yaml lacks %q", want)
		}
	}
}

// The agent looks for the packaged Envoy where the package puts it, and the package's scripts speak of that file.
func TestEnvoyPackageIsWhereItIsLookedFor(t *testing.T) {
	for _, name := range []string{"nfpm.yaml", "replace.sh", "preremove.sh"} {
		content, err := os.ReadFile(filepath.Join(root(t), "packaging/envoy", name))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(content), envoy.Packaged) {
			t.Errorf("packaging/envoy/%s does not name %s", name, envoy.Packaged)
		}
	}
}

// A test that a page names as the guard of a promise is there.
func TestDocsNameTestsThatAre(t *testing.T) {
	named := regexp.MustCompile(`(-run )?\bTest[A-Z]\w+`) // what follows -run is a pattern
	defined := regexp.MustCompile(`(?m)^func (Test[A-Z]\w+)\(`)
	there := map[string]bool{}
	err := filepath.WalkDir(root(t), func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		b, err := os.ReadFile(path)
		for _, m := range defined.FindAllSubmatch(b, -1) {
			there[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	pages, err := filepath.Glob(filepath.Join(root(t), "docs/*.md"))
	if err != nil || len(pages) == 0 {
		t.Fatalf("pages %q, %v", pages, err)
	}
	for _, page := range pages {
		b, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range named.FindAllString(string(b), -1) {
			if !there[name] && !strings.HasPrefix(name, "-run ") {
				t.Errorf("%s names %s, which no package has", filepath.Base(page), name)
			}
		}
	}
}
