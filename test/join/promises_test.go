package join

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"google.golang.org/grpc/codes"

	"wingman/agent"
	"wingman/agent/status"
	"wingman/agent/xds/nds"
	"wingman/test/controlplane"
	"wingman/test/files"
)

func TestAMachineJoins(t *testing.T) {
	for _, delta := range []bool{true, false} {
		t.Run(fmt.Sprintf("delta=%v", delta), func(t *testing.T) {
			m := newMachine(t, newIstiod(t, controlplane.Config{Grace: 100 * time.Millisecond}), fmt.Sprintf("xds: {delta: %v}", delta))
			m.start()
			r := m.until("joined", joined)
			if r.Identity.SPIFFEID != files.SPIFFEID {
				t.Errorf("identity %s, want %s", r.Identity.SPIFFEID, files.SPIFFEID)
			}
			m.mustResolve("webapp.istioinaction", "10.96.97.98")
			m.mustResolve("www.example.com", "192.0.2.80")

			// There is no Envoy here: the mesh must not send TLS to this machine.
			e := m.entry("unhealthy (no workload listens on 8080)", func(e controlplane.Entry) bool { return e.Condition != nil && e.Condition.Status == "False" })
			if e.Labels["security.istio.io/tlsMode"] != "disabled" || e.Namespace != "forum-services" || !strings.HasPrefix(e.Name, "forum-") || !e.HealthChecked {
				t.Errorf("entry %+v, want forum-… in forum-services, health checked, with tlsMode disabled", e)
			}

			// A push reaches DNS without a restart.
			m.istiod.AddService("istioinaction", "catalog", "10.96.1.2")
			m.until("told of the new service", func(r status.Report) bool { return r.DNS.Names == 2 })
			m.mustResolve("catalog.istioinaction.svc.cluster.local", "10.96.1.2")

			if err := m.stop(); err != nil {
				t.Errorf("Run = %v after a stop, want nil", err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			if err := m.istiod.WaitNoEntry(ctx, e.Namespace, e.Name); err != nil {
				t.Errorf("the entry stays after a stop: %v", err)
			}
		})
	}
}

// Promise 1: DNS always answers.
func TestDNSAnswersWhateverTheControlPlaneDoes(t *testing.T) {
	for _, tc := range []struct {
		name  string
		fault func(m *machine)
	}{
		{"istiod refuses connections", func(m *machine) { m.istiod.Stop() }},
		{"istiod accepts and says nothing", func(m *machine) { m.istiod.Faults().Hang(true) }},
		{"istiod has another root", func(m *machine) {
			if err := m.istiod.Faults().RotateRoot(false); err != nil {
				m.t.Fatal(err)
			}
		}},
		{"the token is missing", func(m *machine) { m.remove(files.Token) }},
		{"the token is expired", func(m *machine) { m.token(controlplane.TokenOptions{TTL: -time.Hour}) }},
		{"the CA refuses", func(m *machine) {
			m.istiod.Faults().SetCA(controlplane.CAFault{Reply: controlplane.CAError, Code: codes.Unavailable})
		}},
		{"streams are refused", func(m *machine) { m.istiod.Faults().RefuseStreams(codes.Unavailable, "not ready") }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := newMachine(t, newIstiod(t, controlplane.Config{}))
			tc.fault(m)
			m.start()
			// A machine that never joined: public names resolve, mesh names are what the upstream says.
			m.mustResolve("www.example.com", "192.0.2.80")
			in, err := m.ask("webapp.istioinaction.svc.cluster.local", dns.TypeA)
			if err != nil || in.Rcode != dns.RcodeNameError {
				t.Errorf("a mesh name before the first table = %v, %v; want the upstream's NXDOMAIN", in, err)
			}
			m.until("said to be joining", func(r status.Report) bool { return r.Phase == "joining" && !r.Ready })
		})
	}
}

// Promise 1: from the first moment after a start, mesh names come from the last table on disk.
func TestDNSAnswersFromDiskBeforeIstiodIsThere(t *testing.T) {
	m := newMachine(t, newIstiod(t, controlplane.Config{}))
	m.start()
	m.until("joined", joined)
	m.until("saved", func(status.Report) bool { _, err := os.Stat(m.path("var/lib/wingman/nametable")); return err == nil })
	if err := m.stop(); err != nil {
		t.Fatal(err)
	}
	m.istiod.Stop()
	m.remove(files.Token)
	m.start()
	m.mustResolve("webapp.istioinaction", "10.96.97.98")
	m.mustResolve("www.example.com", "192.0.2.80")
	// A certificate on disk and the last configuration are enough to be ready.
	m.until("joined and ready without istiod", func(r status.Report) bool { return joined(r) && r.DNS.Source == "disk" })
}

// Promise 5: identity outlives its token.
func TestIdentityOutlivesItsToken(t *testing.T) {
	m := newMachine(t, newIstiod(t, controlplane.Config{}), "identity: {ttl: 5s}")
	m.start()
	first := m.until("joined", joined).Identity.Serial
	m.token(controlplane.TokenOptions{TTL: -time.Hour})
	m.until("renewed by certificate with an expired token", func(r status.Report) bool {
		return r.Identity.Serial != first && r.Identity.Credential == "certificate"
	})
	m.remove(files.Token)
	second, _ := m.status()
	m.until("renewed by certificate without a token", func(r status.Report) bool { return r.Identity.Serial != second.Identity.Serial })
	// A reboot: /var/run is gone, the state folder is not.
	if err := m.stop(); err != nil {
		t.Fatal(err)
	}
	m.remove("run")
	m.start()
	m.until("joined again without a token", func(r status.Report) bool { return joined(r) && r.XDS != nil && r.XDS.Answered })
	pairOnDisk(t, m)
}

// Promise 5: a store that was damaged or wiped costs a new certificate, not the membership.
func TestADamagedStoreIsLeftBehind(t *testing.T) {
	for name, damage := range map[string]func(m *machine){
		"the only key is cut off": func(m *machine) { m.write("var/lib/wingman/identity/current/key.pem", "-----BEGIN RSA") },
		"the chain is another's": func(m *machine) {
			m.write("var/lib/wingman/identity/current/cert-chain.pem", string(m.istiod.RootPEM()))
		},
		"the state folder is wiped": func(m *machine) { m.remove("var/lib/wingman") },
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t, newIstiod(t, controlplane.Config{}))
			m.start()
			first := m.until("joined", joined).Identity.Serial
			m.until("whole: the root, too, is a link into the store", func(status.Report) bool {
				_, err := os.Readlink(m.path(files.RootCert))
				return err == nil
			})
			if err := m.stop(); err != nil {
				t.Fatal(err)
			}
			damage(m)
			m.token(controlplane.TokenOptions{})
			m.start()
			m.until("joined again with another certificate", func(r status.Report) bool {
				return joined(r) && r.Identity.Serial != "" && r.Identity.Serial != first && r.XDS != nil && r.XDS.Answered
			})
			pairOnDisk(t, m)
		})
	}
}

// pairOnDisk checks that what applications read belongs together.
func pairOnDisk(t *testing.T, m *machine) {
	t.Helper()
	if _, err := tls.LoadX509KeyPair(m.path("etc/certs/cert-chain.pem"), m.path("etc/certs/key.pem")); err != nil {
		t.Errorf("key and chain in /etc/certs: %v", err)
	}
	if b, err := os.ReadFile(m.path("etc/certs/root-cert.pem")); err != nil || !x509.NewCertPool().AppendCertsFromPEM(b) {
		t.Errorf("root in /etc/certs: %d bytes, %v; want PEM", len(b), err)
	}
}

// Promise 7: bad input is refused with a sentence, and the last good state keeps working.
func TestTableOfNothingUsableIsRefusedAndTheLastOneServes(t *testing.T) {
	m := newMachine(t, newIstiod(t, controlplane.Config{}))
	m.start()
	m.until("joined", joined)
	for name, table := range map[string]func(){
		"bad address":   func() { m.istiod.SetNames(controlplane.BadAddressTable()) },
		"300-byte name": func() { m.istiod.SetNames(controlplane.LongNameTable()) },
	} {
		n := len(m.istiod.Events())
		table()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		e, err := m.istiod.WaitEventAfter(ctx, n, func(e controlplane.Event) bool { return e.Kind == controlplane.Nacked })
		cancel()
		if err != nil || e.Detail == "" {
			t.Fatalf("%s: NACK %+v, %v; want one with a reason", name, e, err)
		}
		m.mustResolve("webapp.istioinaction", "10.96.97.98")
		m.until("degraded with the reason", func(r status.Report) bool { return strings.Contains(strings.Join(r.Degraded, " "), "refused") })
	}
}

// Promise 7 for what Istio lets through: a name that DNS cannot carry costs nothing but itself, on a machine that joins as on one that has joined.
func TestNamesThatCannotBeUsedLeaveTheOthersServing(t *testing.T) {
	istiod := newIstiod(t, controlplane.Config{})
	pod := strings.Repeat("x", 64) + ".jobs.batch.svc.cluster.local"
	names := func(webapp string) *nds.NameTable {
		return controlplane.Names(map[string][]string{"webapp.istioinaction.svc.cluster.local": {webapp}, pod: {"10.0.0.3"}, "half.example.com": {"10.0.0.0/8", "10.0.0.4"}})
	}
	istiod.SetNames(names("10.96.97.98"))
	m := newMachine(t, istiod)
	m.start()
	m.until("joined", joined)
	for _, addr := range []string{"10.96.97.98", "10.96.97.99"} {
		n := len(istiod.Events())
		istiod.SetNames(names(addr))
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		e, err := istiod.WaitEventAfter(ctx, n, func(e controlplane.Event) bool {
			return e.TypeURL == controlplane.NameTableType && (e.Kind == controlplane.Acked || e.Kind == controlplane.Nacked)
		})
		cancel()
		if err != nil || e.Kind != controlplane.Acked {
			t.Fatalf("answer to the push %+v, %v; want an ACK", e, err)
		}
		m.mustResolve("webapp.istioinaction", addr)
		m.mustResolve("half.example.com", "10.0.0.4")
		m.until("degraded with both names", func(r status.Report) bool {
			all := strings.Join(r.Degraded, " ")
			return strings.Contains(all, "label of 64 octets") && strings.Contains(all, `"10.0.0.0/8" is no address`) && r.DNS.LeftOut == 2 && r.DNS.Names == 2
		})
	}
	answer, err := agent.Client(m.root).Query(t.Context(), "10.96.97.99", "PTR", true)
	if err != nil || len(answer.Answers) != 1 || !strings.HasSuffix(answer.Answers[0], " webapp.istioinaction.svc.cluster.local.") || !strings.Contains(fmt.Sprint(answer.Explain), "address") {
		t.Errorf("PTR of an address: %+v, %v; want the service and the rule", answer, err)
	}
	table, err := agent.Client(m.root).Table(t.Context(), "")
	var left []string
	for _, n := range table {
		left = append(left, fmt.Sprint(n.Host[:4], len(n.Addresses), n.LeftOut != ""))
	}
	if want := []string{"half1 true", "weba1 false", "xxxx0 true"}; err != nil || !slices.Equal(left, want) {
		t.Errorf("table %q, %v; want %q", left, err, want)
	}
	m.until("saved", func(status.Report) bool { _, err := os.Stat(m.path("var/lib/wingman/nametable")); return err == nil })
	if err := m.stop(); err != nil {
		t.Fatal(err)
	}
	istiod.Close()
	m.start() // from the disk alone
	m.mustResolve("webapp.istioinaction", "10.96.97.99")
	m.until("degraded with both names", func(r status.Report) bool { return r.DNS.Source == "disk" && r.DNS.LeftOut == 2 })
}

// Promise 7 for settings: a machine that joined goes on with the last good ones, one that never did says what is wrong.
func TestUnusableFilesDoNotTakeAJoinedMachineDown(t *testing.T) {
	istiod := newIstiod(t, controlplane.Config{})
	m := newMachine(t, istiod)
	m.start()
	m.until("joined", joined)
	if err := m.stop(); err != nil {
		t.Fatal(err)
	}
	m.write(files.ClusterEnv, "ISTIO_NAMESPACE='forum-services\n")
	m.start()
	m.mustResolve("webapp.istioinaction", "10.96.97.98")
	r := m.until("joined with the last good settings", func(r status.Report) bool { return joined(r) && r.Config.Source == "last good" })
	if all := strings.Join(r.Config.Problems, "\n"); !strings.Contains(all, "cluster.env:1") {
		t.Errorf("problems %q, want file and line", all)
	}
	if len(r.Degraded) == 0 {
		t.Error("not degraded although the files cannot be used")
	}

	fresh := newMachine(t, istiod)
	fresh.write(files.ClusterEnv, "ISTIO_NAMESPACE='forum-services\n")
	fresh.start()
	if err := fresh.ended(); err == nil || !strings.Contains(err.Error(), "cluster.env:1") {
		t.Errorf("Run = %v on a machine that never joined, want file and line", err)
	}
}

func TestTheSecondDaemonOfARootSaysSo(t *testing.T) {
	m := newMachine(t, newIstiod(t, controlplane.Config{}))
	m.start()
	m.until("joined", joined)
	second := *m
	second.done = nil
	second.start()
	if err := second.ended(); err == nil || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Errorf("second Run = %v, want an error that names process %d", err, os.Getpid())
	}
	m.mustResolve("webapp.istioinaction", "10.96.97.98")
}

func TestReadinessAndMetrics(t *testing.T) {
	m := newMachine(t, newIstiod(t, controlplane.Config{}))
	m.istiod.Stop()
	m.start()
	m.until("up", func(status.Report) bool { return true })
	get := func(path string) (int, string) {
		deadline := time.Now().Add(patience)
		for {
			resp, err := http.Get("http://" + m.statusAt + path)
			if err == nil {
				defer resp.Body.Close()
				b, _ := io.ReadAll(resp.Body)
				return resp.StatusCode, string(b)
			}
			if time.Now().After(deadline) {
				t.Fatalf("GET %s: %v", path, err)
			}
			tick()
		}
	}
	if code, body := get("/healthz/ready"); code != 503 || !strings.Contains(body, "no certificate yet") {
		t.Errorf("/healthz/ready before the join = %d %q, want 503 with the reason", code, body)
	}
	if err := m.istiod.Start(); err != nil {
		t.Fatal(err)
	}
	m.until("joined", joined)
	if code, body := get("/healthz/ready"); code != 200 {
		t.Errorf("/healthz/ready after the join = %d %q, want 200", code, body)
	}
	_, metrics := get("/metrics")
	for _, name := range []string{"wingman_build_info", "wingman_xds_connected 1", "wingman_capture_level 0", "go_goroutines"} {
		if !strings.Contains(metrics, name) {
			t.Errorf("/metrics lacks %q", name)
		}
	}
}

// The admin socket is for root, the daemon's user and its group.
func TestAdminSocketMode(t *testing.T) {
	m := newMachine(t, newIstiod(t, controlplane.Config{}))
	m.start()
	m.until("up", func(status.Report) bool { return true })
	st, err := os.Stat(m.path("run/wingman/admin.sock"))
	if err != nil || st.Mode().Perm() != 0o660 || st.Mode().Type() != fs.ModeSocket {
		t.Errorf("admin socket %v, %v; want a socket of mode 0660", st, err)
	}
	if err := m.stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(m.path("run/wingman/admin.sock")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the admin socket stays after a stop: %v", err)
	}
}
