package main

import (
	"bytes"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// exec runs one command line.
func exec(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), args, &out, &errs)
	return code, out.String(), errs.String()
}

// machine is a root that looks like a machine's.
func machine(t *testing.T) (root string) {
	t.Helper()
	root = t.TempDir()
	for _, dir := range []string{"etc", "var/lib/wingman"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "etc/os-release"), []byte("ID=debian\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return root
}

func TestExitCodes(t *testing.T) {
	root, image := t.TempDir(), machine(t)
	for _, tc := range []struct {
		name string
		args []string
		code int
		err  string // part of stderr
	}{
		{"version", []string{"version"}, exitFine, ""},
		{"help", []string{"--help"}, exitFine, ""},
		{"completion", []string{"completion", "bash"}, exitFine, ""},
		{"unknown command", []string{"fly"}, exitUsage, "fly"},
		{"unknown flag", []string{"status", "--colour"}, exitUsage, "colour"},
		{"too many arguments", []string{"version", "now"}, exitUsage, "now"},
		{"a group needs a subcommand", []string{"rules"}, exitUsage, "subcommand"},
		{"unknown subcommand", []string{"rules", "burn"}, exitUsage, "burn"},
		{"unknown output", []string{"status", "--root", root, "-o", "xml"}, exitUsage, "text or json"},
		{"unknown plan output", []string{"rules", "plan", "--root", root, "-o", "xml"}, exitUsage, "iptables, nft or json"},
		{"dns query without a name", []string{"dns", "query"}, exitUsage, "arg"},
		{"dns serve without a table", []string{"dns", "serve"}, exitUsage, "table"},
		{"join of nothing", []string{"join"}, exitUsage, "arg"},
		{"join without time", []string{"join", root, "--timeout", "0s"}, exitUsage, "more than zero"},
		{"join of an empty folder", []string{"join", root, "--root", root}, exitFailed, "none of istioctl's files"},
		{"leave of a machine that never joined", []string{"leave", "--root", root}, exitFine, ""},
		{"leave of something", []string{"leave", "now"}, exitUsage, "now"},
		{"no daemon", []string{"status", "--root", root}, exitFailed, "not running"},
		{"no files", []string{"run", "--root", root}, exitFailed, "cluster.env"},
		{"no files to plan from", []string{"rules", "plan", "--root", root}, exitFailed, "cluster.env"},
		{"no files to show", []string{"config", "show", "--root", root}, exitFailed, "cluster.env"},
		{"an image that holds nothing", []string{"image", "check", "--root", image}, exitFine, ""},
		{"an image that is not mounted", []string{"image", "check", "--root", root}, exitFailed, "no image of a machine"},
		{"an image that is not there", []string{"image", "check", "--root", root + "/none"}, exitFailed, "none"},
		{"to clean nothing", []string{"image", "clean", "--root", image}, exitFine, ""},
		{"a table that is none", []string{"dns", "serve", "--table", filepath.Join(root, "none.json")}, exitFailed, "none.json"},
	} {
		code, _, stderr := exec(t, tc.args...)
		if code != tc.code || !strings.Contains(stderr, tc.err) {
			t.Errorf("%s: %v exits with %d and %q, want %d and %q", tc.name, tc.args, code, stderr, tc.code, tc.err)
		}
		if tc.code != exitFine && strings.Count(strings.TrimSpace(stderr), "wingman: ") != 1 {
			t.Errorf("%s: stderr %q, want one sentence of wingman's", tc.name, stderr)
		}
	}
}

func TestADirtyImageIsAFailure(t *testing.T) {
	root := machine(t)
	if err := os.WriteFile(filepath.Join(root, "var/lib/wingman/joined.json"), []byte("{}"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, output := range []string{"text", "json"} {
		code, stdout, stderr := exec(t, "image", "check", "--root", root, "-o", output)
		if code != exitFailed || !strings.Contains(stderr, "not clean") || !strings.Contains(stdout, "/var/lib/wingman/joined.json") || !strings.Contains(stdout, "wingman image clean") {
			t.Errorf("-o %s: exit code %d, %q, %q; want %d, the file, and how to clean it", output, code, stdout, stderr, exitFailed)
		}
		if output == "json" && !json.Valid([]byte(stdout)) {
			t.Errorf("no JSON: %s", stdout)
		}
	}
	if code, stdout, _ := exec(t, "image", "clean", "--root", root); code != exitFine || !strings.Contains(stdout, "removed /var/lib/wingman/joined.json") {
		t.Errorf("clean exits with %d: %s", code, stdout)
	}
}

func TestStatusSaysWhyTheAgentIsDown(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "run/wingman-guard"), 0o755); err != nil {
		t.Fatal(err)
	}
	const note = "2026-11-23T12:00:00Z the agent ended badly 5 times within 30 s, last with signal (killed KILL)\n"
	if err := os.WriteFile(filepath.Join(root, "run/wingman-guard/open"), []byte(note), 0o644); err != nil {
		t.Fatal(err)
	}
	code, _, stderr := exec(t, "status", "--root", root)
	for _, want := range []string{"not running", "ended badly 5 times within 30 s, last with signal (killed KILL)", "DNS is not redirected", "journalctl"} {
		if code != exitFailed || !strings.Contains(stderr, want) {
			t.Errorf("status of a machine in a crash loop exits with %d and %q, want %q in it", code, stderr, want)
		}
	}
	// A daemon that is there and does not answer well is another matter, whatever the guard noted before.
	socket := filepath.Join(root, "run/wingman/admin.sock")
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "out of order", http.StatusBadGateway) }))
	if code, _, stderr := exec(t, "status", "--root", root); code != exitFailed || !strings.Contains(stderr, "out of order") || strings.Contains(stderr, "not running") {
		t.Errorf("status of a daemon that answers with an error exits with %d and %q", code, stderr)
	}
}

func TestConfigCheckSaysEverythingAtOnce(t *testing.T) {
	root := t.TempDir()
	put := func(name, content string) {
		t.Helper()
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("var/lib/istio/envoy/cluster.env", "POD_NAMESPACE='forum-services'\nISTIO_METAJSON_LABELS='{broken'\nISTIO_INBOUND_PORTS='70000'\n")
	put("etc/istio/config/mesh", "defaultConfig:\n  discoveryAddress: http://istiod\n")
	put("etc/wingman/wingman.yaml", "dsn: {}\n")
	code, text, _ := exec(t, "config", "check", "--root", root)
	if code != exitFailed {
		t.Errorf("exit %d, want %d", code, exitFailed)
	}
	for _, want := range []string{"cluster.env:2", "cluster.env:3", "70000", "mesh:2", "http://istiod", "wingman.yaml:1", "dns", "root-cert"} {
		if !strings.Contains(text, want) {
			t.Errorf("output lacks %q:\n%s", want, text)
		}
	}
	code, out, _ := exec(t, "config", "check", "--root", root, "-o", "json")
	var problems []map[string]any
	if err := json.Unmarshal([]byte(out), &problems); err != nil || len(problems) < 5 || code != exitFailed {
		t.Errorf("json: exit %d, %d problems, %v", code, len(problems), err)
	}
}
