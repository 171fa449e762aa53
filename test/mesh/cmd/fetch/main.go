// Command fetch fills the cache of real mesh components and prints where each is.
//
// Run it in test/mesh: go run ./cmd/fetch. The first run builds for minutes, later ones only look. Its standard output is
// one line "name path" for each component and one line "version module version" for each source; progress goes to standard error.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"wingman/test/mesh/binaries"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	set, err := binaries.Get(ctx, os.Stderr)
	if err != nil {
		fmt.Fprintln(os.Stderr, "fetch:", err)
		os.Exit(1)
	}
	for _, c := range []struct{ name, path string }{
		{"kube-apiserver", set.APIServer}, {"istiod", set.Istiod}, {"istioctl", set.Istioctl}, {"pilot-agent", set.PilotAgent},
		{"envoy", set.Envoy}, {"crds", set.CRDs}, {"envoy-bootstrap", set.EnvoyBootstrap}, {"istio-start", set.StartScript},
	} {
		fmt.Println(c.name, c.path)
	}
	for _, v := range set.Versions {
		fmt.Println("version", v)
	}
}
