package automation

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"wingman/test/controlplane"
	"wingman/test/files"
	"wingman/test/vm"
)

// identityOf returns what a machine shows for its certificate: SPIFFE id and serial number.
func identityOf(t *testing.T, m *vm.Machine) string {
	t.Helper()
	block, _ := pem.Decode([]byte(m.Run("cat", "/etc/certs/cert-chain.pem")))
	if block == nil {
		t.Fatal("/etc/certs/cert-chain.pem holds no certificate")
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%s %x", leaf.URIs, leaf.SerialNumber)
}

func connected(e controlplane.Event) bool {
	return e.Kind == controlplane.EntryConnected || e.Kind == controlplane.EntryCreated
}

// One package, several ways to a machine. The machines know nothing of each other.
func TestCloudInit(t *testing.T) {
	vm.Require(t)
	file := packageOf(t, newVersion, "deb")
	for name, test := range map[string]func(*testing.T, string){
		"a baked image joins":                                                   bakedImageJoins,
		"a baked image that cannot leave what it was":                           bakedImageKeepsStill,
		"a stock image installs and joins":                                      stockImageInstallsAndJoins,
		"a stock image takes the package from apt and the token from its cloud": stockImageOfACloudJoins,
		"a stock image that meets no control plane":                             stockImageWaitsForIstiod,
		"a stock image that is given another package":                           stockImageRefuses,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, file)
		})
	}
}

// bake puts the package into the disk of a machine that is off, its unit enabled.
func bake(m *vm.Machine, file string) {
	m.CopyIn(file, "/root/wingman.deb", 0o644)
	m.Chroot("dpkg", "--install", "/root/wingman.deb")
	m.Chroot("rm", "/root/wingman.deb")
	m.Enable("wingman.service")
}

// An image with the package in it, as Packer leaves it: started with user-data it is a member, and so is a copy of its disk, as somebody else.
func bakedImageJoins(t *testing.T, file string) {
	c := newCloud(t)
	m := c.machine("forum", "10.99.0.2")
	bake(m, file)
	first := c.bundle(files.Group)
	c.seed(m, "i-1", "forum", first.userData(t))
	m.Boot()
	entry := c.joined(m, files.Group)
	if got := c.cloudInitDone(m); got != "done" {
		t.Errorf("cloud-init ended with %q", got)
	}
	if got := m.Sh("stat -c '%a %U %n' /run/secrets/tokens/istio-token /run/secrets/tokens /var/lib/istio/envoy/cluster.env /etc/istio/config/mesh /var/lib/istio/envoy/hosts /etc/wingman/wingman.yaml"); got !=
		"600 istio-proxy /run/secrets/tokens/istio-token\n700 istio-proxy /run/secrets/tokens\n644 root /var/lib/istio/envoy/cluster.env\n644 root /etc/istio/config/mesh\n644 root /var/lib/istio/envoy/hosts\n644 root /etc/wingman/wingman.yaml" {
		t.Errorf("the files are\n%s", got)
	}
	c.mustKeep(m, first.token)
	if agent, final := m.Sh("systemctl show -P ExecMainStartTimestampMonotonic wingman"), m.Sh("systemctl show -P ExecMainStartTimestampMonotonic cloud-final"); len(agent) > len(final) || len(agent) == len(final) && agent >= final {
		t.Errorf("the agent was started at %s, by user-data's last stage at %s: it should come up by itself", agent, final)
	}

	// The same instance again.
	places := "cat /var/lib/istio/envoy/* /etc/istio/config/mesh /etc/wingman/wingman.yaml; stat -c '%Y %n' /var/lib/istio/envoy/* /etc/istio/config/mesh /etc/wingman/wingman.yaml"
	before, identity := m.Sh(places), identityOf(t, m)
	events := len(c.istiod.Events())
	m.Reboot()
	if _, err := c.istiod.WaitEventAfter(t.Context(), events, connected); err != nil {
		t.Fatal(err)
	}
	if again := c.joined(m, files.Group); again.Name != entry.Name {
		t.Errorf("after a reboot the entry is %s, want %s", again.Name, entry.Name)
	}
	if got := c.cloudInitDone(m); got != "done" {
		t.Errorf("after a reboot cloud-init ended with %q", got)
	}
	if after := m.Sh(places); after != before {
		t.Errorf("a reboot changed files:\n%s\nto\n%s", before, after)
	}
	if after := identityOf(t, m); after != identity {
		t.Errorf("a reboot changed the identity from %s to %s", identity, after)
	}
	if _, err := m.Try("test", "-e", "/run/secrets/tokens/istio-token"); err == nil {
		t.Error("a reboot brought the token back, want user-data applied once")
	}
	key := m.Sh("cat /var/lib/wingman/identity/current/key.pem")
	m.PowerOff()

	// A copy of the disk is another instance, and is told to be another workload.
	clone := c.segment.Clone(t, m, "archive", "10.99.0.3/24", planeAddress)
	other := c.bundle(otherWorkload)
	c.seed(clone, "i-2", "archive", other.userData(t))
	events = len(c.istiod.Events())
	clone.Boot()
	c.joined(clone, otherWorkload)
	if got := c.cloudInitDone(clone); got != "done" {
		t.Errorf("cloud-init of the copy ended with %q", got)
	}
	if got := identityOf(t, clone); !strings.Contains(got, "/sa/"+otherWorkload+"-sa") {
		t.Errorf("the copy is %s, want %s", got, otherWorkload)
	}
	if got := clone.Sh("grep -rlF " + files.Group + "-sa /var/lib/wingman /etc/certs /var/lib/istio /etc/istio || :"); got != "" {
		t.Errorf("of the machine that it was the copy still has %q", got)
	}
	if clone.Sh("cat /var/lib/wingman/identity/generations/*/key.pem") == key {
		t.Error("the copy has the key of the machine that it was")
	}
	for _, e := range c.istiod.Events()[events:] {
		if strings.Contains(e.Identity+e.Node, files.Group+"-sa") || e.Entry != "" && strings.Contains(e.Entry, "/"+files.Group+"-10.99.0.3") {
			t.Errorf("the copy was seen as what it had been: %s", e)
		}
	}
	if got := clone.Run("systemctl", "is-enabled", "wingman.service"); got != "enabled" {
		t.Errorf("the copy's unit is %s", got)
	}
	c.mustKeep(clone, other.token)
	clone.Reboot()
	c.joined(clone, otherWorkload)
}

// A disk that was a member, from which its identity cannot be taken: no agent starts with it, at this boot or the next, and the token is nobody else's to read.
func bakedImageKeepsStill(t *testing.T, file string) {
	c := newCloud(t)
	m := c.machine("still", "10.99.0.2")
	bake(m, file)
	m.Chroot("mkdir", "-p", "/var/lib/wingman")
	m.Chroot("mv", "/usr/bin/wingman", "/usr/bin/wingman.real")
	m.Write("/usr/bin/wingman", "#!/bin/sh\n[ \"$1\" != leave ] || exit 1\nexec /usr/bin/wingman.real \"$@\"\n", 0o755)
	b := c.bundle(files.Group)
	c.seed(m, "i-1", "still", b.userData(t))
	m.Boot()
	if got := c.cloudInitDone(m); got != "error" {
		t.Errorf("cloud-init ended with %q, want error", got)
	}
	for boot := range 2 {
		if boot > 0 {
			m.Reboot()
		}
		if got := m.Sh("systemctl is-enabled wingman || :; systemctl is-active wingman || :"); got != "masked\ninactive" {
			t.Errorf("the unit is %q, want masked and inactive", got)
		}
		if entries := c.istiod.Entries(); len(entries) > 0 {
			t.Errorf("it became a member: %+v", entries)
		}
		if got := m.Sh("stat -c '%a %U' /run/secrets/tokens 2>/dev/null || :"); got != "700 istio-proxy" && got != "" {
			t.Errorf("the token's folder is %q", got)
		}
		c.mustKeep(m, b.token)
	}
}

// mustKeep fails for each file that others than its owner and root can read and that holds the token, as it is or in base64.
func (c *cloud) mustKeep(m *vm.Machine, token string) {
	c.t.Helper()
	m.Write("/root/patterns", token+"\n", 0o600)
	m.Sh(`base64 -w0 /root/patterns | cut -c1-200 >>/root/patterns`)
	open := m.Sh(`find / -xdev -path /proc -prune -o -type f -size -4000k -print0 | xargs -0 grep -lFf /root/patterns 2>/dev/null >/root/found || :
		find /run -type f -print0 | xargs -0 grep -lFf /root/patterns 2>/dev/null >>/root/found || :
		grep -q /var/lib/cloud/instances /root/found
		for f in $(cat /root/found); do
			[ "$(setpriv --reuid=65534 --regid=65534 --clear-groups cat "$f" 2>/dev/null | wc -c)" = 0 ] || echo "$f"
		done
		rm /root/found /root/patterns`)
	if open != "" {
		c.t.Errorf("everybody can read the token in %s", open)
	}
}

// An image of the distribution, to which user-data brings the package too.
func stockImageInstallsAndJoins(t *testing.T, file string) {
	c := newCloud(t)
	envoy := envoyPackage(t)
	mux := http.NewServeMux()
	mux.Handle("/", http.FileServer(http.Dir(filepath.Dir(file))))
	mux.Handle("/envoy/", http.StripPrefix("/envoy", http.FileServer(http.Dir(filepath.Dir(envoy)))))
	c.serve(mux)
	m := c.machine("stock", "10.99.0.2")
	b := c.bundle(files.Group)
	c.seed(m, "i-1", "stock", b.userData(t, "--package", "http://"+planeAddress+"/"+filepath.Base(file), "--sha256", sum(t, file),
		"--package", "http://"+planeAddress+"/envoy/"+filepath.Base(envoy), "--sha256", sum(t, envoy)))
	m.Boot()
	if got := c.cloudInitDone(m); got != "done" {
		t.Errorf("cloud-init ended with %q", got)
	}
	c.joined(m, files.Group)
	if got := m.Sh("stat -c '%a %U' /run/secrets/tokens/istio-token; systemctl is-enabled wingman; ls -A /root | grep wingman || :"); got != "600 istio-proxy\nenabled" {
		t.Errorf("the machine has %q", got)
	}
	c.mustKeep(m, b.token)
	if got := m.Sh("dpkg-query -W -f '${db:Status-Status}' wingman-envoy; ls /usr/libexec/wingman-envoy"); got != "installedenvoy" {
		t.Errorf("of the second package the machine has %q", got)
	}
	if got := m.Sh("readlink -f /proc/$(pgrep -x envoy)/exe"); got != "/usr/libexec/wingman-envoy/envoy" {
		t.Errorf("Envoy is %q", got)
	}

	// All forms of user-data by cloud-init's own schema.
	key := write(t, filepath.Join(t.TempDir(), "key.asc"), "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nAAAA\n-----END PGP PUBLIC KEY BLOCK-----\n")
	for name, argv := range map[string][]string{
		"baked": {b.dir}, "settings": {"--settings", b.settings, b.dir}, "gce": {"--token-from", "gce", b.dir}, "apt": {"--apt", "https://packages.example/apt", "--key", key, b.dir},
		"yum": {"--yum", "https://packages.example/yum", "--key", key, b.dir}, "package": {"--package", "https://packages.example/wingman.rpm", "--sha256", strings.Repeat("0a", 32), b.dir},
	} {
		_, text := generate(t, argv...)
		mustPassSchema(t, m, name, text)
	}
	wrong := strings.Replace(b.userData(t), "runcmd:", "runcmds:", 1)
	m.Write("/root/user-data", strings.Replace(wrong, "bootcmd:", "bootcmd: 7\nx:", 1), 0o600)
	if out, err := m.Try("cloud-init", "schema", "--config-file", "/root/user-data"); err == nil {
		t.Errorf("cloud-init's schema passes what is wrong: %s", out)
	}
}

// No secret in the user-data, and no file by URL: a signed repository, and a metadata service as GCE's.
func stockImageOfACloudJoins(t *testing.T, file string) {
	c := newCloud(t)
	r := newRepository(t)
	run(t, r.layOut(file))
	b := c.bundle(files.Group)
	mux := http.NewServeMux()
	mux.Handle("/apt/", http.FileServer(http.Dir(r.dir)))
	mux.HandleFunc("/computeMetadata/v1/instance/service-accounts/default/identity", func(w http.ResponseWriter, q *http.Request) {
		if q.Header.Get("Metadata-Flavor") != "Google" || q.FormValue("audience") != "istio-ca" {
			http.Error(w, "not by this way", http.StatusForbidden)
			return
		}
		w.Header().Set("Metadata-Flavor", "Google")
		fmt.Fprint(w, b.token)
	})
	c.serve(mux)
	m := c.machine("ofgce", "10.99.0.2")
	m.Write("/etc/apt/sources.list", "", 0o644) // the distribution's are not in reach
	m.Write("/etc/systemd/system/wingman.service.d/cloud.conf", "[Service]\nEnvironment=GCE_METADATA_HOST="+planeAddress+"\n", 0o644)
	_, text := generate(t, "--apt", "http://"+planeAddress+"/apt", "--key", filepath.Join(r.dir, "wingman.asc"), "--token-from", "gce", b.dir)
	c.seed(m, "i-1", "ofgce", text)
	m.Boot()
	if got := c.cloudInitDone(m); got != "done" {
		t.Errorf("cloud-init ended with %q", got)
	}
	c.joined(m, files.Group)
	if got := m.Sh("dpkg-query -W -f '${db:Status-Status}' wingman; ls /run/secrets/tokens /root/wingman-bundle 2>/dev/null || :"); got != "installed" {
		t.Errorf("the machine has %q, want the package, and neither token nor bundle", got)
	}
}

// The control plane comes later than the machine: the operator is told, and nobody has to do anything.
func stockImageWaitsForIstiod(t *testing.T, file string) {
	c := newCloud(t)
	c.serve(http.FileServer(http.Dir(filepath.Dir(file))))
	c.istiod.Stop()
	m := c.machine("waits", "10.99.0.2")
	b := c.bundle(files.Group)
	c.seed(m, "i-1", "waits", b.userData(t, "--package", "http://"+planeAddress+"/"+filepath.Base(file), "--sha256", sum(t, file)))
	m.Boot()
	if got := c.cloudInitDone(m); got != "error" {
		t.Errorf("cloud-init ended with %q, want error: the machine is no member", got)
	}
	if got := m.Sh("systemctl is-active wingman; ls -A /root | grep wingman || :; stat -c '%a %U' /run/secrets/tokens/istio-token"); got != "active\n600 istio-proxy" {
		t.Errorf("the machine has %q, want the agent, and its files in place", got)
	}
	if said := m.Run("cat", "/var/log/cloud-init-output.log"); !strings.Contains(said, planeAddress+":15012") {
		t.Errorf("cloud-init's log does not say what was wrong:\n%s", said)
	}
	if err := c.segment.Do(c.istiod.Start); err != nil {
		t.Fatal(err)
	}
	c.joined(m, files.Group)
}

// What comes from the URL is another file: it is not installed.
func stockImageRefuses(t *testing.T, file string) {
	c := newCloud(t)
	c.serve(http.FileServer(http.Dir(filepath.Dir(file))))
	m := c.machine("refuses", "10.99.0.2")
	b := c.bundle(files.Group)
	c.seed(m, "i-1", "refuses", b.userData(t, "--package", "http://"+planeAddress+"/"+filepath.Base(file), "--sha256", strings.Repeat("0a", 32)))
	m.Boot()
	if got := c.cloudInitDone(m); got != "error" {
		t.Errorf("cloud-init ended with %q, want error", got)
	}
	if out, err := m.Try("wingman", "version"); err == nil {
		t.Errorf("the package is installed: %s", out)
	}
	if got := m.Sh("ls -A /root | grep wingman || :"); got != "" {
		t.Errorf("a boot that failed leaves %q, want neither token nor package", got)
	}
	c.mustKeep(m, b.token)
}

// mustPassSchema fails unless cloud-init's own schema has nothing to say against user-data.
func mustPassSchema(t *testing.T, m *vm.Machine, name, userData string) {
	t.Helper()
	m.Write("/root/user-data", userData, 0o600)
	if out, err := m.Try("cloud-init", "schema", "--config-file", "/root/user-data"); err != nil || !strings.HasPrefix(out, "Valid cloud-config") {
		t.Errorf("cloud-init schema of %s: %v\n%s", name, err, out)
	}
	m.Run("rm", "/root/user-data")
}

func sum(t *testing.T, file string) string {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(content))
}
