package identity

import (
	"crypto/x509"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// bundle is what applications find in the output folder, by the names of the roots.
func (l *lab) bundle() string {
	l.t.Helper()
	data, err := os.ReadFile(filepath.Join(l.vm.output, rootFile))
	if err != nil {
		l.t.Fatal(err)
	}
	certs, err := parseRoots(data)
	if err != nil {
		l.t.Fatalf("root-cert.pem: %v", err)
	}
	return organizations(certs)
}

func organizations(certs []*x509.Certificate) string {
	var names []string
	for _, c := range certs {
		names = append(names, c.Subject.Organization[0])
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

// trusted is what the manager trusts, by the names of the roots.
func (l *lab) trusted() string { return organizations(l.m.live.Load().roots.certs()) }

// mustTrust holds the trust in memory, the certificate's bundle and the output folder against want.
func (l *lab) mustTrust(want string) {
	l.t.Helper()
	certs, err := parseRoots(l.m.Current().RootsPEM())
	if err != nil {
		l.t.Fatal(err)
	}
	if a, b, c := l.trusted(), organizations(certs), l.bundle(); a != want || b != want || c != want {
		l.t.Fatalf("trusted %q, beside the certificate %q, in the output folder %q; want %q", a, b, c, want)
	}
}

// isLink reports whether the root file is our link.
func (l *lab) isLink() bool {
	to, err := os.Readlink(l.vm.rootCert)
	return err == nil && !filepath.IsAbs(to) && strings.HasPrefix(filepath.Join(filepath.Dir(l.vm.rootCert), to), l.vm.state)
}

func TestARootThatAnOperatorDropsIsTakenIn(t *testing.T) {
	ways := []struct {
		name string
		drop func(t *testing.T, path, content string)
	}{
		{"as a new file", func(t *testing.T, path, content string) { putFile(t, path, content) }},
		{"by cp, through our link", func(t *testing.T, path, content string) {
			if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
		}},
	}
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			inLab(t, func(t *testing.T, l *lab) {
				l.start()
				l.mustTrust("cluster.local")
				if kept, _ := os.ReadFile(l.vm.rootCert + keptSuffix); string(kept) != l.ca.root.pem() || !l.isLink() {
					t.Fatalf("the operator's file is not kept, or the link is not in place: %q", kept)
				}
				l.told()
				next := newAuthority(t, "next", time.Now(), 1000*time.Hour, nil)
				way.drop(t, l.vm.rootCert, next.pem())
				l.poke()
				// What the CA said of its own root still holds.
				l.mustTrust("cluster.local next")
				if told := l.told(); len(told) != 1 || told[0] != l.m.Current() {
					t.Errorf("told of %v", told)
				}
				if kept, _ := os.ReadFile(l.vm.rootCert + keptSuffix); string(kept) != next.pem() || !l.isLink() {
					t.Errorf("the operator's new file is not kept, or the link is not in place: %q", kept)
				}
				if l.onDisk() != l.m.Current().Serial {
					t.Error("the pair changed")
				}
				// After a restart it is all the same, and nothing is written again.
				l.stop()
				before, _ := os.Readlink(filepath.Join(l.vm.state, storeName, currentLink))
				l.start()
				l.mustTrust("cluster.local next")
				if after, _ := os.Readlink(filepath.Join(l.vm.state, storeName, currentLink)); after != before {
					t.Errorf("a restart wrote a generation: %s, then %s", before, after)
				}
			})
		})
	}
}

func TestARootFileThatCannotBeUsedChangesNothing(t *testing.T) {
	expired := func(t *testing.T) string {
		return newAuthority(t, "old", time.Now().Add(-100*time.Hour), time.Hour, nil).pem()
	}
	tests := []struct {
		name    string
		content func(t *testing.T) string
		through bool // written through our link
		want    string
	}{
		{"garbage", func(*testing.T) string { return "garbage" }, false, "it holds no PEM block, expected certificates"},
		{"garbage, through our link", func(*testing.T) string { return "garbage" }, true, "it holds no PEM block, expected certificates"},
		{"an empty file", func(*testing.T) string { return "" }, true, "it is empty, expected PEM certificates"},
		{"an expired root", expired, false, "every root certificate in it has expired, the last one 4 d 3 h ago"},
		{"a leaf certificate", func(t *testing.T) string { return string(testCertificate(t, time.Now(), time.Hour).ChainPEM()) }, true, "is not a CA's"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inLab(t, func(t *testing.T, l *lab) {
				l.start()
				l.told()
				content := tt.content(t)
				if tt.through {
					if err := os.WriteFile(l.vm.rootCert, []byte(content), 0o600); err != nil {
						t.Fatal(err)
					}
				} else {
					putFile(t, l.vm.rootCert, content)
				}
				l.poke()
				if s := l.m.State(); !strings.Contains(s.RootProblem, tt.want) || l.trusted() != "cluster.local" {
					t.Errorf("problem %q, trusted %q; want %q and what was trusted before", s.RootProblem, l.trusted(), tt.want)
				}
				if n := l.log.count("root file cannot be used"); n != 0 {
					t.Error("a file that may not be complete is called bad at once")
				}
				l.pass(time.Minute)
				if n := l.log.count("root file cannot be used", tt.want); n != 1 {
					t.Errorf("said %d times in a minute, want once:\n%s", n, l.log)
				}
				if tt.through { // applications read it: it is ours again
					l.mustTrust("cluster.local")
				} else if got, _ := os.ReadFile(l.vm.rootCert); string(got) != content {
					t.Errorf("the operator's file is gone: %q", got)
				}
				if told := l.told(); len(told) != 0 {
					t.Errorf("told of %v", told)
				}
				// Put right, it counts.
				next := newAuthority(t, "next", time.Now(), 1000*time.Hour, nil)
				putFile(t, l.vm.rootCert, next.pem())
				l.poke()
				l.mustTrust("cluster.local next")
				if s := l.m.State(); s.RootProblem != "" {
					t.Errorf("problem %q after it was put right", s.RootProblem)
				}
			})
		})
	}
}

func TestARootFileThatComesLateIsUsedAtOnce(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		os.Remove(l.vm.rootCert)
		l.start()
		l.pass(time.Minute)
		if s := l.m.State(); !strings.Contains(s.LastError, "no root certificate to check istiod's certificate with") || !strings.Contains(s.RootProblem, "no such file") {
			t.Errorf("error %q, root %q", s.LastError, s.RootProblem)
		}
		putFile(t, l.vm.rootCert, l.ca.root.pem())
		l.poke()
		l.pass(wakePause)
		l.mustBe(Valid)
	})
}

func TestARootFileThatVanishesOrAStoreThatIsWipedLosesNothing(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		l.start()
		os.Remove(l.vm.rootCert)
		l.poke()
		if s := l.m.State(); l.trusted() != "cluster.local" || !strings.Contains(s.RootProblem, "no such file") {
			t.Errorf("trusted %q, problem %q", l.trusted(), s.RootProblem)
		}
		l.pass(settleTime)
		l.mustTrust("cluster.local") // our link is back
		os.Remove(l.vm.rootCert)
		l.stop()
		l.start()
		l.mustTrust("cluster.local")
		l.stop()
		// rm -rf /var/lib/wingman: the operator's root was moved aside, not into the store.
		if err := os.RemoveAll(l.vm.state); err != nil {
			t.Fatal(err)
		}
		first := l.m.Current().Serial
		l.start()
		l.mustBe(Valid)
		l.mustTrust("cluster.local")
		if l.m.Current().Serial == first || l.onDisk() != l.m.Current().Serial {
			t.Errorf("in use %s, on disk %s, before the wipe %s", l.m.Current().Serial, l.onDisk(), first)
		}
	})
}

// The root that is kept is not the mesh's any more, and the state is lost: what the machine asks for can be done as it is said, though its own link is in the way.
func TestARootCanBePutWhereOurLinkLedNowhere(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		l.start()
		l.mustBe(Valid)
		l.stop()
		if err := os.RemoveAll(l.vm.state); err != nil {
			t.Fatal(err)
		}
		l.ca.rotate(newAuthority(t, "other root", time.Now(), 10*365*24*time.Hour, nil))
		l.start()
		l.pass(time.Minute)
		l.mustBe(None)
		if s := l.m.State(); !strings.Contains(s.LastError, "at "+l.vm.rootCert) {
			t.Errorf("said %q, want where to put the root", s.LastError)
		}
		if err := os.WriteFile(l.vm.rootCert, encodeCertificates([]*x509.Certificate{l.ca.root.cert}), 0o644); err != nil { // as cp and cat do
			t.Fatal(err)
		}
		l.poke()
		l.pass(time.Minute)
		l.mustBe(Valid)
		if l.onDisk() != l.m.Current().Serial || !OutputLink(l.vm.rootCert) {
			t.Errorf("on disk %s, in use %s", l.onDisk(), l.m.Current().Serial)
		}
	})
}

func TestIstiodsRootIsRotatedWithoutARestart(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		l.start()
		config := l.m.ClientTLS() // made once, used for ever
		old, next := l.ca.root, newAuthority(t, "next", time.Now(), 10000*time.Hour, nil)
		dial := func() error {
			l.ca.mu.Lock()
			leaf, err := x509.ParseCertificate(l.ca.server.Certificate[0])
			l.ca.mu.Unlock()
			if err != nil {
				t.Fatal(err)
			}
			return verifyPeer(config, leaf)
		}
		// The CA announces the next root beside its own, as istiod does while cacerts are exchanged.
		l.ca.with(func() {
			l.ca.answer = func(_ *x509.CertificateRequest, good []string) ([]string, error) {
				return []string{good[0], good[1] + next.pem()}, nil
			}
		})
		l.pass(12*time.Hour + time.Minute)
		l.mustTrust("cluster.local next")
		if err := dial(); err != nil {
			t.Errorf("istiod by its old root: %v", err)
		}
		// Then it signs by the next one only.
		l.ca.with(func() { l.ca.answer = nil })
		l.ca.rotate(next)
		if err := dial(); err != nil {
			t.Errorf("istiod by its new root: %v", err)
		}
		putFile(t, l.vm.token, token(time.Now().Add(100*time.Hour), nil)) // the CA no longer takes certificates of the old root
		l.poke()
		l.pass(12*time.Hour + time.Minute)
		if leaf := l.m.Current().TLS().Leaf; leaf.CheckSignatureFrom(next.cert) != nil {
			t.Fatalf("the certificate is still by %s; last error %q", leaf.Issuer, l.m.State().LastError)
		}
		// The operator's file still names the old root. Without it, the old one goes when no peer can live by it any more.
		l.mustTrust("cluster.local next")
		putFile(t, l.vm.rootCert, next.pem())
		l.poke()
		l.mustTrust("cluster.local next")
		if roots := l.m.State().Roots; !slices.ContainsFunc(roots, func(r RootState) bool {
			return r.Serial == rootStates(anchors{{cert: old.cert}})[0].Serial && r.Source == fromCA && !r.Until.IsZero()
		}) {
			t.Errorf("the old root is not to be retired: %+v", roots)
		}
		l.pass(25 * time.Hour)
		l.mustTrust("next")
	})
}

func TestAHardSwitchOfIstiodsRootIsMendedByTheRootFile(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		l.start()
		next := newAuthority(t, "cluster.local", time.Now(), 10000*time.Hour, nil)
		l.ca.rotate(next)
		putFile(t, l.vm.token, token(time.Now().Add(100*time.Hour), nil))
		l.poke()
		l.pass(13 * time.Hour)
		l.mustBe(Renewing)
		if s := l.m.State(); !strings.Contains(s.LastError, "root-cert.pem does not match istiod's certificate: that is issued by \"O=cluster.local\"") {
			t.Errorf("last error %q", s.LastError)
		}
		putFile(t, l.vm.rootCert, next.pem())
		l.poke()
		l.pass(wakePause)
		l.mustBe(Valid)
		if s := l.m.State(); s.Credential != "token" || s.LastError != "" {
			t.Errorf("by %q, last error %q", s.Credential, s.LastError)
		}
	})
}

func TestAClockThatJumpsFarForwardForgetsNoRoot(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		l.start()
		putFile(t, l.vm.rootCert, newAuthority(t, "for a year", time.Now(), 365*24*time.Hour, nil).pem())
		l.poke()
		l.mustTrust("cluster.local for a year")
		l.ahead.Store(int64(2 * 365 * 24 * time.Hour))
		l.pass(longestSleep + time.Second)
		l.mustBe(Expired)
		l.mustTrust("cluster.local")
		l.stop()
		l.start()
		l.mustTrust("cluster.local")
		l.ahead.Store(0)
		l.pass(longestSleep + time.Second)
		l.mustBe(Valid)
		l.mustTrust("cluster.local for a year")
	})
}
