package bootstrap

import (
	"bytes"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// envCases are files that are read without an error, and what they set. The same files are given to a real shell below.
var envCases = []struct {
	name string
	src  string
	want map[string]string
}{
	{"plain values", "A=1\nB=two\n", map[string]string{"A": "1", "B": "two"}},
	{"the last line needs no newline", "A=1", map[string]string{"A": "1"}},
	{"a later line wins", "A=1\nA=2\n", map[string]string{"A": "2"}},
	{"an empty value is a value", "A=\nB=''\nC=\"\"\n", map[string]string{"A": "", "B": "", "C": ""}},
	{"single quotes keep everything", `A='{"app":"forum"} $HOME \n #'`, map[string]string{"A": `{"app":"forum"} $HOME \n #`}},
	{"istioctl's way to write a single quote", `A='it'"'"'s'`, map[string]string{"A": "it's"}},
	{"double quotes expand names", "X=1\nA=\"$X ${X}2 \\$X\"\n", map[string]string{"X": "1", "A": "1 12 $X"}},
	{"in double quotes a backslash protects five things only", `A="\\ \" \` + "`" + ` \n \'"`, map[string]string{"A": `\ " ` + "`" + ` \n \'`}},
	{"in double quotes a backslash joins lines", "A=\"one\\\ntwo\"", map[string]string{"A": "onetwo"}},
	{"unquoted a backslash protects anything", `A=a\ b\'c\$d\\`, map[string]string{"A": `a b'c$d\`}},
	{"unquoted a backslash joins lines", "A=one\\\ntwo\nB=3\n", map[string]string{"A": "onetwo", "B": "3"}},
	{"a joined line may begin with a blank", "A=one \\\n  B=2\n", map[string]string{"A": "one", "B": "2"}},
	{"quotes join without a blank", `A=a'b'"c"d`, map[string]string{"A": "abcd"}},
	{"a quote runs over lines", "A='one\ntwo'\nB=2\n", map[string]string{"A": "one\ntwo", "B": "2"}},
	{"comments and blank lines", "# one\n\n  # two\nA=1 # three\nB=2#4\n", map[string]string{"A": "1", "B": "2#4"}},
	{"export", "export A=1 B='2 3'\nexport A\nexport\tC=4\n", map[string]string{"A": "1", "B": "2 3", "C": "4"}},
	{"a variable may be called export-something", "exported=1\n", map[string]string{"exported": "1"}},
	{"several on a line", "A=1 B=2; C=3\n", map[string]string{"A": "1", "B": "2", "C": "3"}},
	{"indented", "\t A=1\n", map[string]string{"A": "1"}},
	{"a star is not a pattern here", "ISTIO_INBOUND_PORTS=*\n", map[string]string{"ISTIO_INBOUND_PORTS": "*"}},
	{"an equals sign in the value", "A=b=c\n", map[string]string{"A": "b=c"}},
	{"a dollar before what is no name", `A="5$ $. $"`, map[string]string{"A": "5$ $. $"}},
	{"an expansion is not split", "X='a  b'\nA=$X\n", map[string]string{"X": "a  b", "A": "a  b"}},
	{"a name ends where it must", "X=1\nA=$X-2${X}y\n", map[string]string{"X": "1", "A": "1-21y"}},
	{"braces of JSON", `A={"a":1}` + "\n", map[string]string{"A": "{a:1}"}},
	{"a tilde inside", "A=x~y\nB='~'\n", map[string]string{"A": "x~y", "B": "~"}},
	{"text beyond ASCII", "A=größe\n", map[string]string{"A": "größe"}},
	{"PROXY_CONFIG over several lines", "PROXY_CONFIG=\"\ndiscoveryAddress: istiod:15012\nconcurrency: 2\n\"\n",
		map[string]string{"PROXY_CONFIG": "\ndiscoveryAddress: istiod:15012\nconcurrency: 2\n"}},
}

func TestEnvFileSets(t *testing.T) {
	for _, tt := range envCases {
		t.Run(tt.name, func(t *testing.T) {
			vars := map[string]envVar{}
			problems := readEnv("f", []byte(tt.src), rankCluster, vars)
			if len(problems) > 0 {
				t.Errorf("read %q: %v", tt.src, problems)
			}
			if diff := cmp.Diff(tt.want, valuesOf(vars)); diff != "" {
				t.Errorf("read %q (-want +got):\n%s", tt.src, diff)
			}
		})
	}
}

// TestEnvFileAgreesWithShell gives every file that we accept to the shell that istio-start.sh is written for.
func TestEnvFileAgreesWithShell(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("no bash to compare with")
	}
	for _, tt := range envCases {
		t.Run(tt.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "file.env")
			if err := os.WriteFile(file, []byte(tt.src), 0o600); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(bash, "--norc", "--noprofile", "-c", `set -ea; . "$0"; env -0`, file)
			cmd.Env = []string{"PATH=/usr/bin:/bin"}
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("bash: %v", err)
			}
			got := map[string]string{}
			for _, pair := range bytes.Split(out, []byte{0}) {
				name, value, _ := strings.Cut(string(pair), "=")
				if _, ok := tt.want[name]; ok {
					got[name] = value
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("bash reads %q otherwise (-table +bash):\n%s", tt.src, diff)
			}
		})
	}
}

func TestEnvFileRefuses(t *testing.T) {
	const supported = " (" + envSupported + ")"
	for _, tt := range []struct {
		name string
		src  string
		want []string
	}{
		{"a single quote that is never closed", "A=1\nB='two\n", []string{"error: f:2: found a quote that is never closed, expected a closing '"}},
		{"a double quote that is never closed", "A=\"1\n2\n", []string{`error: f:1: found a quote that is never closed, expected a closing "`}},
		{"the line of a forgotten quote, not of a later one", "A='1'\nB='two\nC='3'\nD='4'\n",
			[]string{"error: f:2: found a quote that is not closed on its line, expected a closing quote (it swallows line 3)"}},
		{"a forgotten quote before JSON", "A='1\nISTIO_METAJSON_LABELS='{\"app\":\"forum\",\"v\":\"(1)\"}'\nD='4'\n",
			[]string{"error: f:1: found a quote that is not closed on its line, expected a closing quote (it swallows line 2)"}},
		{"two forgotten quotes that close each other", "A='1\nB=two'\n",
			[]string{"warning: f:1: found a quote that is not closed on its line, expected a closing quote (line 2 looks like an assignment and became part of the value)"}},
		{"a command substitution", "A=$(hostname -I)\n", []string{"error: f:1: found a command substitution $(...), expected its result" + supported}},
		{"a command substitution in quotes", "X=1\n\nA=\"$(id)\"\n", []string{"error: f:3: found a command substitution $(...), expected its result" + supported}},
		{"backquotes", "A=`id`\nB=\"`id`\"\n", []string{
			"error: f:1: found a command in backquotes, expected its result" + supported,
			"error: f:2: found a command in backquotes, expected its result" + supported}},
		{"a default inside ${}", "A=${B:-c}\n", []string{"error: f:1: found a ${...} that is more than a name, expected ${NAME}" + supported}},
		{"the shell's parameters", "A=$1\n", []string{"error: f:1: found the shell's own parameter $1, expected a name, or \\$" + supported}},
		{"ANSI quotes", "A=$'a'\n", []string{"error: f:1: found a quote after $, expected plain quotes" + supported}},
		{"a tilde", "A=~/x\n", []string{"error: f:1: found ~, expected the full path" + supported}},
		{"an array", "A=(1 2)\n", []string{"error: f:1: found an unquoted (, expected the value in quotes" + supported}},
		{"a pipe", "A=1|tee\n", []string{"error: f:1: found an unquoted |, expected the value in quotes" + supported}},
		{"spaces around the equals sign", "A = 1\n", []string{`error: f:1: found "A = 1", expected NAME=value (write no spaces around =)`}},
		{"a value with spaces and no quotes", "ISTIO_AGENT_FLAGS=--a --b\n", []string{`error: f:1: found "--b", expected NAME=value (a value with spaces needs quotes)`}},
		{"a command", "set -a\n", []string{`error: f:1: found "set -a", expected NAME=value` + supported}},
		{"a name with a dash", "A-B=1\n", []string{`error: f:1: found "A-B=1", expected NAME=value` + supported}},
		{"appending", "A+=1\n", []string{`error: f:1: found "A+=1", expected NAME=value` + supported}},
		{"each bad line once, the good ones between are read", "if true\nA=1\nfi\n", []string{
			`error: f:1: found "if true", expected NAME=value` + supported, `error: f:3: found "fi", expected NAME=value` + supported}},
		{"a secret is not repeated", "MY_PASSWORD = hunter2\n", []string{`error: f:1: found "MY_PASSWORD", expected NAME=value (write no spaces around =)`}},
		{"an unknown name is empty, as in the shell, with a warning", "A=\"x$HOST_IP\"\n", []string{
			"warning: f:1: found $HOST_IP, expected a variable that an earlier line sets (it is empty here; the environment of the process is not read)"}},
		{"a name whose own line was refused is not reported again", "A=$(id)\nB=$A\n", []string{"error: f:1: found a command substitution $(...), expected its result" + supported}},
		{"line ends of Windows", "A=1\r\nB='2'\r\n", []string{"warning: f:1: found lines that end in CR LF, expected LF (the CRs were left out; a shell would make them part of each value)"}},
		{"binary", "A=\x00\x01", []string{"error: f: found bytes that are not text, expected lines of NAME=value in UTF-8 (copy the file again)"}},
		{"another encoding", "A=gr\xf6\xdfe\n", []string{"error: f: found bytes that are not text, expected lines of NAME=value in UTF-8 (copy the file again)"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			vars := map[string]envVar{}
			problems := readEnv("f", []byte(tt.src), rankCluster, vars)
			if diff := cmp.Diff(tt.want, machine{}.told(problems)); diff != "" {
				t.Errorf("read %q (-want +got):\n%s", tt.src, diff)
			}
		})
	}
}

func TestEnvFileRemembersLines(t *testing.T) {
	vars := map[string]envVar{"OLD": {value: "o", file: "sidecar.env", line: 7, rank: rankSidecar}}
	readEnv("cluster.env", []byte("A='one\ntwo'\n\nexport B=$OLD \\\n  C=3\nOLD=$OLD\n"), rankCluster, vars)
	want := map[string]envVar{
		"A":   {value: "one\ntwo", file: "cluster.env", line: 1, rank: rankCluster},
		"B":   {value: "o", file: "cluster.env", line: 4, rank: rankCluster},
		"C":   {value: "3", file: "cluster.env", line: 5, rank: rankCluster},
		"OLD": {value: "o", file: "cluster.env", line: 6, rank: rankCluster},
	}
	if diff := cmp.Diff(want, vars, cmp.AllowUnexported(envVar{})); diff != "" {
		t.Errorf("places (-want +got):\n%s", diff)
	}
}

func valuesOf(vars map[string]envVar) map[string]string {
	out := map[string]string{}
	for name, v := range vars {
		out[name] = v.value
	}
	return out
}

// shellQuote writes a value as istioctl does (shellescape.Quote).
func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'"'"'`) + "'" }

// FuzzEnvFile looks for panics, for problems without a place, and for values that do not survive being written as istioctl
// writes them.
func FuzzEnvFile(f *testing.F) {
	for _, tt := range envCases {
		f.Add(tt.src)
	}
	for _, file := range fixtures(f) {
		f.Add(file)
	}
	f.Add("A='1\nB=two'\nC=\"$(id)\" \\\n")
	f.Fuzz(func(t *testing.T, src string) {
		vars := map[string]envVar{}
		problems := readEnv("f", []byte(src), rankCluster, vars)
		lines := strings.Count(src, "\n") + 1
		for _, p := range problems {
			if p.File != "f" || p.Line < 0 || p.Line > lines || p.Found == "" {
				t.Fatalf("problem without a place: %+v", p)
			}
		}
		var again strings.Builder
		for name, v := range vars {
			if v.line < 1 || v.line > lines {
				t.Fatalf("%s is set in line %d of %d", name, v.line, lines)
			}
			if strings.Contains(v.value, "\r\n") { // from CR CR LF, of which one CR is taken
				return
			}
			again.WriteString(name + "=" + shellQuote(v.value) + "\n")
		}
		copied := map[string]envVar{}
		if err := readEnv("f", []byte(again.String()), rankCluster, copied).Err(); err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
		if !maps.Equal(valuesOf(vars), valuesOf(copied)) {
			t.Fatalf("%v became %v", valuesOf(vars), valuesOf(copied))
		}
	})
}
