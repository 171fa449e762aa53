package main

import (
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"wingman/bootstrap"
)

// release is set by the linker: -X main.release=v1.2.3.
var release = "devel"

// version is the release, with the commit it was built from where the toolchain noted one.
func version() string {
	if c := commit(); c != "" {
		return release + "+" + c
	}
	return release
}

func commit() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return s.Value[:12]
		}
	}
	return ""
}

func newVersion(o *options) *cobra.Command {
	return outputFlag(&cobra.Command{
		Use:   "version",
		Short: "Print the version, and the Istio release whose behaviour it implements",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := struct {
				Version string `json:"version"`
				Go      string `json:"go"`
				Istio   string `json:"istio"`
			}{version(), runtime.Version(), bootstrap.IstioVersion}
			if o.output == "json" {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(v)
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "wingman %s (%s), behaves as Istio %s\n", v.Version, v.Go, v.Istio)
			return err
		},
	}, o)
}
