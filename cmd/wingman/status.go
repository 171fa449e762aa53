package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"wingman/agent"
	"wingman/agent/adopt"
	"wingman/agent/enrol"
	"wingman/agent/status"
	"wingman/bootstrap/identity"
)

func newStatus(o *options) *cobra.Command {
	return outputFlag(&cobra.Command{
		Use:   "status",
		Short: "Show what the running daemon does; exit 3 when something is degraded, 4 when it waits for the files to join with",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if stands := adopt.Standing(o.root); stands != "" && o.output != "json" {
				defer fmt.Fprintf(cmd.OutOrStdout(), "%-10s %s\n", "adopted", stands)
			}
			r, err := agent.Client(o.root).Status(cmd.Context())
			if errors.Is(err, status.ErrNotRunning) {
				if why := agent.WhyDown(o.root); why != "" {
					return fmt.Errorf("%w\n%s", status.ErrNotRunning, why)
				}
				var waits bool
				if r, waits = enrol.Waiting(cmd.Context(), o.root, version()); waits {
					err = nil
				}
			}
			if err != nil {
				return err
			}
			if o.output == "json" {
				err = writeJSON(cmd.OutOrStdout(), r)
			} else {
				err = printStatus(cmd.OutOrStdout(), r)
			}
			switch {
			case err != nil:
				return err
			case r.Phase == "waiting":
				return errWaiting
			case len(r.Degraded) > 0:
				return errDegraded
			}
			return nil
		},
	}, o)
}

func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// printStatus is for people: what matters first, one thing a line.
func printStatus(w io.Writer, r status.Report) error {
	var b strings.Builder
	line := func(key, format string, args ...any) {
		fmt.Fprintf(&b, "%-10s %s\n", key, fmt.Sprintf(format, args...))
	}
	daemon := "no daemon yet"
	if r.PID != 0 {
		daemon = fmt.Sprintf("pid %d, up %s", r.PID, r.Time.Sub(r.StartedAt).Round(time.Second))
	}
	line("phase", "%s (wingman %s, %s)", r.Phase, r.Version, daemon)
	if r.Ready {
		line("ready", "yes")
	} else {
		line("ready", "no: %s", strings.Join(r.NotReady, "; "))
	}
	if r.Phase == "waiting" { // there is nothing else to say
		for _, p := range r.Config.Problems {
			line("problem", "%s", p)
		}
		_, err := io.WriteString(w, b.String())
		return err
	}
	if r.Drained != "" {
		line("DRAINED", "%s", r.Drained)
	}
	for _, d := range r.Degraded {
		line("DEGRADED", "%s", d)
	}
	if r.Instance.NodeID != "" {
		line("node", "%s", r.Instance.NodeID)
	}
	if r.Instance.Group != "" {
		line("group", "%s", r.Instance.Group)
	}
	if id := r.Identity; id != nil {
		if id.NotAfter.IsZero() {
			line("identity", "%s %s", id.Phase, id.SPIFFEID)
		} else {
			note := ""
			if id.Health == identity.Warning {
				note = ", " + string(id.Health) + ": little of its life is left and it is not renewed yet"
			}
			line("identity", "%s %s until %s%s", id.Phase, id.SPIFFEID, id.NotAfter.Format(time.RFC3339), note)
		}
	}
	if x := r.XDS; x != nil {
		if x.DownSince.IsZero() {
			line("istiod", "%s %s for %s", x.Address, x.Phase, r.Time.Sub(x.Since).Round(time.Second))
		} else {
			line("istiod", "%s away for %s: %s", x.Address, r.Time.Sub(x.DownSince).Round(time.Second), x.LastError)
		}
	}
	switch {
	case r.Health.Healthy == nil:
		line("health", "no verdict yet")
	case *r.Health.Healthy:
		line("health", "healthy since %s", r.Health.Since.Format(time.RFC3339))
	default:
		line("health", "unhealthy since %s: %s", r.Health.Since.Format(time.RFC3339), r.Health.Reason)
	}
	line("dns", "%d names from %s at %s, upstream %s", r.DNS.Names, r.DNS.Source, strings.Join(r.DNS.Listen, " "), strings.Join(r.DNS.Upstreams, " "))
	if x := r.DNS.Resolved; x != nil {
		if x.Registered {
			line("resolved", "%d domains registered by %s since %s", x.Domains, x.Link, x.Since.Format(time.RFC3339))
		} else {
			line("resolved", "not registered %s", x.Error)
		}
	}
	line("capture", "%s", r.Capture.Level)
	switch e := r.Envoy; {
	case e.Live:
		line("envoy", "serves, pid %d, %s", e.PID, strings.TrimSuffix(e.Program+" "+e.Version, " "))
	case e.Announced:
		line("envoy", "does not serve: %s", e.Cause)
	default:
		line("envoy", "none: %s", e.Cause)
	}
	if r.Config.Source != "files" {
		line("settings", "%s", r.Config.Source)
	}
	for _, p := range r.Config.Problems {
		line("problem", "%s", p)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
