package agent

import (
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
