package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"time"

	"wingman/bootstrap"
	"wingman/internal/plainfile"
)

// joinedFile is below the state folder. Its presence means that this machine was a member of the mesh once: from then on capture
// rules go in before anything else at a start (DESIGN: "never capture what was never joined"). wingman-rules.service has it as
// its condition.
const joinedFile = "joined.json"

// mostJoined bounds joinedFile, in bytes: it has the labels of a WorkloadEntry.
const mostJoined = 1 << 20

// joinState is the content of joinedFile.
type joinState struct {
	At     time.Time `json:"joinedAt"`
	NodeID string    `json:"nodeId"`
	// Entry is what istiod made the WorkloadEntry with; nil: not known.
	Entry *entryFacts `json:"entry,omitempty"`
	// Served is whether traffic was captured for an Envoy.
	Served bool `json:"served,omitempty"`
}

// entryFacts are what counts only at the moment when istiod makes a WorkloadEntry (autoregistration in Istio's pilot/pkg): its labels, which say among
// other things whether peers may send mutual TLS, and whether health is asked for. Another entry needs the old one to be gone.
type entryFacts struct {
	Labels map[string]string `json:"labels"`
	Probe  bool              `json:"probe"`
}

// entryOf are the facts of a node.
func entryOf(n bootstrap.Node) *entryFacts {
	f := &entryFacts{Labels: map[string]string{}}
	labels, _ := n.Metadata["LABELS"].(map[string]any)
	for k, v := range labels {
		f.Labels[k], _ = v.(string)
	}
	proxyConfig, _ := n.Metadata["PROXY_CONFIG"].(map[string]any)
	f.Probe = proxyConfig["readinessProbe"] != nil
	return f
}

func (f *entryFacts) same(o *entryFacts) bool {
	if f == nil || o == nil {
		return f == o
	}
	return f.Probe == o.Probe && maps.Equal(f.Labels, o.Labels)
}

// readJoined returns nil when the machine never joined. A file that cannot be understood still says that it did.
func readJoined(stateDir string) (*joinState, error) {
	b, _, err := plainfile.Read(filepath.Join(stateDir, joinedFile), mostJoined)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read join state: %w", err)
	}
	var j joinState
	if err := json.Unmarshal(b, &j); err != nil {
		return &joinState{}, nil
	}
	return &j, nil
}

func writeJoined(stateDir string, j joinState) error {
	b, err := json.Marshal(j)
	if err != nil {
		return err
	}
	if err := writeFile(filepath.Join(stateDir, joinedFile), append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("write join state: %w", err)
	}
	return nil
}

// noteJoined marks the first configuration that a certificate holder got: from now on the machine is a member, over reboots too.
func (a *Agent) noteJoined() {
	a.mu.Lock()
	m, known := a.member, a.joined != nil
	if !known && m != nil {
		a.joined = &joinState{At: time.Now(), NodeID: m.id(), Entry: m.entry, Served: a.envoy.now().proven}
	}
	j := a.joined
	a.mu.Unlock()
	if known || j == nil {
		return
	}
	a.keepSettings()
	a.remember(func(*joinState) {})
	a.log.Info("joined the mesh", "node", j.NodeID)
	a.capture.look(context.Background())
}

// remember changes what later starts know of the join. One after the other: the file must not be older than what is in memory.
func (a *Agent) remember(change func(*joinState)) {
	a.remembering.Lock()
	defer a.remembering.Unlock()
	a.mu.Lock()
	j := *a.joined
	change(&j)
	a.joined = &j
	a.mu.Unlock()
	if err := writeJoined(a.config().Paths.StateDir, j); err != nil {
		a.log.Error("the join is not remembered; after a reboot rules come only after the next one", "cause", err)
	}
}
