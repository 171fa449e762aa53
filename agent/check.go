package agent

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"wingman/bootstrap"
	"wingman/bootstrap/identity"
	"wingman/internal/plainfile"
)

// Check finds every problem of the files below root, as the daemon would meet them: the settings, and the token's own claims.
func Check(root string) bootstrap.Problems {
	_, problems := CheckAhead(root, nil)
	return problems
}

// CheckAhead is Check as it would be if files held what put says, by path, the token's too. cfg is nil when they could not be used.
func CheckAhead(root string, put map[string][]byte) (cfg *bootstrap.Config, problems bootstrap.Problems) {
	cfg, problems = bootstrap.LoadAhead(root, put)
	usable := cfg
	joined, err := readJoined(bootstrap.DefaultPaths(root).StateDir)
	member := err != nil || joined != nil
	problems = mustHaveMesh(root, problems, member)
	if cfg == nil {
		// Whose token it should be is not known, but what it says of itself is.
		cfg = &bootstrap.Config{Root: root, Paths: bootstrap.DefaultPaths(root)}
	}
	read := func() ([]byte, error) {
		b, _, err := plainfile.Read(cfg.Paths.Token, identity.MaxToken)
		return b, err
	}
	if raw, ok := put[cfg.Paths.Token]; ok {
		read = func() ([]byte, error) { return raw, nil }
	}
	problems = append(problems, checkResolved(cfg)...)
	return usable, append(problems, checkToken(cfg, read, member, time.Now())...)
}

// CheckSettings finds what is wrong with content as the settings file (wingman.yaml) of the machine below root: the problems that are there with it and would
// not be with an empty one. Other files' own are none of its business, so that settings can be judged before istioctl's files come.
func CheckSettings(root string, content []byte) bootstrap.Problems {
	file := bootstrap.DefaultPaths(root).WingmanYAML
	_, without := CheckAhead(root, map[string][]byte{file: {}})
	_, with := CheckAhead(root, map[string][]byte{file: content})
	return slices.DeleteFunc(with, func(p bootstrap.Problem) bool { return p.File != file && slices.Contains(without, p) })
}

// checkToken judges the token by its claims. A member of the mesh has a certificate and can live without one, so nothing about it is an error there.
func checkToken(cfg *bootstrap.Config, read func() ([]byte, error), member bool, now time.Time) bootstrap.Problems {
	sources := cfg.Identity.Credentials
	if sources != nil && !slices.Contains(sources, identity.SourceFile) || cfg.Paths.WorkloadSocket != "" {
		return nil
	}
	severity := bootstrap.Error
	if member || unitCredential(cfg.Root) || len(slices.DeleteFunc(slices.Clone(sources), isFile)) > 0 { // another source may have one
		severity = bootstrap.Warning
	}
	audience := cmp.Or(cfg.Identity.Audience, identity.DefaultAudience)
	account, how := "this workload's service account", "make one with kubectl create token"
	if cfg.ServiceAccount != "" {
		account = "service account " + cfg.Namespace + "/" + cfg.ServiceAccount
		how = "kubectl create token " + cfg.ServiceAccount + " -n " + cfg.Namespace + " --audience " + audience
	}
	p := bootstrap.Problem{
		Severity: severity,
		File:     cfg.Paths.Token,
		Key:      "istio-token",
		Expected: "a token of " + account + " for the audience " + audience,
		Hint:     how,
	}
	raw, err := read()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		p.Found = "no file"
		return bootstrap.Problems{p}
	case errors.Is(err, fs.ErrPermission):
		p.Found, p.Hint = "a file that may not be read", fmt.Sprintf("let uid %d read it", os.Geteuid())
		return bootstrap.Problems{p}
	case err != nil:
		p.Found = err.Error()
		return bootstrap.Problems{p}
	}
	want := identity.TokenWant{Audience: audience, Namespace: cfg.Namespace, ServiceAccount: cfg.ServiceAccount}
	if err := identity.CheckToken(raw, want, now); err != nil {
		p.Found = err.Error()
		return bootstrap.Problems{p}
	}
	return nil
}

// givesToken is a line that gives a unit the credential that source systemd reads (systemd.exec(5)).
var givesToken = regexp.MustCompile(`(?m)^[ \t]*(Load|Set)Credential(Encrypted)?[ \t]*=[ \t]*` + systemdToken + `(:|[ \t]*$)`)

// unitCredential reports whether a drop-in gives the agent's unit a token: what it is nobody but systemd knows before the start.
func unitCredential(root string) bool {
	for _, dir := range []string{"etc/systemd/system", "run/systemd/system", "usr/lib/systemd/system"} {
		files, _ := filepath.Glob(filepath.Join(root, dir, "wingman.service.d", "*.conf"))
		for _, file := range files {
			if b, err := os.ReadFile(file); err == nil && givesToken.Match(b) {
				return true
			}
		}
	}
	return false
}

// isFile reports whether a source is one of the files that a machine has by default.
func isFile(source string) bool {
	return source == identity.SourceFile || source == identity.SourceSystemd
}
