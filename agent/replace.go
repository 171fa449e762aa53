package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"wingman/agent/envoy/proxy"
	"wingman/agent/status"
	"wingman/agent/xds"
	"wingman/bootstrap"
)

// How long ReplaceEnvoy waits for the stream to istiod: of an agent that an upgrade of its own package has just restarted, and of a machine that
// is out of the mesh for another WorkloadEntry, as one is to which Envoy has just come (workload.entryGrace is 12 s).
const (
	replacePatience = 8 * time.Second
	rejoinPatience  = 25 * time.Second
	replaceLook     = 100 * time.Millisecond
)

// ReplaceEnvoy has the supervisor of a machine put the Envoy that the settings name in the place of the one that runs, and returns what became of
// it: `wingman envoy replace`. With running, only an Envoy of that program is replaced, and only where another file lies there now.
//
// While the agent or istiod is away it is refused: the Envoy that runs has its configuration, and the next one would get none.
func ReplaceEnvoy(ctx context.Context, root, running string) (said string, err error) {
	runDir := proxy.RunDir(&bootstrap.Config{Paths: bootstrap.DefaultPaths(root)})
	s, err := proxy.ReadState(runDir)
	switch {
	case err != nil:
		return "", err
	case running != "" && s.PID == 0:
		return "no Envoy runs; the next start takes what is there then", nil
	case running != "" && s.Program != running:
		return fmt.Sprintf("the Envoy that runs is %s: it is left alone", s.Program), nil
	}
	if err := awaitIstiod(ctx, root); err != nil {
		return "", err
	}
	return proxy.Replace(ctx, runDir, running)
}

// awaitIstiod waits until the agent has its stream to istiod, to stay.
func awaitIstiod(ctx context.Context, root string) error {
	began, patience := time.Now(), replacePatience
	ctx, cancel := context.WithTimeout(ctx, rejoinPatience)
	defer cancel()
	tick := time.NewTicker(replaceLook)
	defer tick.Stop()
	for {
		r, err := Client(root).Status(ctx)
		if err == nil {
			if err = lacks(r); err == nil {
				return nil
			}
		}
		if r.Rejoining {
			patience = rejoinPatience
		}
		if time.Since(began) >= patience || ctx.Err() != nil {
			return fmt.Errorf("the next Envoy would get no configuration, and the one that runs stays: %w", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// lacks says what keeps another Envoy from the configuration that the present one has; nil: nothing does.
func lacks(r status.Report) error {
	switch {
	case r.Rejoining: // its stream, if there is one, is about to end
		return errors.New("this machine is out of the mesh for another WorkloadEntry")
	case r.XDS == nil || r.XDS.Phase != xds.PhaseConnected:
		return errors.New("istiod is away")
	}
	return nil
}
