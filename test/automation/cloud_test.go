package automation

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wingman/test/controlplane"
	"wingman/test/files"
	"wingman/test/vm"
)

// planeAddress is the control plane's on a cloud's segment, and that of what machines download from.
const planeAddress = "10.99.0.1"

// withCloudInit are the packages of an image as clouds have it. curl fetches, gnupg is for the keys of apt's repositories.
var withCloudInit = []string{"cloud-init", "curl", "gnupg"}

// generator turns istioctl's folder into user-data.
const generator = "../../packaging/cloud-init/user-data.sh"

// A cloud is a segment with the stand-in control plane, whose machines are told what they are by NoCloud seeds.
type cloud struct {
	t       *testing.T
	segment *vm.Segment
	istiod  *controlplane.Server
}

func newCloud(t *testing.T) *cloud {
	t.Helper()
	c := &cloud{t: t, segment: vm.NewSegment(t)}
	c.segment.AddAddress(t, planeAddress+"/24")
	var err error
	if c.istiod, err = controlplane.New(controlplane.Config{Addr: planeAddress + ":15012"}); err != nil {
		t.Fatal(err)
	}
	if err := c.segment.Do(c.istiod.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.istiod.Close)
	for _, workload := range []string{files.Group, otherWorkload} {
		c.istiod.AddGroup(controlplane.Group{Namespace: files.Namespace, Name: workload, ServiceAccount: workload + "-sa", Network: "vm-network"})
	}
	return c
}

// otherWorkload is one beside that of package files, in its namespace.
const otherWorkload = "archive"

// machine makes one that is switched off, of an image with cloud-init and without Wingman.
func (c *cloud) machine(name, address string) *vm.Machine {
	c.t.Helper()
	m := c.segment.MachineWith(c.t, withCloudInit, name, address+"/24", planeAddress)
	// The network is the segment's matter, and the images of all machines hold no locales but this one; of the places where cloud-init could look there is one.
	m.Write("/etc/cloud/cloud.cfg.d/90-test.cfg", "datasource_list: [NoCloud]\nnetwork: {config: disabled}\nlocale: C.UTF-8\n", 0o644)
	m.Write("/etc/default/locale", "LANG=C.UTF-8\n", 0o644)
	m.Write("/etc/cloud/ds-identify.cfg", "policy: enabled\ndatasource: NoCloud\n", 0o644)
	return m
}

// seed gives a machine that is off its instance id and user-data.
func (c *cloud) seed(m *vm.Machine, instance, name, userData string) {
	c.t.Helper()
	m.Write("/var/lib/cloud/seed/nocloud/meta-data", fmt.Sprintf("instance-id: %s\nlocal-hostname: %s\n", instance, name), 0o600)
	m.Write("/var/lib/cloud/seed/nocloud/user-data", userData, 0o600)
}

// serve has files by name under http://planeAddress/ for the machines.
func (c *cloud) serve(content http.Handler) {
	c.t.Helper()
	server := &http.Server{Addr: planeAddress + ":80", Handler: content}
	done := make(chan error, 1)
	started := make(chan struct{})
	go func() {
		done <- c.segment.Do(func() error { close(started); return server.ListenAndServe() })
	}()
	<-started
	c.t.Cleanup(func() {
		server.Close()
		if err := <-done; err != http.ErrServerClosed {
			c.t.Errorf("serve files: %v", err)
		}
	})
}

// A bundle is the folder that istioctl makes for a workload, with settings beside it.
type bundle struct {
	dir, settings string
	token         string
}

// bundle makes one with a fresh token. workload names the WorkloadGroup, the account and the service.
func (c *cloud) bundle(workload string) bundle {
	c.t.Helper()
	staged := c.t.TempDir()
	if err := files.Write(staged, c.istiod); err != nil {
		c.t.Fatal(err)
	}
	b := bundle{dir: c.t.TempDir(), settings: filepath.Join(c.t.TempDir(), "wingman.yaml")}
	for from, to := range map[string]string{
		files.ClusterEnv: "cluster.env", files.MeshConfig: "mesh.yaml", files.Hosts: "hosts", files.RootCert: "root-cert.pem",
	} {
		content, err := os.ReadFile(filepath.Join(staged, from))
		if err != nil {
			c.t.Fatal(err)
		}
		text := strings.ReplaceAll(string(content), files.Group, workload)
		text = strings.ReplaceAll(text, workload+"-services", files.Namespace)
		text, _, _ = strings.Cut(text, "  readinessProbe:") // no application runs here
		write(c.t, filepath.Join(b.dir, to), text)
	}
	var err error
	if b.token, err = c.istiod.MintToken(controlplane.TokenOptions{Namespace: files.Namespace, ServiceAccount: workload + "-sa"}); err != nil {
		c.t.Fatal(err)
	}
	write(c.t, filepath.Join(b.dir, "istio-token"), b.token)
	write(c.t, filepath.Join(b.dir, "hosts"), planeAddress+" istiod.istio-system.svc\n")
	write(c.t, b.settings, "istiod: {address: \""+planeAddress+":15012\", san: "+c.istiod.ServerName()+"}\n")
	return b
}

// userData is what the generator makes of the bundle.
func (b bundle) userData(t *testing.T, options ...string) string {
	t.Helper()
	out, err := exec.Command("sh", append(append([]string{generator, "--settings", b.settings}, options...), b.dir)...).Output()
	if err != nil {
		t.Fatalf("%s: %v", generator, err)
	}
	return string(out)
}

// joined waits until the workload's machine is a member that serves.
func (c *cloud) joined(m *vm.Machine, workload string) controlplane.Entry {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 2*time.Minute)
	defer cancel()
	e, err := c.istiod.WaitEntry(ctx, func(e controlplane.Entry) bool { return e.Connected && e.Serving() && e.Group == workload })
	if err != nil {
		c.t.Fatalf("no WorkloadEntry of %s: %v; there are %+v\n%s\n%s", workload, err, c.istiod.Entries(), m.Console(), m.Sh("journalctl --boot --no-pager | tail -60"))
	}
	return e
}

// cloudInitDone waits until cloud-init has done all stages, and returns how it ended: "done" or "error".
func (c *cloud) cloudInitDone(m *vm.Machine) string {
	c.t.Helper()
	out, err := m.Try("timeout", "120", "cloud-init", "status", "--wait", "--long")
	_, status, found := strings.Cut(out, "status: ")
	if !found {
		c.t.Fatalf("cloud-init status says %q (%v)", out, err)
	}
	status, _, _ = strings.Cut(status, "\n")
	// What cloud-init's schema is against it says at each boot, and goes on.
	if said := m.Sh("grep 'Invalid cloud-config' /var/log/cloud-init.log || :"); said != "" {
		c.t.Errorf("cloud-init is told what its schema does not know: %s", said)
	}
	if status != "done" {
		c.t.Logf("cloud-init says: %s\n%s", out, m.Sh("cat /var/log/cloud-init-output.log; grep -E 'WARN|ERR|Traceback' /var/log/cloud-init.log || :"))
	}
	return status
}
