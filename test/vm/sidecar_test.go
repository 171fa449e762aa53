package vm

import (
	"errors"
	"io"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// This file makes a machine as Istio's own package leaves it: the real pilot-agent, Istio's start script, and the unit, folders, modes and links of
// istio-sidecar (tools/packaging/common/istio.service, tools/packaging/deb/postinst.sh).

// istioService has the shape of Istio's unit.
const istioService = `[Unit]
Description=istio-sidecar: The Istio sidecar
Documentation=http://istio.io/

[Service]
ExecStart=/usr/local/bin/istio-start.sh
ExecStopPost=/usr/local/bin/istio-start.sh clean
Restart=always
StartLimitInterval=0
RestartSec=10
KillMode=mixed
TimeoutStopSec=30s

[Install]
WantedBy=multi-user.target
`

// sudo stands in for a package that the image lacks: istio-start.sh calls it as "sudo -E -u USER -s /bin/bash -c COMMAND".
const sudo = `#!/bin/sh
[ "$1 $2 $4" = "-E -u -s" ] || { echo "sudo: $*" >&2; exit 2; }
user=$3
shift 4
exec setpriv --reuid="$user" --regid="$user" --init-groups "$@"
`

// layOut is what the package's scripts do, and an administrator by Istio's guide.
const layOut = `
[ -e /etc/istio ] || ln -s /var/lib/istio /etc/istio
mkdir -p /var/lib/istio/envoy /var/lib/istio/proxy /var/lib/istio/config /var/log/istio /etc/certs
touch /var/lib/istio/config/mesh
mkdir -p /var/run/secrets/tokens
chown istio-proxy:istio-proxy /etc/certs /var/lib/istio/envoy /var/lib/istio/config /var/log/istio /var/lib/istio/config/mesh /var/lib/istio/proxy
chown -R istio-proxy /var/lib/istio /var/run/secrets
chmod 2755 /usr/local/bin/envoy /usr/local/bin/pilot-agent
chown root:istio-proxy /usr/local/bin/envoy /usr/local/bin/pilot-agent
chmod 2755 /usr/local/bin/envoy /usr/local/bin/pilot-agent
cat /var/lib/istio/envoy/hosts >>/etc/hosts
`

// istioPrograms are pilot-agent and what belongs to it: path on a machine to path here.
func istioPrograms(t *testing.T) map[string]string {
	t.Helper()
	fetch := exec.Command("go", "run", "./cmd/fetch")
	fetch.Dir = "../mesh"
	out, err := fetch.Output()
	if err != nil {
		t.Fatalf("%s: %v", fetch, err)
	}
	places := map[string]string{
		"pilot-agent": "/usr/local/bin/pilot-agent", "istio-start": "/usr/local/bin/istio-start.sh", "envoy-bootstrap": "/var/lib/istio/envoy/envoy_bootstrap_tmpl.json",
	}
	programs := map[string]string{}
	for line := range strings.Lines(string(out)) {
		name, path, _ := strings.Cut(strings.TrimSpace(line), " ")
		if to, ok := places[name]; ok {
			programs[to] = path
		}
	}
	if len(programs) != len(places) {
		t.Fatalf("%s printed\n%swant paths of %v", fetch, out, places)
	}
	return programs
}

// sidecarMachine boots a machine on which istio-sidecar runs, with Wingman installed beside it.
func (s *stage) sidecarMachine(t *testing.T, name, prefix, namespace, listen, sidecarEnv string, programs map[string]string) *Machine {
	t.Helper()
	m := s.segment.Machine(t, name, prefix, planeAddress)
	const network = "/etc/systemd/network/10-host0.network"
	m.Write(network, m.Read(network)+"Gateway="+planeAddress+"\n", 0o644)
	m.Install(Wingman(t))
	for to, from := range programs {
		m.CopyIn(from, to, 0o755)
	}
	for to, from := range istioPrograms(t) {
		m.CopyIn(from, to, 0o755)
	}
	m.Write("/usr/local/bin/sudo", sudo, 0o755)
	m.Write("/lib/systemd/system/istio.service", istioService, 0o644)
	m.Write("/etc/systemd/system/app.service", "[Service]\nType=exec\nExecStart=/usr/bin/app app "+listen+"\n[Install]\nWantedBy=multi-user.target\n", 0o644)
	m.Enable("app.service")
	m.Boot()
	files := s.plane.files(namespace, name)
	m.Write("/var/lib/istio/envoy/hosts", files["hosts"], 0o644)
	m.Sh(layOut)
	for from, to := range map[string]string{"cluster.env": "/var/lib/istio/envoy/cluster.env", "mesh.yaml": "/etc/istio/config/mesh", "root-cert.pem": "/etc/certs/root-cert.pem"} {
		m.Write(to, files[from], 0o644)
	}
	m.Write("/var/lib/istio/envoy/sidecar.env", sidecarEnv, 0o644)
	m.Write("/var/run/secrets/tokens/istio-token", files["istio-token"], 0o640)
	m.Run("chgrp", "istio-proxy", "/run/secrets/tokens/istio-token")
	m.Run("systemctl", "daemon-reload")
	m.Run("systemctl", "enable", "--now", "istio.service")
	m.awaitPilot()
	return m
}

// awaitPilot waits until pilot-agent and its Envoy serve.
func (m *Machine) awaitPilot() {
	m.t.Helper()
	defer func() {
		if m.t.Failed() {
			m.t.Logf("istio.service, and what pilot-agent said:\n%s", m.Sh("systemctl status --lines=20 istio.service || :; journalctl -b --no-pager -g 'istio.service|ordering' | tail -n 20 || :; tail -n 15 /var/log/istio/istio.err.log /var/log/istio/istio.log"))
		}
	}()
	m.await("pilot-agent", func() bool {
		if m.show("istio.service", "ActiveState") != "active" {
			return false
		}
		return m.Do(func() error {
			conn, err := net.DialTimeout("tcp", "127.0.0.1:15021", time.Second)
			if err != nil {
				return err
			}
			defer conn.Close()
			if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
				return err
			}
			if _, err := conn.Write([]byte("GET /healthz/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")); err != nil {
				return err
			}
			answer, err := io.ReadAll(conn)
			if err == nil && !strings.Contains(string(answer), " 200 ") {
				err = errors.New("not ready")
			}
			return err
		}) == nil
	})
}

// pilot is the process of pilot-agent.
func (m *Machine) pilot() string { m.t.Helper(); return m.Run("pgrep", "-x", "pilot-agent") }
