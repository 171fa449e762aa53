package envoy

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"wingman/bootstrap"
)

// Packaged is where our own package of the unmodified Envoy puts it (packaging/envoy).
const Packaged = "/usr/libexec/wingman-envoy/envoy"

// usualPlaces are where packages put Envoy. Programs do not lie below --root.
//
// Istio's build goes first, as it has what others lack. Ours goes before the one in everybody's PATH, which may be there for something
// else, in a version that nobody tried with Wingman: who wants that one says so by envoy.path.
var usualPlaces = []string{"/usr/local/bin/envoy", Packaged, "/usr/bin/envoy"}

// Reasons why a machine runs no Envoy.
var (
	ErrDisabled  = errors.New("switched off by envoy.enabled")
	ErrNoProgram = errors.New("no Envoy here")
)

// Find returns Envoy's program: envoy.path, else the first of the usual places that holds one.
//
// The error wraps ErrDisabled when the settings want none, and ErrNoProgram when there is none; envoy.enabled tells then whether
// that is wrong ("true") or just so ("auto").
//
// istioctl writes no binaryPath, but Istio's default for it, /usr/local/bin/envoy, may stand in mesh.yaml: it is one of the
// usual places, and the others are tried too when nothing is there.
func Find(c bootstrap.Envoy) (string, error) {
	if c.Enabled == "false" {
		return "", ErrDisabled
	}
	places := usualPlaces
	if c.Path != "" {
		places = []string{c.Path}
		if c.Path == usualPlaces[0] {
			places = usualPlaces
		}
	}
	return find(places)
}

func find(places []string) (string, error) {
	for _, path := range places {
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && unix.Access(path, unix.X_OK) == nil {
			return path, nil
		} else if err == nil {
			return "", fmt.Errorf("%w: %s is no program that this user may run", ErrNoProgram, path)
		}
	}
	return "", fmt.Errorf("%w: no program at %s; install one or set envoy.path", ErrNoProgram, strings.Join(places, " or "))
}
