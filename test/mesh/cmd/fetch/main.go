// Command fetch fills the cache of real mesh components and prints where each is.
//
// Run it in test/mesh: go run ./cmd/fetch. The first run builds for minutes, later ones only look. Its standard output is
// one line "name path" for each component; progress goes to standard error.
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
	fmt.Printf("kube-apiserver %s\nistiod %s\nistioctl %s\npilot-agent %s\nenvoy %s\n",
		set.APIServer, set.Istiod, set.Istioctl, set.PilotAgent, set.Envoy)
	fmt.Printf("crds %s\nenvoy-bootstrap %s\nistio-start %s\nversions %s\n",
		set.CRDs, set.EnvoyBootstrap, set.StartScript, set.Versions)
}
