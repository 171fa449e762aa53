package vm

import "testing"

// What a command of a probe starts in a session of its own is killed with it, by an agent that has its unit's sandbox alone: it looks into environments, and signals
// by pidfd.
func TestAProbeLeavesNoProcess(t *testing.T) {
	const left = "/run/wingman/left"
	m := newMesh(t, func(m *mesh) {
		m.Write("/usr/local/bin/check", "#!/bin/sh\nsetsid sh -c 'echo >>"+left+"; exec sleep 4711' &\nuntil test -s "+left+"; do sleep 0.01; done\n", 0o755)
		m.Write(settingsFile, m.Read(settingsFile)+"probe: {exec: {command: [/usr/local/bin/check]}, periodSeconds: 60, timeoutSeconds: 30}\n", 0o644)
	})
	m.join()
	if out := m.Run("cat", left); out != "" {
		t.Errorf("the command ran more than once: %q", out)
	}
	m.await("the end of what the probe has left", func() bool { _, err := m.Try("pgrep", "-f", "^sleep 4711"); return err != nil })
}
