package main

import (
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"wingman/agent/tested"
	"wingman/bootstrap"
)

// Set by the linker, see packaging/compile.sh.
var (
	release = "devel" // -X main.release=1.2.3
	commit  string    // -X main.commit=, 40 hexadecimal digits; "-dirty" follows where files were changed
)

// version is the release, as the mesh and the log are told it.
func version() string { return release }

// builtFrom is the commit of this program: what the build said, else what the toolchain noted, else nothing.
func builtFrom() string {
	if commit != "" {
		return commit
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				return s.Value
			}
		}
	}
	return ""
}

// A versionReport is what `wingman version` tells.
type versionReport struct {
	Version string `json:"version"`
	Commit  string `json:"commit,omitempty"`
	Go      string `json:"go"`
	Arch    string `json:"arch"`
	Istio   string `json:"istio"` // release whose behaviour it implements
	Tested  struct {
		Istio string `json:"istio"`
		Envoy string `json:"envoy"`
	} `json:"tested"`
}

func newVersion(o *options) *cobra.Command {
	return outputFlag(&cobra.Command{
		Use:   "version",
		Short: "Print the version and commit, the Istio release whose behaviour it implements, and what it was tested with",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := versionReport{Version: version(), Commit: builtFrom(), Go: runtime.Version(), Arch: runtime.GOARCH, Istio: bootstrap.IstioVersion}
			v.Tested.Istio, v.Tested.Envoy = tested.Istio, tested.Envoy
			if o.output == "json" {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(v)
			}
			text := fmt.Sprintf("wingman %s (%s, %s), behaves as Istio %s\n", v.Version, v.Go, v.Arch, v.Istio)
			if v.Commit != "" {
				text += fmt.Sprintf("commit %s\n", v.Commit)
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "%stested with Istio %s and Envoy %s\n", text, v.Tested.Istio, v.Tested.Envoy)
			return err
		},
	}, o)
}
