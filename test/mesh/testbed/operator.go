package testbed

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// This file is what an operator sees: istioctl, istiod's debug pages, and the same things asked of the machine.

// Istioctl runs istioctl as the administrator and returns its standard output.
func (b *Bed) Istioctl(t testing.TB, args ...string) string {
	t.Helper()
	ctx, cancel := step(t)
	defer cancel()
	out, err := b.Mesh.Istioctl(ctx, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// ProxyRows are the names in the rows of `istioctl proxy-status`, sorted, one for each stream that istiod holds.
func (b *Bed) ProxyRows(t testing.TB) (rows []string) {
	t.Helper()
	for line := range strings.Lines(b.Istioctl(t, "proxy-status", "--xds-address", "localhost:15012", "--insecure")) {
		if f := strings.Fields(line); len(f) > 0 && f[0] != "NAME" {
			rows = append(rows, f[0])
		}
	}
	slices.Sort(rows)
	return rows
}

// Acknowledged returns nil when istiod's syncz says that what was sent of each type to a proxy is what was acknowledged, and that
// these types, as the last part of their URL names them, were sent.
func (b *Bed) Acknowledged(t testing.TB, proxy string, types ...string) error {
	t.Helper()
	var rows []struct {
		Proxy     string
		Resources map[string]struct{ Sent, Acked string }
	}
	page := b.debug(t, "/debug/syncz", &rows)
	for _, r := range rows {
		if r.Proxy != proxy {
			continue
		}
		missing := slices.Clone(types)
		for typ, x := range r.Resources {
			short := typ[strings.LastIndex(typ, ".")+1:]
			missing = slices.DeleteFunc(missing, func(s string) bool { return s == short })
			if x.Sent == "" && short == "ProxyConfig" {
				continue // the agent asks for the mesh's trust bundle, and an istiod without ISTIO_MULTIROOT_MESH never sends one
			}
			if x.Sent == "" || x.Sent != x.Acked {
				return fmt.Errorf("%s: sent %q, acknowledged %q", typ, x.Sent, x.Acked)
			}
		}
		if len(missing) > 0 {
			return fmt.Errorf("%v not sent; there is %v", missing, r.Resources)
		}
		return nil
	}
	return fmt.Errorf("no row in %s", page)
}

// SameNames returns nil when `wingman dns table` on a machine is what istiod's ndsz shows for it.
func (b *Bed) SameNames(t testing.TB, v *VM) error {
	t.Helper()
	out, err := v.Run(t.Context(), "/usr/local/bin/wingman", "dns", "table")
	if err != nil {
		t.Fatal(err)
	}
	here := strings.Split(strings.TrimSpace(out), "\n")
	slices.Sort(here)

	var dump struct {
		Configs []struct {
			Table map[string]struct{ IPs []string }
		}
	}
	page := b.debug(t, "/debug/ndsz?proxyID="+v.Proxy(), &dump)
	if len(dump.Configs) != 1 {
		t.Fatalf("read ndsz: want one table:\n%s", page)
	}
	var there []string
	for host, info := range dump.Configs[0].Table {
		there = append(there, host+" "+strings.Join(info.IPs, " "))
	}
	slices.Sort(there)
	if !slices.Equal(here, there) {
		return fmt.Errorf("wingman dns table has\n%s\nistiod's ndsz has\n%s", strings.Join(here, "\n"), strings.Join(there, "\n"))
	}
	return nil
}

// debug decodes a page of istiod's monitoring port, and returns it as it is too.
func (b *Bed) debug(t testing.TB, path string, into any) []byte {
	t.Helper()
	page, err := b.Mesh.Debug(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(page, into); err != nil {
		t.Fatalf("read %s: %v:\n%s", path, err, page)
	}
	return page
}

// Rules are the lines of iptables-save and ip6tables-save for which the kernel does something to packets on the machine: rules, and
// chains of somebody's own.
func (v *VM) Rules(t testing.TB) (lines []string) {
	t.Helper()
	for _, save := range []string{"/usr/sbin/iptables-save", "/usr/sbin/ip6tables-save"} {
		out, err := v.Run(t.Context(), save)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(out) {
			if strings.HasPrefix(line, "-A") || strings.HasPrefix(line, ":") && strings.Contains(line, " - ") {
				lines = append(lines, line)
			}
		}
	}
	return lines
}
