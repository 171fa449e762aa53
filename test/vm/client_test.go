package vm

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"testing"
	"time"
)

// client is testdata/client at work on a machine.
type client struct {
	t    testing.TB
	what string
	cmd  *exec.Cmd
	in   io.Closer // its end is the client's
	out  *bufio.Reader
	done bool
}

// outcome is what became of a client's tries: Outcome of testdata/client.
type outcome struct {
	Sent    int
	Lasted  time.Duration
	Again   int
	Slowest time.Duration
	Failed  []struct {
		Began time.Time
		Took  time.Duration
		Err   string
	}
}

// startClient has a machine try something 200 times a second, and returns when that works.
func startClient(t testing.TB, m *Machine, what string, args ...string) *client {
	t.Helper()
	c := &client{t: t, what: what, cmd: m.Command(append([]string{"/usr/bin/client"}, args...)...)}
	in, err := c.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.in = in
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.out = bufio.NewReader(out)
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !c.done {
			c.in.Close()
			c.cmd.Wait()
		}
	})
	stuck := time.AfterFunc(20*time.Second, func() { c.in.Close() })
	defer stuck.Stop()
	if line, err := c.out.ReadString('\n'); line != "flowing\n" {
		t.Fatalf("%s: nothing works: %.1000s %v\n%s", what, line, err, m.lastWords())
	}
	return c
}

// end stops it, waits for the last answers, and returns what became of all.
func (c *client) end() (o outcome) {
	c.t.Helper()
	c.in.Close()
	err := json.NewDecoder(c.out).Decode(&o)
	c.done = true
	if waited := c.cmd.Wait(); err == nil {
		err = waited
	}
	if err != nil {
		c.t.Fatalf("%s: the client: %v", c.what, err)
	}
	return o
}

func (o outcome) String() string {
	if len(o.Failed) == 0 {
		return fmt.Sprintf("0 of %d", o.Sent)
	}
	f, l := o.Failed[0], o.Failed[len(o.Failed)-1]
	const clock = "15:04:05.000"
	return fmt.Sprintf("%d of %d (first begun %s, for %s: %s; last begun %s, for %s: %s)", len(o.Failed), o.Sent,
		f.Began.Format(clock), f.Took.Round(time.Millisecond), f.Err, l.Began.Format(clock), l.Took.Round(time.Millisecond), l.Err)
}

// rate is how many were sent in a second.
func (o outcome) rate() float64 { return float64(o.Sent) / o.Lasted.Seconds() }

// lastBegan is when the last try began that failed; zero when none did.
func (o outcome) lastBegan() (last time.Time) {
	for _, f := range o.Failed {
		if f.Began.After(last) {
			last = f.Began
		}
	}
	return last
}
