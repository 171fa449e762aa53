package sealing

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"wingman/bootstrap/identity"
	"wingman/test/controlplane"
	"wingman/test/files"
)

// fake is systemd-creds and systemctl: it remembers what it was asked, and encrypts by a prefix.
type fake struct {
	asked  []string
	inputs []string
	fails  bool
	key    string
}

func (f *fake) run(_ context.Context, input []byte, argv ...string) ([]byte, error) {
	f.asked, f.inputs = append(f.asked, strings.Join(argv, " ")), append(f.inputs, string(input))
	if f.fails {
		return nil, errors.New("systemd-creds: exit status 1: no host key")
	}
	if argv[1] == "decrypt" {
		return []byte(f.key), nil
	}
	return []byte("encrypted"), nil
}

func (f *fake) withoutTheHostsKey(ctx context.Context, input []byte, argv ...string) ([]byte, error) {
	if argv[0] == "systemd-creds" {
		return nil, errors.New("systemd-creds: exit status 1: no host key")
	}
	return f.run(ctx, input, argv...)
}

func TestSealAndUnseal(t *testing.T) {
	root := t.TempDir()
	f, said := &fake{}, []string{}
	say := func(s string) { said = append(said, s) }
	if err := Seal(t.Context(), root, f.run, say); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(root, keyFile)); string(got) != "encrypted" {
		t.Errorf("key file: %q, %v", got, err)
	}
	for path, mode := range map[string]os.FileMode{keyFile: 0o600, dropIn: 0o644} {
		if info, err := os.Stat(filepath.Join(root, path)); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", path, info, err)
		}
	}
	if text, _ := os.ReadFile(filepath.Join(root, dropIn)); !strings.Contains(string(text), "\nExecStartPre=+-/usr/bin/wingman cert open-key\n") || strings.Contains(string(text), "LoadCredential") {
		t.Errorf("drop-in:\n%s", text)
	}
	if len(f.asked) != 2 || f.asked[0] != "systemd-creds encrypt --name=wingman-seal-key - -" || f.asked[1] != "systemctl daemon-reload" || len(strings.TrimSpace(f.inputs[0])) != 64 {
		t.Errorf("asked %q", f.asked)
	}
	first := f.inputs[0]

	// Again: the key stays, or what it sealed were lost.
	if err := Seal(t.Context(), root, f.run, say); err != nil || len(f.asked) != 3 {
		t.Errorf("again: %v, asked %q", err, f.asked)
	}
	if strings.Contains(strings.Join(said, "\n"), strings.TrimSpace(first)) {
		t.Error("the key is said")
	}

	sealed := filepath.Join(root, "var/lib/wingman/identity/generations/7/key.pem")
	if err := os.MkdirAll(filepath.Dir(sealed), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(sealed, []byte("wingman-sealed-1\nx"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Unseal(t.Context(), root, f.run, say); err == nil || !strings.HasPrefix(err.Error(), "1 files are sealed with the key, "+sealed+" for one: set identity.seal: false") {
		t.Errorf("unseal of a sealed store: %v", err)
	}
	if _, err := os.Stat(filepath.Join(root, keyFile)); err != nil {
		t.Errorf("the key is gone: %v", err)
	}
	if err := os.WriteFile(sealed, []byte("-----BEGIN PRIVATE KEY-----"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Unseal(t.Context(), root, f.run, say); err != nil {
		t.Error(err)
	}
	if list, err := identity.Sealed(filepath.Join(root, "var/lib/wingman")); err != nil || len(list) != 0 {
		t.Errorf("sealed: %v, %v", list, err)
	}
	for _, path := range []string{keyFile, dropIn} {
		if _, err := os.Stat(filepath.Join(root, path)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", path, err)
		}
	}
	if err := Unseal(t.Context(), root, f.run, say); err != nil {
		t.Errorf("again: %v", err)
	}
}

func TestAMachineThatCannotSeal(t *testing.T) {
	root := t.TempDir()
	f := &fake{fails: true}
	if err := Seal(t.Context(), root, f.run, func(string) {}); err == nil || !strings.Contains(err.Error(), "encrypt a key to this machine: systemd-creds: exit status 1: no host key") {
		t.Errorf("%v", err)
	}
	for _, path := range []string{keyFile, dropIn} {
		if _, err := os.Stat(filepath.Join(root, path)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", path, err)
		}
	}
}

// TestOpen leaves the key where the agent, and nobody else, reads it; one that cannot be decrypted is not left from before.
func TestOpen(t *testing.T) {
	root, gid := t.TempDir(), os.Getegid()
	out := filepath.Join(root, identity.OpenKey)
	f := &fake{key: strings.Repeat("0a", 32) + "\n"}
	if err := Open(t.Context(), root, gid, f.run); !errors.Is(err, os.ErrNotExist) || len(f.asked) > 0 {
		t.Errorf("without a key: %v, asked %q", err, f.asked)
	}
	if err := Seal(t.Context(), root, f.run, func(string) {}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := Open(t.Context(), root, gid, f.run); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(out); string(got) != f.key {
			t.Errorf("%q, %v", got, err)
		}
		if info, err := os.Stat(out); err != nil || info.Mode().Perm() != 0o440 {
			t.Errorf("%v, %v", info, err)
		}
		if info, err := os.Stat(filepath.Dir(out)); err != nil || info.Mode().Perm() != 0o755 {
			t.Errorf("%v, %v", info, err)
		}
	}
	f.fails = true
	if err := Open(t.Context(), root, gid, f.run); err == nil || !strings.Contains(err.Error(), "cannot be decrypted on this machine: systemd-creds: exit status 1") {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(out); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the key of before is left: %v", err)
	}
}

// TestDiscard gives up what is sealed with a key that is lost, and nothing that can be opened.
func TestDiscard(t *testing.T) {
	root := t.TempDir()
	f := &fake{key: strings.Repeat("0a", 32)}
	say := func(string) {}
	if err := Seal(t.Context(), root, f.run, say); err != nil {
		t.Fatal(err)
	}
	state := filepath.Join(root, "var/lib/wingman")
	dead, token := filepath.Join(state, "identity/generations/7"), filepath.Join(state, "identity/token")
	clear := filepath.Join(state, "identity/generations/8/key.pem")
	for path, text := range map[string]string{filepath.Join(dead, "key.pem"): "wingman-sealed-1\nx", filepath.Join(dead, "meta.json"): "{}", token: "wingman-sealed-1\ny", clear: "-----BEGIN PRIVATE KEY-----"} {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f.fails = true
	if err := Unseal(t.Context(), root, f.run, say); err == nil || !strings.Contains(err.Error(), "if their key is lost, run it with --discard") {
		t.Errorf("unseal: %v", err)
	}
	if err := Discard(t.Context(), root, f.run, say); err != nil {
		t.Error(err)
	}
	for _, path := range []string{dead, token} {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", path, err)
		}
	}
	if _, err := os.Lstat(clear); err != nil {
		t.Error(err)
	}
	f.fails = false
	if err := Unseal(t.Context(), root, f.run, say); err != nil {
		t.Error(err)
	}
}

// TestUnsealWhileTheSettingIsOn refuses: the agent has the key and would seal with it after it is gone.
func TestUnsealWhileTheSettingIsOn(t *testing.T) {
	root := t.TempDir()
	f := &fake{key: strings.Repeat("0a", 32)}
	say := func(string) {}
	istiod, err := controlplane.New(controlplane.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := files.Write(root, istiod); err != nil {
		t.Fatal(err)
	}
	set := func(text string) {
		t.Helper()
		if err := files.Put(root, "etc/wingman/wingman.yaml", text); err != nil {
			t.Fatal(err)
		}
	}
	set("identity: {seal: true}\n")
	if err := Seal(t.Context(), root, f.run, say); err != nil {
		t.Fatal(err)
	}
	if err := Unseal(t.Context(), root, f.run, say); err == nil || !strings.HasPrefix(err.Error(), "identity.seal is on: set identity.seal: false") {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(filepath.Join(root, keyFile)); err != nil {
		t.Errorf("the key is gone: %v", err)
	}
	// A dead key seals nothing: it may go for a new one.
	if err := Unseal(t.Context(), root, f.withoutTheHostsKey, say); err != nil {
		t.Errorf("a dead key: %v", err)
	}
	if err := Seal(t.Context(), root, f.run, say); err != nil {
		t.Fatal(err)
	}
	set("identity: {seal: false}\n")
	if err := Unseal(t.Context(), root, f.run, say); err != nil {
		t.Error(err)
	}
}
