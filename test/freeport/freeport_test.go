package freeport

import (
	"bufio"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"testing"
)

const asks = "FREEPORT_ASKS" // set for the other process of TestNobodyElseGetsAPort

// Two processes that take 200 ports each get none that the other has.
func TestNobodyElseGetsAPort(t *testing.T) {
	const each = 200
	if os.Getenv(asks) != "" {
		for range each {
			fmt.Println(Addr())
		}
		_, _ = os.Stdin.Read(make([]byte, 1)) // until the parent has had its own
		os.Exit(0)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	other := exec.Command(exe, "-test.run=^"+t.Name()+"$")
	other.Env = append(os.Environ(), asks+"=1")
	in, err := other.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := other.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { in.Close(); _ = other.Wait() }()
	had := map[netip.AddrPort]bool{}
	take := func(at netip.AddrPort) {
		if had[at] {
			t.Errorf("%s is given twice", at)
		}
		if p := at.Port(); at.Addr().String() != "127.0.0.1" || p < lowest || p > highest {
			t.Errorf("%s, want a port of 127.0.0.1 from %d to %d", at, lowest, highest)
		}
		had[at] = true
	}
	lines := bufio.NewScanner(out)
	for range each {
		if !lines.Scan() {
			t.Fatalf("the other process ended: %v", lines.Err())
		}
		at, err := netip.ParseAddrPort(lines.Text())
		if err != nil {
			t.Fatal(err)
		}
		take(at)
		take(Addr())
	}
}
