package credential

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// script is a command that does what text says, with the given arguments.
func script(text string, args ...string) []string {
	return append([]string{"/bin/sh", "-c", text, "get-token"}, args...)
}

func credentialJSON(token string, expires time.Time) string {
	return fmt.Sprintf(`{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"token":%q,"expirationTimestamp":%q}}`, token, expires.Format(time.RFC3339))
}

// An execCase is a program and what becomes of it; want is "" for a token. PROGRAM stands for its path.
type execCase struct{ name, script, want string }

func execCases() []execCase {
	later := time.Now().Add(time.Hour)
	return []execCase{
		{"an ExecCredential", "cat <<'X'\n" + credentialJSON(jwt, later) + "\nX", ""},
		{"kubectl create token -o json", `echo '{"kind":"","status":{"token":"` + jwt + `"}}'`, ""},
		{"plain JSON", `echo '{"token":"` + jwt + `"}'`, ""},
		{"argv and environment, no shell between", `[ "$1" = 'a b; $HOME' ] && [ "$ROLE" = forum ] && [ -z "$SECRET_OF_OURS" ] && echo "$KUBERNETES_EXEC_INFO" | grep -q ExecCredential && [ "$PWD" = / ] && echo '{"token":"` + jwt + `"}'`, ""},
		{"it fails, and says why", "echo 'role forum: no such role' >&2; echo more >&2; exit 3", `PROGRAM: exit status 3: "role forum: no such role"`},
		{"it fails and prints the token where it should not", "echo 'cannot use token=" + jwt + "' >&2; exit 1", `PROGRAM: exit status 1: "cannot use [redacted]"`},
		{"it fails without a word", "exit 1", "PROGRAM: exit status 1"},
		{"it prints nothing", "true", "PROGRAM: it printed nothing, expected an ExecCredential as JSON"},
		{"it prints the bare token", "echo " + jwt, "PROGRAM: it printed something that is no JSON object, expected an ExecCredential"},
		{"it prints garbage", "echo '{\"kind\"'", "PROGRAM: it printed JSON that cannot be read, expected an ExecCredential"},
		{"another kind", `echo '{"kind":"Secret"}'`, `PROGRAM: it printed a "Secret", expected an ExecCredential`},
		{"a version of the future", `echo '{"kind":"ExecCredential","apiVersion":"client.authentication.k8s.io/v9"}'`, `PROGRAM: it printed an ExecCredential of "client.authentication.k8s.io/v9", expected client.authentication.k8s.io/v1`},
		{"no status", `echo '{"kind":"ExecCredential","apiVersion":"client.authentication.k8s.io/v1"}'`, "PROGRAM: its ExecCredential has no status"},
		{"a certificate instead", `echo '{"kind":"ExecCredential","apiVersion":"client.authentication.k8s.io/v1","status":{"clientCertificateData":"x"}}'`,
			"PROGRAM: its ExecCredential has a client certificate and no token: a token is what the CA is shown"},
		{"an empty token", `echo '{"kind":"ExecCredential","apiVersion":"client.authentication.k8s.io/v1","status":{"token":" "}}'`, "PROGRAM: its ExecCredential has no status.token"},
		{"no JWT", `echo '{"token":"secret"}'`, "PROGRAM: the token that it printed is not a JWT"},
		{"without end", "yes", "PROGRAM: killed, not done within 1s"},
		{"too much", "head -c 70000 /dev/zero | tr '\\0' x", "PROGRAM: it printed more than 64 kB"},
		{"it hangs", "echo 'waiting for the vault' >&2; sleep 100", `PROGRAM: killed, not done within 4s: "waiting for the vault"`},
	}
}

func TestExec(t *testing.T) {
	t.Setenv("SECRET_OF_OURS", "x")
	for _, tt := range execCases() {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			within := 20 * time.Second
			switch {
			case strings.Contains(tt.want, "not done within 1s"):
				within = 500 * time.Millisecond
			case strings.Contains(tt.want, "not done within 4s"): // it has to say something first, on a loaded machine too
				within = 4 * time.Second
			}
			s := NewExec(Exec{Command: script(tt.script, "a b; $HOME"), Env: map[string]string{"ROLE": "forum"}, Timeout: within})
			token, err := s.Token(t.Context())
			if tt.want == "" {
				if err != nil || token.JWT() != jwt {
					t.Fatalf("token, %v", err)
				}
				return
			}
			if want := strings.ReplaceAll(tt.want, "PROGRAM", s.Where()); err == nil || err.Error() != want {
				t.Errorf("%v\nwant %s", err, want)
			}
			mustNotLeak(t, fmt.Sprint(err))
		})
	}
	if _, err := NewExec(Exec{Command: []string{"/nowhere/at-all"}}).Token(t.Context()); err == nil || err.Error() != "/nowhere/at-all: cannot be run: no such file or directory" {
		t.Errorf("no program: %v", err)
	}
}

func TestExecGivesATokenAgainUntilItsEndOrItsRefusal(t *testing.T) {
	runs := filepath.Join(t.TempDir(), "runs")
	answer := func(expires time.Time) Exec {
		return Exec{Command: script("echo run >>" + runs + "; cat <<'X'\n" + credentialJSON(jwt, expires) + "\nX")}
	}
	count := func() int {
		text, _ := os.ReadFile(runs)
		return strings.Count(string(text), "run")
	}
	ask := func(s Source, times int) {
		t.Helper()
		for range times {
			if _, err := s.Token(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	long := NewExec(answer(time.Now().Add(time.Hour)))
	ask(long, 3)
	if n := count(); n != 1 {
		t.Errorf("run %d times for a token that lives, want once", n)
	}
	long.(interface{ Forget() }).Forget()
	ask(long, 1)
	if n := count(); n != 2 {
		t.Errorf("run %d times after a refusal, want 2", n)
	}
	ask(NewExec(answer(time.Now().Add(execMargin/2))), 2)
	if n := count(); n != 4 {
		t.Errorf("run %d times for a token that is about to end, want 4", n)
	}
}
