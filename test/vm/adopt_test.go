package vm

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestAdopt takes a machine over on which the real pilot-agent serves, and gives it back, while clients ask DNS and send requests.
func TestAdopt(t *testing.T) {
	s := emptyStage(t, "-stock")
	programs := stagePrograms(t)
	s.catalog = s.member(t, "catalog", "10.99.0.3/24", "istioinaction", ":3000", programs)
	s.forum = s.sidecarMachine(t, "forum", "10.99.0.2/24", "forum-services", ":8080", "ISTIO_AGENT_FLAGS=\"--log_output_level=dns:info\"\nDNS_FORWARD_PARALLEL=true\nHAND_MADE=1\n", programs)
	s.forumVIP, s.catalogVIP = s.forum.address(forumHost), s.forum.address(catalogName)
	for _, part := range []struct {
		name string
		do   func(*testing.T, *stage)
	}{
		{"beside", besidePilot},
		{"plan", planOfAdopt},
		{"refused", adoptThatFails},
		{"adopt", adoptUnderLoad},
		{"adopted", whileAdopted},
		{"undo", undoUnderLoad},
		{"old", oldMachine},
		{"late", adoptThatIsLate},
		{"killed", killedAdopts},
		{"cut", cutAdopts},
		{"backends", adoptOverEachBackend},
		{"package", packageOfAnAdopted},
	} {
		t.Run(part.name, func(t *testing.T) {
			s.tell(t)
			part.do(t, s)
		})
	}
}

// mark is the machine as pilot-agent has it.
type mark struct{ pilot, rules, files string }

func (s *stage) mark() mark {
	return mark{s.forum.pilot(), s.forum.rulesByTable(), s.forum.istioFiles()}
}

// mustBe fails the test where the machine is not as it was.
func (s *stage) mustBe(t *testing.T, was mark) {
	t.Helper()
	now := s.mark()
	if now.pilot != was.pilot {
		t.Errorf("pilot-agent is process %s, want %s still", now.pilot, was.pilot)
	}
	if now.rules != was.rules {
		t.Errorf("rules are\n%s\nwant\n%s", now.rules, was.rules)
	}
	if now.files != was.files {
		t.Errorf("files are\n%s\nwant\n%s", now.files, was.files)
	}
	if left := s.forum.Sh("find /var/lib/wingman -mindepth 1 2>/dev/null || true"); left != "" { // systemd makes the folder at each attempt to start
		t.Errorf("state is left:\n%s", left)
	}
	for _, path := range []string{"/var/lib/wingman-adopt", "/run/wingman-trial", "/run/wingman-guard/handover"} {
		if _, err := s.forum.Try("test", "!", "-e", path); err != nil {
			t.Errorf("%s is left", path)
		}
	}
	for unit, want := range map[string]string{"istio.service": "active enabled", "wingman.service": "inactive disabled"} {
		if got := s.forum.show(unit, "ActiveState") + " " + s.forum.show(unit, "UnitFileState"); got != want {
			t.Errorf("%s is %s, want %s", unit, got, want)
		}
	}
}

var counters = regexp.MustCompile(`\[\d+:\d+\]|packets \d+ bytes \d+|^#.*`)

// rulesByTable are the rules of every backend, without counters and comments.
func (m *Machine) rulesByTable() string {
	m.t.Helper()
	out := m.Sh(`for f in nft legacy; do for v in iptables ip6tables; do for t in raw mangle nat filter; do
		[ $f = nft ] || grep -qx $t /proc/net/${v%tables}_tables_names 2>/dev/null || continue
		[ $f = nft ] || $v-$f-save -t $t 2>/dev/null | grep -q ^-A || continue # one that was used stays, empty
		echo "== $v-$f $t"; $v-$f-save -t $t 2>/dev/null; done; done; done; echo == native; nft list tables | grep -E 'istio|wingman' || true; ip rule; ip -6 rule`)
	var b strings.Builder
	for line := range strings.Lines(out) {
		if line = strings.TrimSpace(counters.ReplaceAllString(line, "")); line != "" && !strings.HasPrefix(line, "#") {
			b.WriteString(line + "\n")
		}
	}
	return b.String()
}

// istioFiles are the files of Istio's package and of its administrator, with modes and owners.
func (m *Machine) istioFiles() string {
	m.t.Helper()
	return m.Sh(`cd /; find /etc/istio /var/lib/istio /etc/certs /run/secrets/tokens /lib/systemd/system/istio.service /etc/systemd/system/istio.service /usr/local/bin -printf '%p %M %U:%G %l\n' 2>/dev/null | grep -v '/var/lib/istio/data' | sort
		cat /var/lib/istio/envoy/sidecar.env /var/lib/istio/envoy/cluster.env /etc/istio/config/mesh /run/secrets/tokens/istio-token /etc/certs/root-cert.pem | sha256sum`)
}

// Wingman that is installed beside a running istio-sidecar changes nothing, and does not start.
func besidePilot(t *testing.T, s *stage) {
	was := s.mark()
	s.forum.Try("systemctl", "start", "wingman")
	if state := s.forum.show("wingman.service", "ActiveState"); state != "inactive" {
		t.Errorf("wingman.service is %s beside istio.service, want inactive", state)
	}
	said := false
	for _, e := range s.forum.Journal("wingman") {
		said = said || strings.Contains(e.Message, "run wingman adopt to take its place")
	}
	if !said {
		t.Errorf("the journal does not say why:\n%s", s.forum.lastWords())
	}
	for _, argv := range [][]string{{"wingman", "run"}, {"wingman", "join", "/var/lib/istio/envoy"}} {
		if _, err := s.forum.Try(argv...); err == nil || !strings.Contains(err.Error(), "wingman adopt") {
			t.Errorf("%s beside istio.service: %v, want a refusal that names wingman adopt", argv, err)
		}
	}
	s.forum.await("Envoy's supervisor to be gone", func() bool { return s.forum.show("wingman-proxy.service", "ActiveState") == "inactive" })
	if _, err := s.forum.Try("wingman", "rules", "remove"); err == nil || !strings.Contains(err.Error(), "the rules are its") {
		t.Errorf("wingman rules remove beside istio.service: %v, want a refusal", err)
	}
	s.mustBe(t, was)
}

func planOfAdopt(t *testing.T, s *stage) {
	was := s.mark()
	out := s.forum.Run("wingman", "adopt", "--dry-run")
	for _, want := range []string{"spiffe://cluster.local/ns/forum-services/sa/forum-sa", "in the place of pilot-agent's (backend", "mask and stop istio.service", "DNS_FORWARD_PARALLEL", "HAND_MADE"} {
		if !strings.Contains(out, want) {
			t.Errorf("the plan lacks %q:\n%s", want, out)
		}
	}
	s.mustBe(t, was)
}

// An adopt whose trial fails leaves pilot-agent serving untouched.
func adoptThatFails(t *testing.T, s *stage) {
	m := s.forum
	for _, c := range []struct{ name, break_, mend, want string }{
		{"a dead token and no certificate", "mkdir /root/kept && cp -a /run/secrets/tokens/istio-token /root/kept/ && mv /etc/certs/key.pem /root/kept && echo " + s.plane.token("forum-services", "forum-sa", -time.Hour) + " >/run/secrets/tokens/istio-token",
			"cat /root/kept/istio-token >/run/secrets/tokens/istio-token && mv /root/kept/key.pem /etc/certs && rm -r /root/kept", "no certificate"},
		{"a wrong root", "cp -a /etc/certs/root-cert.pem /root/ && cat /etc/ssl/wrong.pem >/etc/certs/root-cert.pem",
			"cat /root/root-cert.pem >/etc/certs/root-cert.pem && rm /root/root-cert.pem", "certificate"},
		{"a broken Envoy", "mv /usr/local/bin/envoy /root/ && printf '#!/bin/sh\\necho not today >&2\\nexit 1\\n' >/usr/local/bin/envoy && chmod 755 /usr/local/bin/envoy",
			"mv /root/envoy /usr/local/bin/envoy", "not today"},
		{"units that cannot be changed", "mount --bind /etc/systemd/system /etc/systemd/system && mount -o remount,ro,bind /etc/systemd/system", "umount /etc/systemd/system", "ead-only"},
	} {
		t.Run(c.name, func(t *testing.T) {
			was := s.mark()
			m.Write("/etc/ssl/wrong.pem", s.wrongRoot(t), 0o644)
			m.Sh(c.break_)
			_, err := m.Try("wingman", "adopt")
			m.Sh(c.mend)
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "istio.service serves as before") {
				t.Errorf("adopt says %v, want %q in it", err, c.want)
			}
			s.mustBe(t, was)
		})
	}
}

// traffic is what goes on while a machine changes hands.
type traffic struct{ dns, out, in *client }

func (s *stage) traffic(t *testing.T) traffic {
	t.Helper()
	return traffic{
		startClient(t, s.forum, "queries of forum", "dns", stub, catalogName, s.catalogVIP),
		startClient(t, s.forum, "requests of forum to catalog", "http", s.catalogVIP+":80", strings.TrimSuffix(catalogName, ".")),
		startClient(t, s.catalog, "requests of catalog to forum", "http", s.forumVIP+":80", forumHost),
	}
}

// mostInFlight is how many requests may be lost at a change of hands: those in flight.
const mostInFlight = 20

func (l traffic) mustFlow(t *testing.T, event string) {
	t.Helper()
	dns, out, in := l.dns.end(), l.out.end(), l.in.end()
	t.Logf("%s: DNS %s, %d at the second attempt, the slowest %s; requests %s, the slowest %s; of peers %s, the slowest %s", event,
		dns, dns.Again, ms(dns.Slowest), out, ms(out.Slowest), in, ms(in.Slowest))
	table = append(table, [4]string{event, fmt.Sprintf("%s (%d at the second attempt), the slowest %s", dns, dns.Again, ms(dns.Slowest)),
		fmt.Sprintf("%s, the slowest %s; of peers %s, the slowest %s", out, ms(out.Slowest), in, ms(in.Slowest)), "one WorkloadEntry"})
	if len(dns.Failed) > 0 {
		t.Errorf("%s: lost queries: %s", event, dns)
	}
	for what, o := range map[string]outcome{"own": out, "of peers": in} {
		if len(o.Failed) > mostInFlight && !busy(t) { // on a busy computer hundreds are
			t.Errorf("%s: lost requests, %s: %s", event, what, o)
		}
	}
}

func (s *stage) mustBeAdopted(t *testing.T) {
	t.Helper()
	m := s.forum
	if got := m.show("istio.service", "LoadState") + " " + m.show("istio.service", "ActiveState"); got != "masked inactive" && got != "masked failed" {
		t.Errorf("istio.service is %s, want masked inactive", got)
	}
	m.awaitEnvoy()
	if out, err := m.Try("pgrep", "-x", "pilot-agent"); err == nil {
		t.Errorf("pilot-agent runs still: %s", out)
	}
	if out, err := m.Try("nft", "list", "table", "inet", "wingman-adopt"); err == nil {
		t.Errorf("connections are held still:\n%s", out)
	}
	if out := m.Run("wingman", "rules", "status"); !strings.HasPrefix(out, "complete") {
		t.Errorf("rules: %s", out)
	}
}

func adoptUnderLoad(t *testing.T, s *stage) {
	entry, began := s.plane.now(forumEntry), time.Now()
	const places = "find /var/lib/istio /etc/istio /run/secrets -not -path '/var/lib/istio/data*' -printf '%p %M %U:%G %l\\n' | sort"
	files := s.forum.Sh(places)
	l := s.traffic(t)
	out, err := s.forum.Try("wingman", "adopt")
	l.mustFlow(t, "`wingman adopt` of a machine of pilot-agent's")
	t.Log(out)
	if err != nil {
		t.Fatalf("adopt: %v\n%s", err, s.forum.lastWords())
	}
	s.mustBeAdopted(t)
	s.mustKeepEntry(t, entry, began)
	if now := s.forum.Sh(places); now != files {
		t.Errorf("Istio's files are\n%s\nwant\n%s", now, files)
	}
}

// mustKeepEntry fails the test where the WorkloadEntry went or was made anew.
func (s *stage) mustKeepEntry(t *testing.T, was planeState, since time.Time) {
	t.Helper()
	for _, state := range s.plane.states(forumEntry, since) {
		if state.Gone || state.UID != was.UID {
			t.Errorf("the WorkloadEntry was %+v at first, then %+v", was, state)
		}
	}
	s.await(t, s.forum, forumEntry, "connected", time.Minute, func(p planeState) bool { return !p.Gone && p.Connected && p.UID == was.UID })
}

// Another adopt has nothing to do, and istio-sidecar's own package cannot start its unit.
func whileAdopted(t *testing.T, s *stage) {
	if out := s.forum.Run("wingman", "adopt"); !strings.Contains(out, "there is nothing to do") {
		t.Errorf("a second adopt says %s", out)
	}
	if _, err := s.forum.Try("wingman", "leave"); err == nil || !strings.Contains(err.Error(), "wingman adopt --undo") {
		t.Errorf("leave: %v, want a refusal that names wingman adopt --undo", err)
	}
	if out := s.forum.Run("wingman", "status"); !strings.Contains(out, "adopted    since") {
		t.Errorf("status does not tell of the adopt:\n%s", out)
	}
	rules := s.forum.rulesByTable()
	for _, argv := range [][]string{{"systemctl", "start", "istio.service"}, {"systemctl", "restart", "istio.service"}, {"deb-systemd-invoke", "start", "istio.service"}} {
		s.forum.Try(argv...)
		if state := s.forum.show("istio.service", "ActiveState"); state == "active" || state == "activating" {
			t.Errorf("after %q istio.service is %s", argv, state)
		}
	}
	s.forum.Sh(layOut) // as an upgrade of the package does
	if now := s.forum.rulesByTable(); now != rules {
		t.Errorf("rules changed:\n%s\nwant\n%s", now, rules)
	}
	s.mustBeAdopted(t)
}

func undoUnderLoad(t *testing.T, s *stage) {
	entry, began := s.plane.now(forumEntry), time.Now()
	l := s.traffic(t)
	out, err := s.forum.Try("wingman", "adopt", "--undo")
	l.mustFlow(t, "`wingman adopt --undo`")
	t.Log(out)
	if err != nil {
		t.Fatalf("undo: %v\n%s", err, s.forum.lastWords())
	}
	s.mustBePilots(t)
	s.mustKeepEntry(t, entry, began)
	// What is tried beside istio.service now leaves its rules alone.
	was := s.mark()
	s.forum.Try("systemctl", "start", "wingman")
	s.forum.await("Envoy's supervisor to be gone", func() bool { return s.forum.show("wingman-proxy.service", "ActiveState") == "inactive" })
	s.mustBe(t, was)
	if out := s.forum.Run("wingman", "adopt", "--undo"); !strings.Contains(out, "nothing to undo") {
		t.Errorf("a second undo says %s", out)
	}
}

// mustBePilots fails the test where the machine is not pilot-agent's alone.
func (s *stage) mustBePilots(t *testing.T) {
	t.Helper()
	s.forum.awaitPilot()
	now := s.mark()
	if strings.Contains(strings.ToLower(now.rules), "wingman") || !strings.Contains(now.rules, "ISTIO_OUTPUT") {
		t.Errorf("rules are\n%s\nwant pilot-agent's alone", now.rules)
	}
	if strings.Contains(now.files, "/dev/null") || strings.Contains(now.files, "wingman") {
		t.Errorf("files are\n%s\nwant Istio's alone", now.files)
	}
	s.mustBe(t, now)
}

// A machine whose token is long dead lives on by its certificate: it is taken over by pilot-agent's, and goes back with the agent's, as pilot-agent's has expired
// by then. An undo after which pilot-agent does not serve leaves the agent serving.
func oldMachine(t *testing.T, s *stage) {
	m := s.forum
	const token = "/run/secrets/tokens/istio-token"
	alive := m.Run("cat", token)
	m.Sh("echo " + s.plane.token("forum-services", "forum-sa", -time.Hour) + " >" + token)
	if out, err := m.Try("wingman", "adopt"); err != nil {
		t.Fatalf("adopt with a dead token: %v\n%s\n%s", err, out, m.lastWords())
	}
	s.mustBeAdopted(t)

	m.CopyIn(Build(t, "wingman/test/vm/testdata/adopt"), "/usr/bin/adopt-until", 0o755)
	m.Sh("mv /usr/local/bin/pilot-agent /root/ && printf '#!/bin/sh\\nexit 1\\n' >/usr/local/bin/pilot-agent && chmod 755 /usr/local/bin/pilot-agent")
	_, err := m.Try("adopt-until", "impatient")
	m.Sh("mv /root/pilot-agent /usr/local/bin/pilot-agent")
	if err == nil || !strings.Contains(err.Error(), "wingman serves as before") {
		t.Errorf("undo without a pilot-agent that works: %v, want that wingman serves as before", err)
	}
	s.mustBeAdopted(t)

	key, chain := s.expiredPair(t)
	for name, content := range map[string]string{"key.pem": key, "cert-chain.pem": chain} {
		m.Sh("[ -f /etc/certs/" + name + ".before-wingman ]")
		m.Write("/etc/certs/"+name+".before-wingman", content, 0o600)
		m.Run("chown", "istio-proxy:", "/etc/certs/"+name+".before-wingman")
	}
	if out, err := m.Try("wingman", "adopt", "--undo"); err != nil {
		t.Fatalf("undo: %v\n%s\n%s", err, out, m.lastWords())
	}
	s.mustBePilots(t)
	m.Sh("cat >" + token + " <<'E'\n" + alive + "\nE")
}

// An agent that does not serve in time: everything goes back by itself.
func adoptThatIsLate(t *testing.T, s *stage) {
	entry, began := s.plane.now(forumEntry), time.Now()
	_, err := s.forum.Try("wingman", "adopt", "--timeout", "1ms")
	if err == nil || !strings.Contains(err.Error(), "istio.service serves as before") {
		t.Fatalf("adopt says %v, want that istio.service serves as before", err)
	}
	s.mustBePilots(t)
	s.mustKeepEntry(t, entry, began)
}

// An adopt that is killed at any step is finished by the next, or undone.
func killedAdopts(t *testing.T, s *stage) {
	for _, step := range []string{"trial", "rules", "stop", "start", "undo"} {
		t.Run(step+", then undo", func(t *testing.T) {
			s.kill(t, step)
			if out, err := s.forum.Try("wingman", "adopt", "--undo"); err != nil {
				t.Fatalf("undo: %v\n%s", err, out)
			}
			s.mustBePilots(t)
		})
	}
	for _, step := range []string{"rules", "start"} {
		t.Run(step+", then adopt", func(t *testing.T) {
			s.kill(t, step)
			if out, err := s.forum.Try("wingman", "adopt"); err != nil {
				t.Fatalf("adopt: %v\n%s\n%s", err, out, s.forum.lastWords())
			}
			s.mustBeAdopted(t)
			s.forum.Run("wingman", "adopt", "--undo")
			s.mustBePilots(t)
		})
	}
}

// Rules that pilot-agent made by another backend are replaced and come back too.
func adoptOverEachBackend(t *testing.T, s *stage) {
	env := s.forum.Read("/var/lib/istio/envoy/sidecar.env")
	for _, c := range []struct{ name, env, theirs string }{
		{"iptables-nft", "FORCE_IPTABLES_BINARY=nft\n", "iptables-nft-save -t nat | grep -- '-j ISTIO_OUTPUT$'"},
		{"native nftables", "NATIVE_NFTABLES=true\n", "nft list table inet istio-proxy-nat"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s.forum.Write("/var/lib/istio/envoy/sidecar.env", env+c.env, 0o644)
			s.forum.Run("systemctl", "restart", "istio.service")
			s.forum.awaitPilot()
			s.forum.Sh(c.theirs)
			s.forum.Run("wingman", "adopt")
			s.mustBeAdopted(t)
			if tables := s.forum.Run("nft", "list", "tables"); strings.Contains(tables, "istio-proxy") {
				t.Errorf("pilot-agent's tables are left: %s", tables)
			}
			s.forum.Run("wingman", "adopt", "--undo")
			s.forum.Sh(c.theirs)
			if out := s.forum.rulesByTable(); strings.Contains(out, "WINGMAN") || strings.Contains(out, "table inet wingman") {
				t.Errorf("ours are left:\n%s", out)
			}
		})
	}
}

// kill has an adopt, or an undo, killed once a step is on disk.
func (s *stage) kill(t *testing.T, step string) {
	t.Helper()
	if _, err := s.forum.Try("adopt-until", step); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatalf("adopt until %s: %v, want it killed", step, err)
	}
	if !strings.Contains(s.forum.Run("cat", "/var/lib/wingman-adopt/record.json"), `"step":"`+step+`"`) {
		t.Fatalf("the record is not of step %s", step)
	}
}

// wrongRoot is a root certificate of nobody's.
func (s *stage) wrongRoot(t *testing.T) string {
	_, cert := selfSigned(t, time.Now().Add(time.Hour))
	return cert
}

// expiredPair is a key and a certificate that nobody takes any more.
func (s *stage) expiredPair(t *testing.T) (key, chain string) {
	return selfSigned(t, time.Now().Add(-time.Minute))
}

func selfSigned(t *testing.T, until time.Time) (key, cert string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: until, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, c, c, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}
