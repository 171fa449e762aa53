// Command bench prints what the daemon costs: the size of its binary and its memory after a join.
//
// It starts the stand-in control plane, runs the given binary on a root folder of its own without capture rules, waits until it has joined, and
// reads the kernel's account of the process. Run it with `make bench`.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"wingman/test/controlplane"
	"wingman/test/files"
	"wingman/test/freeport"
	"wingman/test/syncbuffer"
)

// Goals of the project, in MB (10^6 bytes) as the figures are.
const (
	mostBinary   = 18.0 // packaging/compile.sh refuses more
	mostResident = 20.0
)

func main() {
	binary := flag.String("wingman", "bin/wingman", "the daemon to measure")
	flag.Parse()
	if err := run(*binary); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(binary string) error {
	st, err := os.Stat(binary)
	if err != nil {
		return err
	}
	size := float64(st.Size()) / 1e6
	resident, peak, err := residentAfterJoin(binary)
	if err != nil {
		return err
	}
	fmt.Printf("%-28s %6.1f MB (at most %.0f; pilot-agent 46)\n", "binary, stripped", size, mostBinary)
	fmt.Printf("%-28s %6.1f MB (at most %.0f; pilot-agent 37)\n", "resident 2 s after the join", resident, mostResident)
	fmt.Printf("%-28s %6.1f MB\n", "peak until then", peak)
	if size > mostBinary || resident > mostResident {
		return errors.New("more than the project allows")
	}
	return nil
}

func residentAfterJoin(binary string) (now, peak float64, err error) {
	istiod, err := controlplane.New(controlplane.Config{})
	if err != nil {
		return 0, 0, err
	}
	if err := istiod.Start(); err != nil {
		return 0, 0, err
	}
	defer istiod.Close()
	files.AddGroup(istiod)
	istiod.AddService("istioinaction", "webapp", "10.96.97.98")

	root, err := os.MkdirTemp("", "wingman-bench")
	if err != nil {
		return 0, 0, err
	}
	defer os.RemoveAll(root)
	if err := files.Write(root, istiod, "127.0.0.1"); err != nil {
		return 0, 0, err
	}
	settings := fmt.Sprintf("istiod: {address: %q, caAddress: %q, san: %s}\ndns: {listen: \"127.0.0.1:%d\"}\nstatus: {port: %d}\ncapture: none\n",
		istiod.Addr(), istiod.Addr(), istiod.ServerName(), freeport.Port(), freeport.Port())
	if err := files.Put(root, files.Wingman, settings); err != nil {
		return 0, 0, err
	}

	var log syncbuffer.Buffer // read while the daemon runs, should it not join
	daemon := exec.Command(binary, "run", "--root", root)
	daemon.Stderr = &log
	if err := daemon.Start(); err != nil {
		return 0, 0, err
	}
	defer func() {
		_ = daemon.Process.Signal(syscall.SIGTERM)
		_ = daemon.Wait()
	}()
	if err := waitJoined(binary, root); err != nil {
		return 0, 0, fmt.Errorf("%w; its log:\n%s", err, log.String())
	}
	<-time.After(2 * time.Second)
	return memory(daemon.Process.Pid)
}

// joinLimit is for a machine that does other things too.
const joinLimit = time.Minute

func waitJoined(binary, root string) error {
	ctx, cancel := context.WithTimeout(context.Background(), joinLimit)
	defer cancel()
	for {
		// Exit code 3 is degraded: this root has no workload and no user to capture for.
		out, _ := exec.CommandContext(ctx, binary, "status", "--root", root, "-o", "json").Output()
		var r struct {
			Phase string `json:"phase"`
			Ready bool   `json:"ready"`
		}
		if json.Unmarshal(out, &r) == nil && r.Phase == "joined" && r.Ready {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the daemon did not join within %s", joinLimit)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// memory reads resident set and its peak, in MB, from /proc/PID/status.
func memory(pid int) (now, peak float64, err error) {
	f, err := os.Open(filepath.Join("/proc", fmt.Sprint(pid), "status"))
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		var kb float64
		key, rest, _ := strings.Cut(s.Text(), ":")
		if _, scanErr := fmt.Sscanf(rest, "%f kB", &kb); scanErr != nil {
			continue
		}
		switch key {
		case "VmRSS":
			now = kb * 1024 / 1e6
		case "VmHWM":
			peak = kb * 1024 / 1e6
		}
	}
	return now, peak, nil
}
