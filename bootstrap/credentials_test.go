package bootstrap

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestCredentials(t *testing.T) {
	tests := []struct{ name, yaml, problem string }{
		{"exec without a program", "identity: {credentials: [file, exec]}\n", "wingman.yaml:1: identity.credentials: found exec without a program, expected identity.exec with a command"},
		{"a program that is never asked", "identity:\n  exec: {command: [/usr/bin/get-token]}\n", "wingman.yaml:2: identity.exec: found a program that is never asked, expected exec among identity.credentials"},
		{"twice", "identity: {credentials: \"gce,file,gce\"}\n", "wingman.yaml:1: identity.credentials: found gce twice, expected each source once"},
		{"nothing", "identity: {credentials: []}\n", "identity.credentials: found an empty value, expected sources"},
		{"nothing but a comma", "identity: {credentials: \",\"}\n", "identity.credentials: found no source, expected at least one of systemd, file"},
		{"an unknown source", "identity: {credentials: [file, vault]}\n", `wingman.yaml:1: identity.credentials: found "vault", expected sources, each one of systemd, file, exec, gce, aws, azure`},
		{"a program by name", "identity: {credentials: [exec], exec: {command: [get-token]}}\n", "identity.exec.command: found a list, expected a list that begins with the absolute path of a program"},
		{"a shell's line", "identity: {credentials: [exec], exec: {command: /bin/get-token --x}}\n", "identity.exec.command: found "},
		{"no command", "identity: {credentials: [exec], exec: {timeoutSeconds: 3}}\n", "identity.exec.command: found no command, expected a program and its arguments"},
		{"an unknown key", "identity: {credentials: [exec], exec: {command: [/bin/x], timeout: 3}}\n", "identity.exec.timeout: found an unknown key, expected one of command, env, timeoutSeconds"},
		{"an environment that is none", "identity: {credentials: [exec], exec: {command: [/bin/x], env: [A]}}\n", "identity.exec.env: found a list, expected a mapping of names to texts"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := bare(t)
			m.write(wingmanYAML, tt.yaml)
			_, problems := Load(m.root)
			var said []string
			for _, p := range problems {
				if strings.Contains(p.Key, "identity.") {
					said = append(said, p.String())
				}
			}
			if len(said) != 1 || !strings.Contains(said[0], tt.problem) {
				t.Errorf("problems\n%s\nwant one with\n%s", strings.Join(said, "\n"), tt.problem)
			}
		})
	}
}

func TestCredentialProgram(t *testing.T) {
	m := bare(t)
	m.write(wingmanYAML, "identity:\n  credentials: [exec, azure]\n  exec:\n    command: [/usr/bin/get-token, --password, 'a b']\n    env: {ROLE: forum, N: 1}\n    timeoutSeconds: 3\n")
	c, problems := m.load()
	if err := problems.Without(KeyRootCert).Err(); err != nil {
		t.Fatal(err)
	}
	want := CredentialExec{Command: []string{"/usr/bin/get-token", "--password", "a b"}, Env: map[string]string{"ROLE": "forum", "N": "1"}, Timeout: 3 * time.Second}
	if diff := cmp.Diff(want, c.Identity.Exec); diff != "" {
		t.Errorf("program (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"exec", "azure"}, c.Identity.Credentials); diff != "" {
		t.Errorf("sources (-want +got):\n%s", diff)
	}
	for _, s := range c.Settings() {
		if s.Key == "identity.exec" && s.Value != "/usr/bin/get-token" {
			t.Errorf("config show has %q: arguments may be secrets", s.Value)
		}
	}
}
