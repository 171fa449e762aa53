package testbed

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"wingman/test/mesh/kube"
	"wingman/test/mesh/machine"
	"wingman/test/mesh/proc"
)

// Spec describes a machine.
type Spec struct {
	Host, Addr       string // host name, address/bits
	Namespace, Group string // of its WorkloadGroup
	Network          string // of its WorkloadGroup; empty: vm-network
	Sidecar          string // content of sidecar.env, the operator's own settings
	Istiod           string // address that istiod is reached at; empty: the test's side of the cable
	Envoy            bool   // Envoy and pilot-agent are installed, where Istio's package has them
}

// VM is one machine and its agent.
type VM struct {
	*machine.Machine
	spec Spec
	bed  *Bed
	log  string        // the agent's, over all its runs
	proc *proc.Process // nil while the agent does not run
	unit *Unit         // nil: nobody manages the agent
}

// VM starts a machine that has istioctl's five files and the wingman program, and runs neither agent nor application yet. It
// ends with the test.
func (b *Bed) VM(t testing.TB, s Spec) *VM {
	t.Helper()
	bind := map[string]string{"/usr/local/bin/wingman": b.wingman}
	if s.Envoy {
		maps.Copy(bind, b.istioPackage())
	}
	m := b.machine(t, machine.Config{Name: s.Host, Addr: netip.MustParsePrefix(s.Addr), Bind: bind})
	v := &VM{Machine: m, spec: s, bed: b, log: filepath.Join(b.logs, s.Host+".wingman.log")}
	t.Cleanup(func() {
		if t.Failed() {
			if log, err := os.ReadFile(v.log); err == nil {
				t.Logf("wingman on %s said:\n%s", s.Host, log)
			}
		}
	})
	v.install(t)
	return v
}

// classic is where istioctl's files go.
var classic = map[string]string{
	"cluster.env":   "/var/lib/istio/envoy/cluster.env",
	"mesh.yaml":     "/etc/istio/config/mesh",
	"hosts":         "/var/lib/istio/envoy/hosts",
	"istio-token":   tokenFile,
	"root-cert.pem": "/etc/certs/root-cert.pem",
}

const tokenFile = "/var/run/secrets/tokens/istio-token"

// install puts istioctl's files in place, and the folders that the agent's unit would make, as its user's.
func (v *VM) install(t testing.TB) {
	t.Helper()
	ctx, cancel := step(t)
	defer cancel()
	dir := filepath.Join(v.bed.logs, v.spec.Host+".files")
	istiod := v.Gateway()
	if v.spec.Istiod != "" {
		istiod = netip.MustParseAddr(v.spec.Istiod)
	}
	if err := v.bed.Mesh.WorkloadEntryConfigure(ctx, v.spec.Namespace, v.spec.Group, istiod, dir); err != nil {
		t.Fatal(err)
	}
	for name, path := range classic {
		content, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		v.write(t, path, string(content))
	}
	if v.spec.Sidecar != "" {
		v.write(t, "/var/lib/istio/envoy/sidecar.env", v.spec.Sidecar)
	}
	for path, mode := range map[string]os.FileMode{"/var/lib/wingman": 0o700, "/run/wingman": 0o755, "/etc/certs": 0o755} {
		if err := v.MakeDir(path, mode, machine.ProxyID); err != nil {
			t.Fatal(err)
		}
	}
}

// write makes a file that the agent's user may read and nobody else.
func (v *VM) write(t testing.TB, path, content string) {
	t.Helper()
	if err := v.WriteFile(path, content, 0o600, machine.ProxyID); err != nil {
		t.Fatal(err)
	}
}

// WriteSettings replaces the agent's own settings, which it reads at its start and by SIGHUP.
func (v *VM) WriteSettings(t testing.TB, yaml string) {
	t.Helper()
	if err := v.WriteFile("/etc/wingman/wingman.yaml", yaml, 0o644, machine.ProxyID); err != nil {
		t.Fatal(err)
	}
}

// RemoveToken deletes the join token, as a reboot does.
func (v *VM) RemoveToken(t testing.TB) {
	t.Helper()
	if err := v.Visit(func() error { return os.Remove(tokenFile) }); err != nil {
		t.Fatal(err)
	}
}

// WriteRoot replaces the root certificate by what istiod publishes now.
func (v *VM) WriteRoot(t testing.TB) {
	t.Helper()
	ctx, cancel := step(t)
	defer cancel()
	root, err := v.bed.Mesh.Root(ctx, v.spec.Namespace)
	if err != nil {
		t.Fatal(err)
	}
	v.WriteRootFile(t, string(root))
}

// WriteRootFile replaces the root certificate by PEM of the operator's own.
func (v *VM) WriteRootFile(t testing.TB, roots string) {
	t.Helper()
	v.write(t, classic["root-cert.pem"], roots)
}

// WriteToken replaces the join token.
func (v *VM) WriteToken(t testing.TB, token string) {
	t.Helper()
	v.write(t, tokenFile, token)
}

// StartAgent runs `wingman run` as its unit would: user istio-proxy, two capabilities.
func (v *VM) StartAgent(t testing.TB) {
	t.Helper()
	s := proc.Spec{
		Path: "/usr/local/bin/wingman", Args: []string{"run"},
		Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/home/istio-proxy"},
		Dir: "/", Log: v.log,
		Credential: &syscall.Credential{Uid: machine.ProxyID, Gid: machine.ProxyID}, Caps: machine.ProxyCaps,
	}
	if v.unit != nil {
		var env []string
		s.Path, s.Args, env, s.Files = v.unit.command(s.Path, s.Args)
		s.Env = append(s.Env, env...)
	}
	p, err := v.Start(s)
	if err != nil {
		t.Fatal(err)
	}
	v.proc = p
}

// StopAgent ends the agent by SIGTERM; it must then leave the mesh and exit with status 0.
func (v *VM) StopAgent(t testing.TB) {
	t.Helper()
	ctx, cancel := step(t)
	defer cancel()
	if err := v.proc.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if err := v.proc.Err(); err != nil {
		t.Fatalf("stop the agent on %s: %v", v.spec.Host, err)
	}
}

// Reload has the agent read its settings again.
func (v *VM) Reload(t testing.TB) {
	t.Helper()
	if err := v.proc.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
}

// KillAgent ends the agent by SIGKILL.
func (v *VM) KillAgent() { v.proc.Kill() }

// Agent is the agent's process.
func (v *VM) Agent() *proc.Process { return v.proc }

// AgentLog is what the agent has said in all its runs.
func (v *VM) AgentLog(t testing.TB) string {
	t.Helper()
	b, err := os.ReadFile(v.log)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Warnings are the lines of AgentLog that a person would look at.
func (v *VM) Warnings(t testing.TB) (lines []string) {
	t.Helper()
	for line := range strings.Lines(v.AgentLog(t)) {
		if strings.Contains(line, " WARN ") || strings.Contains(line, " ERROR ") {
			lines = append(lines, line)
		}
	}
	return lines
}

// Status is what the agent says of itself, as far as tests look at it (agent/status.Report).
type Status struct {
	PID      int
	Phase    string
	Degraded []string
	Identity struct {
		SPIFFEID   string `json:"spiffeId"`
		Serial     string
		NotAfter   time.Time
		ReceivedAt time.Time
		Credential string // what got the certificate: "token", "certificate", or "" when it was on disk
		Source     string // of that token
		LastError  string
		Roots      []struct{ Subject, Source string }
	}
	XDS struct {
		Phase      string
		Streams    int               // opened so far
		LastError  string            `json:"lastError"`
		EnvoyNacks int               // pushes that Envoy refused so far
		EnvoyNack  map[string]string // type → the reason, while it is refused
	}
	DNS struct {
		Source string
		Names  int
	}
	Capture struct{ Level, Why, Backend string }
	Envoy   struct {
		Announced, Live, Stream bool
		Phase, Cause            string
		PID, Starts             int
	}
	Ready    bool
	NotReady []string
}

// Status asks the agent, which may not be there yet, by its admin socket.
func (v *VM) Status(ctx context.Context) (s Status, err error) {
	c, err := v.Dial(ctx, "unix", "/run/wingman/admin.sock")
	if err != nil {
		return s, err
	}
	client := http.Client{Transport: &http.Transport{
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return c, nil },
		DisableKeepAlives: true,
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://admin/status", nil)
	if err != nil {
		return s, err
	}
	res, err := client.Do(req)
	if err != nil {
		return s, err
	}
	defer res.Body.Close()
	if err := json.NewDecoder(res.Body).Decode(&s); err != nil {
		return s, fmt.Errorf("read status: %w", err)
	}
	return s, nil
}

// AwaitStatus waits until the agent's status is as ask wants it; ask returns what is missing.
func (v *VM) AwaitStatus(t testing.TB, what string, ask func(Status) error) (s Status) {
	t.Helper()
	Await(t, v.spec.Host+": "+what, func() error {
		if v.proc != nil {
			select {
			case <-v.proc.Done():
				t.Fatalf("%s: %s: the agent has ended: %v", v.spec.Host, what, v.proc.Err())
			default:
			}
		}
		var err error
		if s, err = v.Status(t.Context()); err != nil {
			return err
		}
		return ask(s)
	})
	return s
}

// EntryName is what istiod must call the machine's WorkloadEntry.
func (v *VM) EntryName() string {
	return v.spec.Group + "-" + v.IP().String() + "-" + cmp.Or(v.spec.Network, "vm-network")
}

// Proxy is what istiod calls the machine.
func (v *VM) Proxy() string { return v.spec.Host + "." + v.spec.Namespace }

// Entry waits until the machine's WorkloadEntry is there and match, if not nil, is true of it.
func (v *VM) Entry(t testing.TB, what string, match func(kube.Object) bool) kube.Object {
	t.Helper()
	return v.bed.Entries(t, v.spec.Namespace, what, v.only(match))[0]
}

// Healthy waits until the condition Healthy of the machine's entry has this status ("True", "False").
func (v *VM) Healthy(t testing.TB, want string) {
	t.Helper()
	v.ExpectHealthy(t, want)()
}

// ExpectHealthy begins what Healthy does, and returns the function that waits for its end.
func (v *VM) ExpectHealthy(t testing.TB, want string) (wait func()) {
	t.Helper()
	w := v.bed.ExpectEntries(t, v.spec.Namespace, "condition Healthy becomes "+want, v.only(func(o kube.Object) bool {
		status, _ := o.Condition("Healthy")
		return status == want
	}))
	return func() {
		t.Helper()
		w()
	}
}

// only is true of a namespace's entries when there is one, this machine's, and match is true of it.
func (v *VM) only(match func(kube.Object) bool) func([]kube.Object) bool {
	return func(all []kube.Object) bool {
		return len(all) == 1 && all[0].Name() == v.EntryName() && (match == nil || match(all[0]))
	}
}
