package testbed

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"wingman/test/mesh"
	"wingman/test/mesh/machine"
	"wingman/test/mesh/proc"
)

// StockEnvoy are settings of istiod (mesh.Options.IstiodEnv) with which it sends nothing that only Istio's build of Envoy has,
// as long as the mesh has no metrics provider: the unmodified Envoy then takes every resource from pilot-agent as it is.
var StockEnvoy = map[string]string{"PILOT_ENABLE_ALPN_FILTER": "false", "PILOT_ENABLE_METADATA_EXCHANGE": "false"}

// istioPackage is what Istio's package for VMs installs: path in the machine → path outside.
func (b *Bed) istioPackage() map[string]string {
	return map[string]string{
		"/usr/local/bin/envoy":                           b.set.Envoy,
		"/usr/local/bin/pilot-agent":                     b.set.PilotAgent,
		"/usr/local/bin/istio-start.sh":                  b.set.StartScript,
		"/var/lib/istio/envoy/envoy_bootstrap_tmpl.json": b.set.EnvoyBootstrap,
	}
}

// Istio is the real pilot-agent with the real Envoy on a machine: the reference that wingman is measured by, and its peer.
type Istio struct {
	vm   *machine.Machine
	proc *proc.Process
}

// istioDirs are folders that the package, or a pod's volumes, make for pilot-agent's user.
var istioDirs = []string{
	"/etc/certs", "/etc/istio/proxy", "/etc/istio/config", "/var/lib/istio/envoy", "/var/lib/istio/data", "/var/log/istio",
	"/var/run/secrets", "/var/run/secrets/tokens", "/var/run/secrets/istio",
	"/var/run/secrets/workload-spiffe-uds", "/var/run/secrets/credential-uds", "/var/run/secrets/workload-spiffe-credentials",
}

// StartIstio runs istio-start.sh on a machine that has Envoy, in place of wingman: the capture rules as root, then pilot-agent with
// Envoy as istio-proxy. It returns once Envoy is ready.
func (v *VM) StartIstio(t testing.TB) *Istio {
	t.Helper()
	v.installIstio(t)
	ctx, cancel := step(t)
	defer cancel()
	if _, err := v.Run(ctx, "/usr/local/bin/istio-start.sh", "init"); err != nil {
		t.Fatal(err)
	}
	return startIstio(t, v.Machine, filepath.Join(v.bed.logs, v.spec.Host+".istio.log"), proc.Spec{
		Path: "/usr/local/bin/istio-start.sh", Args: []string{"run"},
		Env: []string{"USER=istio-proxy"}, // with this the script does not use sudo
	})
}

// StartIstioAgent runs pilot-agent as StartIstio does, but without capture rules, and with the program envoy in Envoy's place, a path in
// the machine. It returns at once.
func (v *VM) StartIstioAgent(t testing.TB, envoy string) *proc.Process {
	t.Helper()
	v.installIstio(t)
	p, err := v.Start(proc.Spec{
		Path: "/usr/local/bin/istio-start.sh", Args: []string{"run"},
		Env: []string{
			"USER=istio-proxy", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/home/istio-proxy",
			"ISTIO_CUSTOM_IP_TABLES=true", "PROXY_CONFIG=binaryPath: " + envoy,
		},
		Dir: "/", Log: filepath.Join(v.bed.logs, v.spec.Host+".istio.log"),
		Credential: &syscall.Credential{Uid: machine.ProxyID, Gid: machine.ProxyID},
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// installIstio puts in place what pilot-agent needs beside Istio's package and istioctl's files.
func (v *VM) installIstio(t testing.TB) {
	t.Helper()
	prepareIstio(t, v.Machine)
	// The book: cat hosts >> /etc/hosts.
	err := v.Visit(func() error {
		hosts, err := os.ReadFile(classic["hosts"])
		if err != nil {
			return err
		}
		f, err := os.OpenFile("/etc/hosts", os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = f.Write(hosts)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func prepareIstio(t testing.TB, m *machine.Machine) {
	t.Helper()
	for _, dir := range istioDirs {
		if err := m.MakeDir(dir, 0o755, machine.ProxyID); err != nil {
			t.Fatal(err)
		}
	}
}

// startIstio starts pilot-agent, by whatever s says, and waits until it calls itself ready.
func startIstio(t testing.TB, m *machine.Machine, log string, s proc.Spec) *Istio {
	t.Helper()
	s.Env = append(s.Env, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/home/istio-proxy")
	s.Dir, s.Log = "/", log
	s.Credential = &syscall.Credential{Uid: machine.ProxyID, Gid: machine.ProxyID}
	p, err := m.Start(s)
	if err != nil {
		t.Fatal(err)
	}
	i := &Istio{vm: m, proc: p}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("pilot-agent and Envoy on %s said:\n%s", m.Name(), p.Tail(60))
		}
	})
	Await(t, m.Name()+": pilot-agent and Envoy are ready", func() error {
		select {
		case <-p.Done():
			t.Fatalf("%s: pilot-agent has ended: %v", m.Name(), p.Err())
		default:
		}
		_, err := get(t, m, "127.0.0.1:15021", "", "/healthz/ready")
		return err
	})
	return i
}

// Stop ends pilot-agent, and Envoy with it, by SIGTERM.
func (i *Istio) Stop(t testing.TB) {
	t.Helper()
	ctx, cancel := step(t)
	defer cancel()
	if err := i.proc.Stop(ctx); err != nil {
		t.Fatal(err)
	}
}

// Admin reads a page of Envoy's admin port, such as /config_dump or /stats?filter=ssl.handshake.
func (i *Istio) Admin(t testing.TB, page string) string {
	t.Helper()
	return adminPage(t, i.vm, page)
}

// Name is the machine's host name.
func (i *Istio) Name() string { return i.vm.Name() }

// Log is the file that has what pilot-agent and Envoy said, access logs included.
func (i *Istio) Log() string { return i.proc.Log() }

// Process is pilot-agent's process, the leader of Envoy's group.
func (i *Istio) Process() *proc.Process { return i.proc }

// credentials makes a pod's credentials: a token for istiod and istiod's root.
func (b *Bed) credentials(t testing.TB, m *machine.Machine, namespace, account string) {
	t.Helper()
	ctx, cancel := step(t)
	defer cancel()
	token, err := b.Mesh.Token(ctx, namespace, account, mesh.Audience, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	root, err := b.Mesh.Root(ctx, namespace)
	if err != nil {
		t.Fatal(err)
	}
	for path, content := range map[string]string{
		"/var/run/secrets/tokens/istio-token":  token,
		"/var/run/secrets/istio/root-cert.pem": string(root),
		"/etc/hosts":                           fmt.Sprintf("127.0.0.1 localhost\n%s %s\n", m.Gateway(), mesh.DiscoveryHost),
	} {
		if err := m.WriteFile(path, content, 0o644, machine.ProxyID); err != nil {
			t.Fatal(err)
		}
	}
}
