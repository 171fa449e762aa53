package identity

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestOtherMachine(t *testing.T) {
	tests := []struct {
		name        string
		before, now Machine
		want        bool
	}{
		{"nothing known", Machine{}, Machine{}, false},
		{"a store of before origins were kept", Machine{}, Machine{ID: "a"}, false},
		{"the same", Machine{ID: "a"}, Machine{ID: "a"}, false},
		{"another machine id", Machine{ID: "a"}, Machine{ID: "b"}, true},
		{"a new machine id on the same instance", Machine{ID: "a", Instance: "i"}, Machine{ID: "b", Instance: "i"}, false},
		{"a copy that kept its machine id is another instance", Machine{ID: "a", Instance: "i"}, Machine{ID: "a", Instance: "j"}, true},
		{"a copy that kept both has another product UUID", Machine{ID: "a", Instance: "i", Product: "p"}, Machine{ID: "a", Instance: "i", Product: "q"}, true},
		{"the same product UUID", Machine{ID: "a", Instance: "i", Product: "p"}, Machine{ID: "b", Instance: "j", Product: "p"}, false},
		{"root wrote the UUID, who asks cannot read it", Machine{ID: "a", Product: "p"}, Machine{ID: "a"}, false},
	}
	for _, tt := range tests {
		if got := tt.before.isOther(tt.now); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestReadMachine(t *testing.T) {
	root := t.TempDir()
	if m := ReadMachine(root); m != (Machine{}) {
		t.Errorf("of an empty disk: %+v", m)
	}
	const id = "4c6e3a1d1f5b4a0e8d2f7b9c0a1e2d3f"
	putFile(t, filepath.Join(root, "etc/machine-id"), id+"\n")
	putFile(t, filepath.Join(root, "var/lib/cloud/data/instance-id"), "i-0abc\n")
	m := ReadMachine(root)
	if len(m.ID) != 32 || len(m.Instance) != 32 || m.Product != "" || m.ID == id || strings.Contains(m.ID, id[:8]) {
		t.Errorf("machine %+v: expected hashes", m)
	}
	if again := ReadMachine(root); again != m {
		t.Errorf("%+v and then %+v", m, again)
	}
	for _, text := range []string{"", "uninitialized\n"} {
		putFile(t, filepath.Join(root, "etc/machine-id"), text)
		if m := ReadMachine(root); m.ID != "" {
			t.Errorf("machine id %q gives %q", text, m.ID)
		}
	}
}

// TestTheProductIsKnownToOthers has root leave a hash of the product UUID, which the agent may not read. The commonest copy, a virtual machine's clone, differs in nothing else.
func TestTheProductIsKnownToOthers(t *testing.T) {
	root := t.TempDir()
	if err := LeaveProduct(root); err != nil {
		t.Fatal(err)
	}
	const uuid = "0F1E2D3C-4B5A-6978-8796-A5B4C3D2E1F0"
	file, hash := filepath.Join(root, productUUID), filepath.Join(root, productHash)
	putFile(t, file, uuid+"\n")
	asRoot := ReadMachine(root)
	if len(asRoot.Product) != 32 {
		t.Fatalf("%+v", asRoot)
	}
	for range 2 { // each start does it
		if err := LeaveProduct(root); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := os.Stat(hash); err != nil || info.Mode().Perm() != 0o444 {
		t.Errorf("%v, %v", info, err)
	}
	if text, _ := os.ReadFile(hash); strings.Contains(strings.ToUpper(string(text)), uuid[:8]) {
		t.Errorf("the UUID is told: %s", text)
	}
	os.Remove(file) // as it is for who may not read it
	if m := ReadMachine(root); m != asRoot {
		t.Errorf("the agent knows %+v, want %+v", m, asRoot)
	}
	for _, text := range []string{"", "zz", asRoot.Product + "00", uuid} {
		putFile(t, hash, text)
		if m := ReadMachine(root); m.Product != "" {
			t.Errorf("%q gives %q", text, m.Product)
		}
	}
	if err := LeaveProduct(root); err != nil { // another machine, which has none
		t.Fatal(err)
	}
	if _, err := os.Stat(hash); !os.IsNotExist(err) {
		t.Errorf("it is left: %v", err)
	}
}

// TestAClonedDiskIsNoticed is an image made of a machine that had joined. Its copies work, have keys of their own at once, and say what they are until somebody gives them
// a token.
func TestAClonedDiskIsNoticed(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		l.cfg.Machine = Machine{ID: "a"}
		l.start()
		l.mustBe(Valid)
		first := l.m.Current()
		if s := l.m.State(); s.Copied != "" {
			t.Errorf("copied: %q", s.Copied)
		}
		l.stop()
		os.Remove(l.vm.token)

		l.cfg.Machine = Machine{ID: "b"}
		l.start()
		l.pass(time.Second)
		l.mustBe(Valid)
		own := l.m.Current()
		if own.Serial == first.Serial || string(own.KeyPEM()) == string(first.KeyPEM()) {
			t.Error("the copy goes on with the key of the other machine")
		}
		s := l.m.State()
		const want = "this identity was made on another machine: the disk is a copy of a machine that had joined, or this one has a new machine id. "
		if !strings.HasPrefix(s.Copied, want) || !strings.Contains(s.Copied, "kubectl create token") || s.Credential != "certificate" {
			t.Errorf("said %q, certificate by %q", s.Copied, s.Credential)
		}
		if n := l.log.count("WARN", "identity is a copy of another machine's"); n != 1 {
			t.Errorf("said %d times", n)
		}
		asked := len(l.ca.seen())
		l.pass(time.Hour)
		if n := len(l.ca.seen()); n != asked {
			t.Errorf("%d requests while nothing changed", n-asked)
		}
		l.stop()

		l.start() // its own renewal does not make it forget where it is from
		l.pass(time.Second)
		if s := l.m.State(); s.Copied == "" {
			t.Error("a restart makes the copy an original")
		}
		l.putToken(time.Hour)
		l.poke()
		l.pass(time.Second)
		if s := l.m.State(); s.Copied != "" || s.Credential != "token" {
			t.Errorf("after a fresh token: %q, certificate by %q", s.Copied, s.Credential)
		}
		l.stop()
		l.start()
		l.pass(time.Second)
		if s := l.m.State(); s.Copied != "" {
			t.Errorf("after a restart: %q", s.Copied)
		}
	})
}

// A copy whose CA cannot be reached at first goes on asking: nobody has to wait for the next renewal, half a life away, for a key of its own.
func TestACloneAsksUntilItIsAnswered(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		l.cfg.Machine = Machine{ID: "a"}
		l.start()
		first := l.m.Current()
		l.stop()
		l.down.Store(true)
		l.cfg.Machine = Machine{ID: "b"}
		l.start()
		l.pass(time.Minute)
		l.mustBe(Renewing)
		if s := l.m.State(); s.NextAttempt.IsZero() || s.Copied == "" {
			t.Errorf("next attempt %v, copied %q", s.NextAttempt, s.Copied)
		}
		l.down.Store(false)
		l.pass(time.Minute)
		l.mustBe(Valid)
		if s := l.m.State(); s.Copied != "" || s.LastError != "" || s.Credential != "token" || string(l.m.Current().KeyPEM()) == string(first.KeyPEM()) {
			t.Errorf("the CA is back: copied %q, last error %q, by %q", s.Copied, s.LastError, s.Credential)
		}
	})
}

// A token that comes while a copy's first request is under way is asked with when that is over, however it ends.
func TestATokenForACloneThatIsAskingIsNotLost(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		l.cfg.Machine = Machine{ID: "a"}
		l.start()
		l.stop()
		os.Remove(l.vm.token)
		let := make(chan struct{})
		l.ca.with(func() { l.ca.gate = func(context.Context) error { <-let; return nil } })
		l.cfg.Machine = Machine{ID: "b"}
		l.start()
		l.putToken(time.Hour)
		l.poke()
		close(let)
		l.pass(time.Second)
		if s := l.m.State(); s.Copied != "" || s.Credential != "token" {
			t.Errorf("copied %q, certificate by %q", s.Copied, s.Credential)
		}
	})
}

// A token that istiod refuses leaves a copy with the certificate it has.
func TestACloneWithADeadTokenGoesOn(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		l.cfg.Machine = Machine{ID: "a"}
		l.start()
		l.stop()
		l.putToken(-time.Hour)
		l.cfg.Machine = Machine{ID: "b"}
		l.start()
		l.pass(time.Minute)
		l.mustBe(Valid)
		if s := l.m.State(); s.Copied == "" || s.LastError != "" || s.Credential != "certificate" {
			t.Errorf("%q, last error %q, by %q", s.Copied, s.LastError, s.Credential)
		}
	})
}

// What a SPIRE agent gives is this machine's: that agent has attested it.
func TestACopyIsOwnedOnceASPIREAgentGivesItsIdentity(t *testing.T) {
	cfg, a := socketMachine(t)
	a.start()
	ctx, cancel := context.WithCancel(t.Context())
	cfg.Machine = Machine{ID: "a"}
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	within(t, 30*time.Second, m.Ready(), "ready")
	cancel()
	if err := within(t, 30*time.Second, done, "the end"); err != nil {
		t.Fatal(err)
	}
	a.stop()
	cfg.Machine = Machine{ID: "b"}
	m = start(t, cfg)
	until(t, m, "a copy", func(s State) bool { return s.Copied != "" })
	a.start()
	until(t, m, "its own", func(s State) bool { return s.Copied == "" && s.Credential == viaSocket })
}
