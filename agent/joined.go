package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// joinedFile is below the state folder. Its presence means that this machine was a member of the mesh once: from then on capture
// rules go in before anything else at a start (DESIGN: "never capture what was never joined"). wingman-rules.service has it as
// its condition.
const joinedFile = "joined.json"

// joinState is the content of joinedFile.
type joinState struct {
	At     time.Time `json:"joinedAt"`
	NodeID string    `json:"nodeId"`
	// Envoy is whether the mesh was told, when the entry was made, that this machine takes mutual TLS; Served whether traffic was captured for it.
	Envoy  bool `json:"envoy,omitempty"`
	Served bool `json:"served,omitempty"`
}

// readJoined returns nil when the machine never joined. A file that cannot be understood still says that it did.
func readJoined(stateDir string) (*joinState, error) {
	b, err := os.ReadFile(filepath.Join(stateDir, joinedFile))
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
	told := known && m != nil && a.joined.Envoy != m.envoy
	if !known && m != nil {
		a.joined = &joinState{At: time.Now(), NodeID: m.id(), Envoy: m.envoy, Served: a.envoy.now().proven}
	}
	j := a.joined
	a.mu.Unlock()
	if told {
		a.remember(func(j *joinState) { j.Envoy = m.envoy })
	}
	if known || j == nil {
		return
	}
	a.keepSettings()
	a.remember(func(*joinState) {})
	a.log.Info("joined the mesh", "node", j.NodeID)
	a.capture.look(context.Background())
}

// remember changes what later starts know of the join.
func (a *Agent) remember(change func(*joinState)) {
	a.mu.Lock()
	j := *a.joined
	change(&j)
	a.joined = &j
	a.mu.Unlock()
	if err := writeJoined(a.config().Paths.StateDir, j); err != nil {
		a.log.Error("the join is not remembered; after a reboot rules come only after the next one", "cause", err)
	}
}
