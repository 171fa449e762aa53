package agent

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"wingman/bootstrap"
)

// A token file that is not there is an error only where nothing else can bring a token.
func TestCheckOfAMissingTokenFile(t *testing.T) {
	for _, tt := range []struct {
		name    string
		sources []string
		member  bool
		socket  string // of a SPIFFE Workload API
		dropIn  string // of the agent's unit
		want    string
	}{
		{"istioctl's files alone", nil, false, "", "", "error"},
		{"the same, said", []string{"systemd", "file"}, false, "", "", "error"},
		{"a member", []string{"systemd", "file"}, true, "", "", "warning"},
		{"a program may have one", []string{"file", "exec"}, false, "", "", "warning"},
		{"the cloud alone", []string{"gce"}, false, "", "", ""},
		{"a program alone", []string{"exec"}, false, "", "", ""},
		{"SPIRE gives certificates", nil, false, "/run/spire/agent.sock", "", ""},
		{"systemd gives one to the unit", nil, false, "", "[Service]\nLoadCredential=istio-token\n", "warning"},
		{"from a file elsewhere", nil, false, "", "[Service]\n LoadCredentialEncrypted = istio-token:/root/t\n", "warning"},
		{"another credential", nil, false, "", "[Service]\nLoadCredential=istio-token-old:/x\n#LoadCredential=istio-token\n", "error"},
	} {
		cfg := &bootstrap.Config{Root: t.TempDir()}
		cfg.Identity.Credentials = tt.sources
		cfg.Paths.Token = filepath.Join(cfg.Root, "istio-token")
		cfg.Paths.WorkloadSocket = tt.socket
		if tt.dropIn != "" {
			dir := filepath.Join(cfg.Root, "etc/systemd/system/wingman.service.d")
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, "token.conf"), []byte(tt.dropIn), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		got := ""
		for _, p := range checkToken(cfg, func() ([]byte, error) { return os.ReadFile(cfg.Paths.Token) }, tt.member, time.Now()) {
			got = map[bootstrap.Severity]string{bootstrap.Error: "error", bootstrap.Warning: "warning"}[p.Severity]
		}
		if got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

// Settings are judged by what they bring: nothing of what istioctl's files, which may come later, lack; all that is wrong with the settings or comes of them.
func TestCheckSettings(t *testing.T) {
	root := t.TempDir() // a machine that has nothing yet
	file := bootstrap.DefaultPaths(root).WingmanYAML
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("log: {level: loud}\n"), 0o644); err != nil { // what is in place does not count
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, content string
		want          []string // key and found of each error
	}{
		{"no setting at all", "", nil},
		{"good ones", "log: {level: debug}\nistiod: {address: \"192.0.2.1:15012\"}\n", nil},
		{"a value and a key that do not exist", "log: {level: loud}\ndns: {lisen: x}\n", []string{"log.level: \"loud\"", "dns.lisen: an unknown key"}},
		{"what another place of files lacks", "identity: {provisionedDir: /srv/certs}\n", []string{"root-cert: no file"}},
		{"not YAML", "{{{", []string{": no expected node content"}},
	} {
		var got []string
		for _, p := range CheckSettings(root, []byte(tt.content)) {
			if p.Severity == bootstrap.Error {
				got = append(got, p.Key+": "+p.Found)
			}
		}
		slices.Sort(got)
		slices.Sort(tt.want)
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: errors %q, want %q", tt.name, got, tt.want)
		}
	}
}
