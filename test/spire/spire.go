// Package spire runs a real SPIRE: a server and an agent on this machine, the agent attested by a join token, workloads by their uid.
//
// The module in components pins the version; it is apart from the product's, so that none of what SPIRE is built from reaches the daemon. Tests that need it
// run with WINGMAN_SPIRE=1 (or WINGMAN_MESH=1, in test/mesh) and are skipped otherwise. A SPIRE ends with its test; its files lie in a folder of
// its own below /tmp, because a socket's path may have 107 bytes.
package spire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"wingman/test/freeport"
)

// patience bounds each start; none takes a tenth of it.
const patience = 30 * time.Second

// Options is what a SPIRE is made with.
type Options struct {
	TrustDomain string // "" means cluster.local
	// Certificate and key (PEM) of a CA that the server's own is signed by; "" means that it signs itself.
	UpstreamCert, UpstreamKey string
}

// A SPIRE is one server and one agent. Its methods fail the test.
type SPIRE struct {
	t      testing.TB
	bin    string
	dir    string
	domain string
	port   int
	server *exec.Cmd
	agent  *exec.Cmd
}

// Start runs server and agent, and returns once both are healthy.
func Start(t testing.TB, o Options) *SPIRE {
	t.Helper()
	bin, err := Binaries(t.Context(), os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("/tmp", "spire")
	if err != nil {
		t.Fatal(err)
	}
	s := &SPIRE{t: t, bin: bin, dir: dir, domain: o.TrustDomain, port: int(freeport.Port())}
	if s.domain == "" {
		s.domain = "cluster.local"
	}
	t.Cleanup(func() {
		s.StopAgent()
		stop(s.server)
		if t.Failed() {
			for _, name := range []string{"server.log", "agent.log"} {
				log, _ := os.ReadFile(s.path(name))
				t.Logf("%s:\n%s", name, log)
			}
		}
		os.RemoveAll(dir)
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	upstream := ""
	if o.UpstreamCert != "" {
		s.write("upstream.pem", o.UpstreamCert)
		s.write("upstream.key", o.UpstreamKey)
		upstream = fmt.Sprintf("UpstreamAuthority \"disk\" { plugin_data { cert_file_path = %q key_file_path = %q } }", s.path("upstream.pem"), s.path("upstream.key"))
	}
	s.write("server.conf", fmt.Sprintf(`server {
  bind_address = "127.0.0.1"
  bind_port = "%d"
  trust_domain = %q
  data_dir = %q
  socket_path = %q
  ca_ttl = "2h"
}
plugins {
  DataStore "sql" { plugin_data { database_type = "sqlite3" connection_string = %q } }
  KeyManager "memory" { plugin_data {} }
  NodeAttestor "join_token" { plugin_data {} }
  %s
}
`, s.port, s.domain, dir, s.path("api.sock"), s.path("server.sqlite3"), upstream))
	s.write("agent.conf", fmt.Sprintf(`agent {
  data_dir = %q
  server_address = "127.0.0.1"
  server_port = "%d"
  socket_path = %q
  trust_bundle_path = %q
  trust_domain = %q
  experimental { sync_interval = "1s" }
}
plugins {
  KeyManager "disk" { plugin_data { directory = %q } }
  NodeAttestor "join_token" { plugin_data {} }
  WorkloadAttestor "unix" { plugin_data {} }
}
`, dir, s.port, s.Socket(), s.path("bundle.pem"), s.domain, dir))
	s.server = s.run("spire-server", "server.log", "run", "-config", s.path("server.conf"))
	s.await("the server", func() error { return s.try("spire-server", "healthcheck", "-socketPath", s.path("api.sock")) })
	s.write("bundle.pem", s.Server("bundle", "show"))
	token := s.Server("token", "generate", "-spiffeID", s.node())
	s.StartAgent("-joinToken", strings.TrimSpace(strings.TrimPrefix(token, "Token: ")))
	return s
}

// StartAgent runs the agent and returns once it serves its socket. After the first time its own certificate is what it is known by.
func (s *SPIRE) StartAgent(args ...string) {
	s.t.Helper()
	s.agent = s.run("spire-agent", "agent.log", append([]string{"run", "-config", s.path("agent.conf")}, args...)...)
	s.await("the agent", func() error { return s.try("spire-agent", "healthcheck", "-socketPath", s.Socket()) })
}

// StopAgent ends the agent; its socket goes with it.
func (s *SPIRE) StopAgent() {
	stop(s.agent)
	s.agent = nil
}

// Socket is the path of the agent's Workload API.
func (s *SPIRE) Socket() string { return s.path("agent.sock") }

// Bundle is the trust domain's roots, PEM.
func (s *SPIRE) Bundle() string { return s.Server("bundle", "show") }

// Entry has the agent give spiffeID to processes of a uid; more are further flags of `spire-server entry create`.
func (s *SPIRE) Entry(spiffeID string, uid int, more ...string) {
	s.t.Helper()
	s.Server("entry", append([]string{"create", "-parentID", s.node(), "-spiffeID", spiffeID, "-selector", fmt.Sprintf("unix:uid:%d", uid)}, more...)...)
}

// Federate makes the roots of another trust domain known to the server.
func (s *SPIRE) Federate(domain, roots string) {
	s.t.Helper()
	s.write("federated.pem", roots)
	s.Server("bundle", "set", "-id", "spiffe://"+domain, "-path", s.path("federated.pem"))
}

// Server runs a command of spire-server on the running one and returns what it prints.
func (s *SPIRE) Server(group string, args ...string) string {
	s.t.Helper()
	cmd := exec.Command(filepath.Join(s.bin, "spire-server"), append([]string{group, args[0], "-socketPath", s.path("api.sock")}, args[1:]...)...)
	var problem bytes.Buffer
	cmd.Stderr = &problem
	out, err := cmd.Output()
	if err != nil {
		s.t.Fatalf("spire-server %s %s: %v: %s%s", group, strings.Join(args, " "), err, out, &problem)
	}
	return string(out)
}

func (s *SPIRE) node() string            { return "spiffe://" + s.domain + "/vm" }
func (s *SPIRE) path(name string) string { return filepath.Join(s.dir, name) }

func (s *SPIRE) write(name, content string) {
	s.t.Helper()
	if err := os.WriteFile(s.path(name), []byte(content), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

func (s *SPIRE) run(program, log string, args ...string) *exec.Cmd {
	s.t.Helper()
	f, err := os.OpenFile(s.path(log), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command(filepath.Join(s.bin, program), args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.dir, f, f
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	return cmd
}

func (s *SPIRE) try(program string, args ...string) error {
	out, err := exec.Command(filepath.Join(s.bin, program), args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// await polls until ready does not fail.
func (s *SPIRE) await(what string, ready func() error) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	for {
		err := ready()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			s.t.Fatalf("%s of SPIRE is not ready: %v", what, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// stop asks a process to end, and kills it when it does not.
func stop(cmd *exec.Cmd) {
	if cmd == nil {
		return
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); errors.Is(err, os.ErrProcessDone) {
		return
	}
	kill := time.AfterFunc(5*time.Second, func() { cmd.Process.Kill() })
	defer kill.Stop()
	cmd.Wait()
}
