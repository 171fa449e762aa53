// Command fetch fills the cache of real mesh components and prints where each is.
//
//	go run ./cmd/fetch              everything: the first run builds for minutes, later ones only look
//	go run ./cmd/fetch -only envoy  only Envoy, which is downloaded, and only its path is printed
//
// Run it in test/mesh. Its standard output is one line "name path" for each component and one line "version module version" for each
// source; progress goes to standard error.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"wingman/test/mesh/binaries"
)

func main() {
	only := flag.String("only", "", `the one component to fetch: "envoy"`)
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := fetch(ctx, *only); err != nil {
		fmt.Fprintln(os.Stderr, "fetch:", err)
		os.Exit(1)
	}
}

func fetch(ctx context.Context, only string) error {
	switch only {
	case "":
	case "envoy":
		program, err := binaries.GetEnvoy(ctx, os.Stderr)
		if err == nil {
			fmt.Println(program)
		}
		return err
	default:
		return fmt.Errorf("-only %s: expected envoy", only)
	}
	set, err := binaries.Get(ctx, os.Stderr)
	if err != nil {
		return err
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
	return nil
}
