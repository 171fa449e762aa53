package hcl

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

// The module and packaging/cloud-init/user-data.sh, which cloud-init's own tools check, say the same of the same files.
func TestModuleRendersWhatTheScriptDoes(t *testing.T) {
	module, work := copied(t), t.TempDir()
	file := func(name, content string) string {
		t.Helper()
		path := filepath.Join(work, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, content := range map[string]string{
		"cluster.env": "ISTIO_METAJSON_LABELS='{\"app\":\"forum\",\"a\":\"${b} %{c}\"}'\n", "mesh.yaml": "defaultConfig:\n  meshId: usmesh\n", "hosts": "10.0.0.1 istiod.istio-system.svc\n",
		"root-cert.pem": "-----BEGIN CERTIFICATE-----\nTW9yZQ==\n-----END CERTIFICATE-----\n", "istio-token": "eyJhbGciOiJub25lIn0.e30.c2ln",
	} {
		file("bundle/"+name, content)
		if name != "istio-token" {
			file("tokenless/"+name, content)
		}
	}
	bundle, tokenless := filepath.Join(work, "bundle"), filepath.Join(work, "tokenless")
	settings := file("wingman.yaml", "# the owner's\nlog: {level: debug}\n")
	key := file("key.asc", "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nmQINBF\n=abcd\n-----END PGP PUBLIC KEY BLOCK-----\n")
	armour := "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nmQINBF\n=abcd\n-----END PGP PUBLIC KEY BLOCK-----\n"
	unended, blank := file("unended.asc", strings.TrimSpace(armour)), file("blank.asc", "  packages.example\n"+armour)
	sum, envoySum := strings.Repeat("0a", 32), strings.Repeat("0b", 32)
	text := fmt.Sprintf(`bundle = {
  cluster_env = file("%[1]s/cluster.env")
  mesh = file("%[1]s/mesh.yaml")
  hosts = file("%[1]s/hosts")
  root_cert = file("%[1]s/root-cert.pem")
  istio_token = file("%[1]s/istio-token")
}`, bundle)
	for _, test := range []struct {
		name, arguments string
		argv            []string
	}{
		{"a folder", fmt.Sprintf("bundle_dir = %q", bundle), []string{bundle}},
		{"text", text, []string{bundle}},
		{"settings", fmt.Sprintf("bundle_dir = %q\nsettings = file(%q)", bundle, settings), []string{"--settings", settings, bundle}},
		{"settings without a token", fmt.Sprintf("bundle_dir = %q\nsettings = file(%q)", tokenless, settings), []string{"--settings", settings, tokenless}},
		{"a cloud's token", fmt.Sprintf("bundle_dir = %q\ntoken_source = \"gce\"", bundle), []string{"--token-from", "gce", bundle}},
		{"apt", fmt.Sprintf("bundle_dir = %q\npackage_source = {type = \"apt\", url = \"https://p.example/apt\", suite = \"testing\", key = file(%q)}", bundle, key),
			[]string{"--apt", "https://p.example/apt", "--suite", "testing", "--key", key, bundle}},
		{"yum with a cloud's token", fmt.Sprintf("bundle_dir = %q\ntoken_source = \"aws\"\npackage_source = {type = \"yum\", url = \"https://p.example/yum\", key = file(%q)}", tokenless, key),
			[]string{"--yum", "https://p.example/yum", "--key", key, "--token-from", "aws", tokenless}},
		{"a package", text + fmt.Sprintf("\nsettings = file(%q)\npackage_source = {type = \"url\", packages = [{url = \"https://p.example/wingman.deb\", sha256 = %q}]}", settings, sum),
			[]string{"--package", "https://p.example/wingman.deb", "--sha256", sum, "--settings", settings, bundle}},
		{"two packages", text + fmt.Sprintf("\npackage_source = {type = \"url\", packages = [{url = \"https://p.example/wingman.rpm\", sha256 = %q}, {url = \"https://p.example/wingman-envoy.rpm\", sha256 = %q}]}", sum, envoySum),
			[]string{"--package", "https://p.example/wingman.rpm", "--sha256", sum, "--package", "https://p.example/wingman-envoy.rpm", "--sha256", envoySum, bundle}},
		{"a key that ends without a newline", fmt.Sprintf("bundle_dir = %q\npackage_source = {type = \"apt\", url = \"https://p.example/apt\", key = file(%q)}", bundle, unended),
			[]string{"--apt", "https://p.example/apt", "--key", unended, bundle}},
		{"a key that begins with blanks", fmt.Sprintf("bundle_dir = %q\npackage_source = {type = \"apt\", url = \"https://p.example/apt\", key = file(%q)}", bundle, blank),
			[]string{"--apt", "https://p.example/apt", "--key", blank, bundle}},
	} {
		t.Run(test.name, func(t *testing.T) {
			root := t.TempDir()
			main := fmt.Sprintf("module \"wingman\" {\nsource = %q\n%s\n}\noutput \"user_data\" {\nvalue = module.wingman.user_data\nsensitive = true\n}\n", module, test.arguments)
			if err := os.WriteFile(filepath.Join(root, "main.tf"), []byte(main), 0o600); err != nil {
				t.Fatal(err)
			}
			mustTofu(t, root, "init", "-backend=false")
			if said := mustTofu(t, root, "apply", "-auto-approve"); strings.Contains(said, "eyJhbGci") || strings.Contains(said, "write_files") {
				t.Errorf("apply shows what is secret:\n%s", said)
			}
			got := mustTofu(t, root, "output", "-raw", "user_data")
			want, err := exec.Command("sh", append([]string{"../../../packaging/cloud-init/user-data.sh"}, test.argv...)...).Output()
			if err != nil {
				t.Fatalf("user-data.sh %q: %v", test.argv, err)
			}
			if diff := cmp.Diff(decode(t, string(want)), decode(t, got)); diff != "" {
				t.Errorf("the script's user-data (-) and the module's (+) differ:\n%s", diff)
			}
			if head := func(s string) string { lines := strings.SplitN(s, "\n", 3); return strings.Join(lines[:2], "\n") }; strings.HasPrefix(head(string(want)), "#cloud-config\n#") && head(got) != head(string(want)) {
				t.Errorf("it begins with %q, want %q", head(got), head(string(want)))
			}
		})
	}
}

// What one of the two refuses the other refuses as well.
func TestModuleRefusesWhatTheScriptDoes(t *testing.T) {
	module, work := copied(t), t.TempDir()
	file := func(name, content string) string {
		t.Helper()
		path := filepath.Join(work, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	folder := func(name, empty string) string {
		t.Helper()
		for _, one := range []string{"cluster.env", "mesh.yaml", "hosts", "root-cert.pem", "istio-token"} {
			content := "content\n"
			if one == empty {
				content = ""
			}
			file(name+"/"+one, content)
		}
		return filepath.Join(work, name)
	}
	whole, tokenless, hostless := folder("whole", ""), folder("tokenless", "istio-token"), folder("hostless", "hosts")
	settings := file("wingman.yaml", "log: {level: debug}\n")
	const public = "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nmQINBF\n-----END PGP PUBLIC KEY BLOCK-----\n"
	sum := strings.Repeat("0a", 32)
	type refusal struct {
		name, arguments string
		argv            []string
	}
	tests := []refusal{
		{"an empty token", fmt.Sprintf("bundle_dir = %q", tokenless), []string{tokenless}},
		{"an empty token beside settings", fmt.Sprintf("bundle_dir = %q\nsettings = file(%q)", tokenless, settings), []string{"--settings", settings, tokenless}},
		{"an empty file", fmt.Sprintf("bundle_dir = %q", hostless), []string{hostless}},
		{"packages of two kinds", fmt.Sprintf("bundle_dir = %q\npackage_source = {type = \"url\", packages = [{url = \"https://p.example/a.deb\", sha256 = %q}, {url = \"https://p.example/b.rpm\", sha256 = %q}]}", whole, sum, sum),
			[]string{"--package", "https://p.example/a.deb", "--sha256", sum, "--package", "https://p.example/b.rpm", "--sha256", sum, whole}},
		{"a key beside a package", fmt.Sprintf("bundle_dir = %q\npackage_source = {type = \"url\", key = %q, packages = [{url = \"https://p.example/a.deb\", sha256 = %q}]}", whole, public, sum),
			[]string{"--package", "https://p.example/a.deb", "--sha256", sum, "--key", file("public.asc", public), whole}},
	}
	for name, text := range map[string]string{
		"a private key": strings.ReplaceAll(public, "PUBLIC", "PRIVATE"), "a private key behind a public one": public + strings.ReplaceAll(public, "PUBLIC", "PRIVATE"),
		"a binary key": "\x99\x01\r\x04", "a key with other bytes around it": "\x01\n" + public, "no key": "mQINBF\n",
	} {
		key := file("key of "+name, text)
		tests = append(tests, refusal{name, fmt.Sprintf("bundle_dir = %q\npackage_source = {type = \"apt\", url = \"https://p.example/apt\", key = file(%q)}", whole, key),
			[]string{"--apt", "https://p.example/apt", "--key", key, whole}})
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			root := t.TempDir()
			if err := os.WriteFile(filepath.Join(root, "main.tf"), fmt.Appendf(nil, "module \"wingman\" {\nsource = %q\n%s\n}\n", module, test.arguments), 0o600); err != nil {
				t.Fatal(err)
			}
			mustTofu(t, root, "init", "-backend=false")
			if said, err := tofu(t, root, "plan"); err == nil {
				t.Errorf("the module takes it:\n%s", said)
			}
			if out, err := exec.Command("sh", append([]string{"../../../packaging/cloud-init/user-data.sh"}, test.argv...)...).Output(); err == nil || len(out) > 0 {
				t.Errorf("user-data.sh takes it: %v\n%s", err, out)
			}
		})
	}
}

// decode reads user-data.
func decode(t *testing.T, userData string) (document map[string]any) {
	t.Helper()
	if !strings.HasPrefix(userData, "#cloud-config\n") {
		t.Errorf("user-data begins with %.20q, want #cloud-config", userData)
	}
	if err := yaml.Unmarshal([]byte(userData), &document); err != nil || len(document) == 0 {
		t.Fatalf("user-data that is no YAML (%v):\n%s", err, userData)
	}
	return document
}
