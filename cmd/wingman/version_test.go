package main

import (
	"bytes"
	"encoding/json"
	"runtime"
	"strings"
	"testing"

	"wingman/agent/tested"
	"wingman/bootstrap"
)

func TestVersionTellsWhatItIsAndWhatItWasTestedWith(t *testing.T) {
	defer func(r, c string) { release, commit = r, c }(release, commit)
	release, commit = "1.2.3", strings.Repeat("0123456789", 4)
	var out, errs bytes.Buffer
	if code := run(t.Context(), []string{"version"}, &out, &errs); code != exitFine {
		t.Fatalf("exit code %d: %s", code, &errs)
	}
	want := "wingman 1.2.3 (" + runtime.Version() + ", " + runtime.GOARCH + "), behaves as Istio " + bootstrap.IstioVersion + "\n" +
		"commit " + commit + "\n" +
		"tested with Istio " + tested.Istio + " and Envoy " + tested.Envoy + "\n"
	if out.String() != want {
		t.Errorf("got:\n%swant:\n%s", &out, want)
	}

	out.Reset()
	if code := run(t.Context(), []string{"version", "--output", "json"}, &out, &errs); code != exitFine {
		t.Fatalf("exit code %d: %s", code, &errs)
	}
	var got versionReport
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatalf("%v in %s", err, &out)
	}
	all := versionReport{Version: release, Commit: commit, Go: runtime.Version(), Arch: runtime.GOARCH, Istio: bootstrap.IstioVersion}
	all.Tested.Istio, all.Tested.Envoy = tested.Istio, tested.Envoy
	if got != all {
		t.Errorf("got %+v, want %+v", got, all)
	}
}
