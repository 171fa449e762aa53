package binaries

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// components are what versions are told of, in this order, beside Envoy.
var components = []string{istioModule, "k8s.io/kubernetes", "go.etcd.io/etcd/server/v3"}

// Versions tells from what everything is built and fetched: "module version" each. It needs no binary.
func Versions(ctx context.Context) ([]string, error) {
	src, err := componentsDir(ctx)
	if err != nil {
		return nil, err
	}
	text, err := exec.CommandContext(ctx, "go", "mod", "edit", "-json", filepath.Join(src, "go.mod")).Output()
	if err != nil {
		return nil, fmt.Errorf("read the versions of components: %w", err)
	}
	pinned, err := os.ReadFile(filepath.Join(src, envoyPin))
	if err != nil {
		return nil, err
	}
	versions, err := required(text)
	return append(versions, pin(string(pinned))), err
}

// required finds the components in a go.mod as `go mod edit -json` shows it.
func required(mod []byte) (versions []string, err error) {
	var m struct {
		Require []struct{ Path, Version string }
	}
	if err := json.Unmarshal(mod, &m); err != nil {
		return nil, fmt.Errorf("read the versions of components: %w", err)
	}
	at := map[string]string{}
	for _, r := range m.Require {
		at[r.Path] = r.Version
	}
	for _, path := range components {
		if at[path] == "" {
			err = errors.Join(err, fmt.Errorf("%s is not required by the go.mod of components", path))
		}
		versions = append(versions, path+" "+at[path])
	}
	return versions, err
}

// pin reads the one requirement of a file in pip's format, as "package version".
func pin(requirements string) string {
	for line := range strings.Lines(requirements) {
		if name, rest, ok := strings.Cut(line, "=="); ok && !strings.HasPrefix(line, "#") {
			return name + " " + strings.Fields(rest)[0]
		}
	}
	return "no version in " + envoyPin
}
