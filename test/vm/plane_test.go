package vm

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// plane is the real control plane on a segment: istiod and an API server, which test/mesh/cmd/controlplane runs.
type plane struct {
	t      *testing.T
	client *http.Client
}

// planeState is a WorkloadEntry as it was from At on; made by test/mesh/cmd/controlplane.
type planeState struct {
	At              time.Time
	Namespace, Name string
	UID             string
	Gone            bool
	Healthy         string // the condition's status: "True", "False", or "" without one
	Why             string
	Connected       bool
}

// startPlane brings the control plane up at an address that the segment has, and ends it with the test.
func startPlane(t *testing.T, segment *Segment, address string, more ...string) *plane {
	t.Helper()
	dir, err := os.MkdirTemp("", "plane-") // short, for the sockets in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the control plane's logs are kept in %s", dir)
			return
		}
		os.RemoveAll(dir)
	})
	const mesh = "../mesh"
	program := filepath.Join(dir, "controlplane")
	for _, argv := range [][]string{
		{"go", "run", "./cmd/fetch"}, // while a network is in reach
		{"go", "build", "-o", program, "./cmd/controlplane"},
	} {
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Dir = mesh
		must(t, cmd)
	}
	cmd := exec.Command(program, append([]string{"-dir", dir, "-address", address}, more...)...)
	cmd.Dir = mesh
	log, err := os.Create(filepath.Join(dir, "controlplane.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stderr = log
	hold, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := segment.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		hold.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the control plane: %v", err)
		}
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		said, _ := os.ReadFile(log.Name())
		t.Fatalf("the control plane does not come up: %q, %v\n%s", line, err, said)
	}
	socket := filepath.Join(dir, "socket")
	return &plane{t, &http.Client{Timeout: 2 * time.Minute, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}}
}

// ask sends a request; into, if not nil, gets the answer.
func (p *plane) ask(method, path, body string, into any) {
	p.t.Helper()
	req, err := http.NewRequest(method, "http://plane"+path, strings.NewReader(body))
	if err != nil {
		p.t.Fatal(err)
	}
	res, err := p.client.Do(req)
	if err != nil {
		p.t.Fatal(err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", res.Status, answer)
	}
	if err == nil && into != nil {
		err = json.Unmarshal(answer, into)
	}
	if err != nil {
		p.t.Fatalf("control plane, %s %s: %v", method, path, err)
	}
}

func (p *plane) apply(objects string) { p.t.Helper(); p.ask("POST", "/apply", objects, nil) }
func (p *plane) killIstiod()          { p.t.Helper(); p.ask("POST", "/istiod/kill", "", nil) }
func (p *plane) startIstiod()         { p.t.Helper(); p.ask("POST", "/istiod/start", "", nil) }

// files are istioctl's for a machine of a group.
func (p *plane) files(namespace, group string) (files map[string]string) {
	p.t.Helper()
	p.ask("GET", "/files?"+url.Values{"namespace": {namespace}, "group": {group}}.Encode(), "", &files)
	return files
}

// token is one for istiod; with a negative life it has expired.
func (p *plane) token(namespace, account string, life time.Duration) (token string) {
	p.t.Helper()
	p.ask("GET", "/token?"+url.Values{"namespace": {namespace}, "account": {account}, "ttl": {life.String()}}.Encode(), "", &token)
	return token
}

// states are those of the entry of this name since an instant, oldest first.
func (p *plane) states(name string, since time.Time) (own []planeState) {
	p.t.Helper()
	var all []planeState
	p.ask("GET", "/entries", "", &all)
	for _, s := range all {
		if s.Name == name && s.At.After(since) {
			own = append(own, s)
		}
	}
	return own
}

// now is the present state of the entry of this name; Gone when there is none.
func (p *plane) now(name string) planeState {
	p.t.Helper()
	all := p.states(name, time.Time{})
	if len(all) == 0 {
		return planeState{Name: name, Gone: true}
	}
	return all[len(all)-1]
}
