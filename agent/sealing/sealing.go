// Package sealing makes and removes the key that seals the identity at rest (`wingman cert seal`, `unseal`), as root.
//
// The key is random and made once. systemd-creds encrypts it to this machine (its TPM 2 where there is one, else systemd's host key), and a drop-in has the
// agent's unit decrypt it as root (Open): the agent, which is not root, never sees what encrypted it. It is not LoadCredentialEncrypted=, since a key that cannot
// be decrypted would keep the unit from starting, and the agent from saying so. Whether the identity is sealed is not decided here but by setting identity.seal.
// Only Discard touches the store.
package sealing

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"wingman/bootstrap"
	"wingman/bootstrap/identity"
)

// Where the two files lie, below root.
const (
	keyFile = "/etc/credstore.encrypted/" + identity.SealKey
	dropIn  = "/etc/systemd/system/wingman.service.d/seal.conf"
)

const dropInText = `# Made by wingman cert seal: the key that seals the identity at rest (setting identity.seal).
[Service]
# The unit's devices are closed; root's step may use the TPM.
DeviceAllow=/dev/tpmrm0 rw
ExecStartPre=+-/usr/bin/wingman cert open-key
`

// Run runs a program with this input and returns its standard output.
type Run func(ctx context.Context, input []byte, argv ...string) ([]byte, error)

// System is Run on this machine. The error has the first line of what the program complained of.
func System(ctx context.Context, input []byte, argv ...string) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(input), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		line, _, _ := strings.Cut(strings.TrimSpace(stderr.String()), "\n")
		return nil, fmt.Errorf("%s: %w: %s", argv[0], err, line)
	}
	return stdout.Bytes(), nil
}

// Seal makes a key, unless there is one, and the drop-in. say is told each step and what is left to do.
func Seal(ctx context.Context, root string, run Run, say func(string)) error {
	key := filepath.Join(root, keyFile)
	if _, err := os.Stat(key); err == nil {
		say("key: " + keyFile + " is there already and stays")
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	} else {
		secret := make([]byte, 32)
		rand.Read(secret)
		sealed, err := run(ctx, []byte(hex.EncodeToString(secret)+"\n"), "systemd-creds", "encrypt", "--name="+identity.SealKey, "-", "-")
		if err != nil {
			return fmt.Errorf("encrypt a key to this machine: %w: systemd-creds is of systemd 250 and later", err)
		}
		if err := write(key, sealed, 0o700, 0o600); err != nil {
			return err
		}
		say("key: made, encrypted to this machine, " + keyFile)
	}
	if err := write(filepath.Join(root, dropIn), []byte(dropInText), 0o755, 0o644); err != nil {
		return err
	}
	if _, err := run(ctx, nil, "systemctl", "daemon-reload"); err != nil {
		return err
	}
	say("unit: decrypts the key by " + dropIn)
	say("next: set identity.seal: true in /etc/wingman/wingman.yaml, then systemctl restart wingman")
	return nil
}

// Open leaves the key, decrypted, on a tmpfs for the group that the agent runs as. Where that fails no key of before is left there.
func Open(ctx context.Context, root string, gid int, run Run) error {
	out := filepath.Join(root, identity.OpenKey)
	if err := os.Remove(out); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	secret, err := decrypt(ctx, root, run)
	if err != nil {
		return err
	}
	if err := identity.MakeMachineDir(root); err != nil {
		return err
	}
	if err := write(out, secret, 0o755, 0o400); err != nil {
		return err
	}
	if err := os.Lchown(out, -1, gid); err != nil {
		return err
	}
	return os.Chmod(out, 0o440)
}

// decrypt is the key in the clear.
func decrypt(ctx context.Context, root string, run Run) ([]byte, error) {
	if _, err := os.Stat(filepath.Join(root, keyFile)); err != nil {
		return nil, err
	}
	secret, err := run(ctx, nil, "systemd-creds", "decrypt", "--name="+identity.SealKey, filepath.Join(root, keyFile), "-")
	if err != nil {
		return nil, fmt.Errorf("the key that seals the identity cannot be decrypted on this machine: %w", err)
	}
	return secret, nil
}

// Discard gives up what no key here opens, so that Unseal can go on: the identity, or the copy of a token, of a key that is lost.
func Discard(ctx context.Context, root string, run Run, say func(string)) error {
	secret, err := decrypt(ctx, root, run)
	if err != nil {
		say("key: " + err.Error())
	}
	gone, err := identity.Discard(bootstrap.DefaultPaths(root).StateDir, secret)
	for _, path := range gone {
		say("discarded: " + path)
	}
	return err
}

// Unseal removes both again. It refuses while anything is sealed: that would be lost. So it would with a good key that the setting has the agent seal with.
func Unseal(ctx context.Context, root string, run Run, say func(string)) error {
	if cfg, _ := bootstrap.Load(root); cfg != nil && cfg.Identity.Seal {
		if _, err := decrypt(ctx, root, run); err == nil {
			return errors.New("identity.seal is on: set identity.seal: false, systemctl restart wingman, and run this again")
		}
	}
	state := bootstrap.DefaultPaths(root).StateDir
	sealed, err := identity.Sealed(state)
	if err != nil {
		return err
	}
	if len(sealed) > 0 {
		return fmt.Errorf("%d files are sealed with the key, %s for one: set identity.seal: false, systemctl restart wingman, and run this again; if their key is lost, run it with --discard",
			len(sealed), sealed[0])
	}
	for _, path := range []string{dropIn, keyFile, identity.OpenKey} {
		if err := os.Remove(filepath.Join(root, path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if _, err := run(ctx, nil, "systemctl", "daemon-reload"); err != nil {
		return err
	}
	say("key and drop-in: removed; nothing was sealed with it")
	return nil
}

// write makes a file whole, and its folder.
func write(path string, content []byte, folder, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), folder); err != nil {
		return err
	}
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, err), os.Remove(path+".new"))
	}
	return nil
}
