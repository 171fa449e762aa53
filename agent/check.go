package agent

import (
	"errors"
	"io/fs"
	"os"
	"time"

	"wingman/bootstrap"
	"wingman/bootstrap/identity"
)

// Check finds every problem of the files below root, as the daemon would meet them: the settings, and the token's own claims.
func Check(root string) bootstrap.Problems {
	cfg, problems := bootstrap.Load(root)
	if cfg == nil {
		return problems
	}
	return append(problems, checkToken(cfg, time.Now())...)
}

// checkToken judges the token by its claims. A machine with a certificate can live without one, so nothing about it is an error there.
func checkToken(cfg *bootstrap.Config, now time.Time) bootstrap.Problems {
	severity := bootstrap.Error
	if joined, err := readJoined(cfg.Paths.StateDir); err != nil || joined != nil {
		severity = bootstrap.Warning
	}
	p := bootstrap.Problem{
		Severity: severity,
		File:     cfg.Paths.Token,
		Key:      "istio-token",
		Expected: "a token of service account " + cfg.Namespace + "/" + cfg.ServiceAccount + " for the audience " + identity.DefaultAudience,
		Hint:     "kubectl create token " + cfg.ServiceAccount + " -n " + cfg.Namespace + " --audience " + identity.DefaultAudience,
	}
	raw, err := os.ReadFile(cfg.Paths.Token)
	if errors.Is(err, fs.ErrNotExist) {
		p.Found = "no file"
		return bootstrap.Problems{p}
	}
	if err != nil {
		p.Found = err.Error()
		return bootstrap.Problems{p}
	}
	want := identity.TokenWant{Audience: identity.DefaultAudience, Namespace: cfg.Namespace, ServiceAccount: cfg.ServiceAccount}
	if err := identity.CheckToken(raw, want, now); err != nil {
		p.Found = err.Error()
		return bootstrap.Problems{p}
	}
	return nil
}
