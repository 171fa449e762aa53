package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The room is a network and a set of mounts of the bench's own: ports that peers insist on are free there, port 53 too, and
// /etc/resolv.conf and /etc/hosts say what the agents are to find.

// Addresses in the room.
const (
	upstreamAddr = "127.0.0.53:53"
	istiodAddr   = "127.0.0.1:15012"
	istiodHost   = "istiod.istio-system.svc"
	ownIP        = "10.99.0.2" // wingman's
	istiosIP     = "10.99.0.3" // pilot-agent's
)

// What the one who builds hands to the one who measures.
const (
	roomVar       = "WINGMAN_BENCH_ROOM"
	corednsVar    = "WINGMAN_BENCH_COREDNS"
	pilotAgentVar = "WINGMAN_BENCH_PILOT_AGENT"
	templateVar   = "WINGMAN_BENCH_ENVOY_BOOTSTRAP"
)

func inRoom() bool { return os.Getenv(roomVar) != "" }

func roomDir() (dir string, peers built) {
	return os.Getenv(roomVar), built{coredns: os.Getenv(corednsVar), pilotAgent: os.Getenv(pilotAgentVar), template: os.Getenv(templateVar)}
}

// enterRoom runs this program again, in the room, and waits for its end.
func enterRoom(ctx context.Context, dir string, peers built) error {
	if os.Getuid() != 0 {
		return errors.New("needs root: the servers run in a network of their own")
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), roomVar+"="+dir, corednsVar+"="+peers.coredns, pilotAgentVar+"="+peers.pilotAgent, templateVar+"="+peers.template)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Unshareflags: unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	return cmd.Run()
}

// furnishRoom brings the network up and puts the two files in place.
func furnishRoom(dir string) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	for _, ip := range []string{ownIP, istiosIP} {
		addr, err := netlink.ParseAddr(ip + "/32")
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(lo, addr); err != nil {
			return fmt.Errorf("add %s: %w", ip, err)
		}
	}
	for to, text := range map[string]string{
		"/etc/resolv.conf": "nameserver 127.0.0.53\n",
		"/etc/hosts":       "127.0.0.1 localhost " + istiodHost + "\n",
	} {
		from := filepath.Join(dir, filepath.Base(to))
		if err := os.WriteFile(from, []byte(text), 0o644); err != nil {
			return err
		}
		if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount over %s: %w", to, err)
		}
	}
	return nil
}
