package iptables

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// askSSHD returns the ports that sshd's effective configuration names. sshd tells only root, who can read its host keys.
func askSSHD(ctx context.Context, h *host) ([]uint16, error) {
	path, err := h.find("sshd")
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	out, err := h.run(ctx, "", path, "-T")
	if err != nil {
		return nil, err
	}
	return parseSSHDTest(out)
}

// parseSSHDTest reads the output of sshd -T: lines "port 22" and "listenaddress 0.0.0.0:22" or "[::]:22".
func parseSSHDTest(text string) ([]uint16, error) {
	var out []uint16
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "port":
			out = addPort(out, f[1])
		case "listenaddress":
			out = addPort(out, f[1][strings.LastIndex(f[1], ":")+1:])
		}
	}
	if len(out) == 0 {
		return nil, errors.New("sshd -T names no port")
	}
	return out, nil
}

func addPort(list []uint16, text string) []uint16 {
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 || slices.Contains(list, uint16(n)) {
		return list
	}
	return append(list, uint16(n))
}

// maxInclude bounds the depth of Include in sshd_config, as sshd does.
const maxInclude = 16

// readSSHDConfig finds the ports in sshd_config and what it includes; without any it is sshd's default, 22. It stops at the
// first Match, after which no port can stand.
func readSSHDConfig(path string, depth int) ([]uint16, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read sshd's configuration: %w", err)
	}
	ports, includes := parseSSHDConfig(string(b))
	for _, pattern := range includes {
		if !filepath.IsAbs(pattern) {
			pattern = filepath.Join(filepath.Dir(path), pattern)
		}
		files, err := filepath.Glob(pattern)
		if err != nil || depth >= maxInclude {
			return nil, fmt.Errorf("read sshd's configuration: %s: cannot follow Include %s", path, pattern)
		}
		for _, file := range files {
			more, err := readSSHDConfig(file, depth+1)
			if err != nil {
				return nil, err
			}
			for _, p := range more {
				if !slices.Contains(ports, p) {
					ports = append(ports, p)
				}
			}
		}
	}
	if depth == 0 && len(ports) == 0 {
		ports = []uint16{22}
	}
	return ports, nil
}

// parseSSHDConfig returns the ports and the Include patterns of one file of sshd_config(5).
func parseSSHDConfig(text string) (ports []uint16, includes []string) {
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		f := strings.FieldsFunc(line, func(r rune) bool { return r == ' ' || r == '\t' || r == '=' || r == '"' || r == '\n' || r == '\r' })
		if len(f) < 2 {
			continue
		}
		switch strings.ToLower(f[0]) {
		case "port":
			ports = addPort(ports, f[1])
		case "listenaddress": // host, host:port, [host]:port; a bare IPv6 address has several colons
			if ap, err := netip.ParseAddrPort(f[1]); err == nil {
				ports = addPort(ports, strconv.Itoa(int(ap.Port())))
			} else if host, port, ok := strings.Cut(f[1], ":"); ok && host != "" && !strings.Contains(port, ":") {
				ports = addPort(ports, port)
			}
		case "include":
			includes = append(includes, f[1:]...)
		case "match":
			return ports, includes
		}
	}
	return ports, includes
}

// systemdDirs is where units are, strongest first (systemd.unit(5)).
var systemdDirs = []string{"/etc/systemd/system", "/run/systemd/system", "/run/systemd/generator", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"}

// socketUnit returns the TCP ports of a socket unit and its drop-ins, and whether it is started at boot.
func socketUnit(dirs []string, unit string) (ports []uint16, enabled bool) {
	for _, dir := range dirs {
		if b, err := os.ReadFile(filepath.Join(dir, unit)); err == nil {
			ports = parseListenStream(ports, string(b))
			break
		}
	}
	dropIns := map[string]string{} // by name: the strongest of a name counts
	for _, dir := range slices.Backward(dirs) {
		files, _ := filepath.Glob(filepath.Join(dir, unit+".d", "*.conf"))
		for _, f := range files {
			dropIns[filepath.Base(f)] = f
		}
		if _, err := os.Lstat(filepath.Join(dir, "sockets.target.wants", unit)); err == nil {
			enabled = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(dropIns)) {
		if b, err := os.ReadFile(dropIns[name]); err == nil {
			ports = parseListenStream(ports, string(b))
		}
	}
	return ports, enabled
}

// parseListenStream adds the ports of ListenStream= in a unit file to those of the files before it; an empty one forgets them.
func parseListenStream(ports []uint16, text string) []uint16 {
	for line := range strings.Lines(text) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok || strings.TrimSpace(key) != "ListenStream" {
			continue
		}
		if value = strings.TrimSpace(value); value == "" {
			ports = nil
			continue
		}
		ports = addPort(ports, value[strings.LastIndex(value, ":")+1:])
	}
	return ports
}
