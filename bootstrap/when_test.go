package bootstrap

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// treeSamples are values of the settings that are no text.
var treeSamples = map[string]string{
	"workload.labels": "{tier: front}", "probe": "{tcpSocket: {port: 8080}}", "dns.forward": "{corp.example: [10.0.0.53]}", "log.scopes": "{dns: debug}", "identity.exec": "{command: [/usr/bin/get-token]}",
}

// A reload applies exactly the settings that say so; the others keep their value and are named.
func TestEachSettingWaitsForWhatTheTableSays(t *testing.T) {
	m := bare(t)
	old, problems := m.load()
	if old == nil {
		t.Fatal(problems)
	}
	for _, s := range settings {
		sample := maps.Collect(func(yield func(string, string) bool) {
			for k, v := range samples {
				if !yield(k, fmt.Sprintf("%q", v)) {
					return
				}
			}
			for k, v := range treeSamples {
				if !yield(k, v) {
					return
				}
			}
		})[s.key]
		if sample == "" {
			t.Errorf("%s has no sample", s.key)
			continue
		}
		yaml := fmt.Sprintf("%s: %s\n", s.key, sample)
		if section, name, ok := strings.Cut(s.key, "."); ok {
			yaml = fmt.Sprintf("%s: {%s: %s}\n", section, name, sample)
		}
		for _, file := range []string{"/etc/pki/root.pem", "/prov/root-cert.pem"} {
			m.write(file, fixtures(t)[rootCert])
		}
		m.write(wingmanYAML, yaml)
		now, problems := m.load()
		if now == nil {
			t.Errorf("%s: %v", yaml, problems)
			continue
		}
		kept, waiting := KeepUntilRestart(old, now)
		same := func(a, b *Config) string {
			x, y := *a, *b
			for _, c := range []*Config{&x, &y} {
				c.env, c.settings, c.proxyConfig, c.snapshot = nil, nil, nil, nil
			}
			return cmp.Diff(x, y, compareConfigs)
		}
		ofEnvoy := Changed(old, now, OnProxyRestart)
		switch s.when {
		case OnReload:
			if diff := same(now, kept); diff != "" || len(waiting)+len(ofEnvoy) > 0 {
				t.Errorf("%s: %v wait, want none (-now +kept):\n%s", s.key, append(waiting, ofEnvoy...), diff)
			}
		case OnRestart:
			if diff := same(old, kept); diff != "" || !slices.Equal(waiting, []string{s.key}) || len(ofEnvoy) > 0 {
				t.Errorf("%s: %v wait for a restart and %v for Envoy's, want it alone for a restart (-old +kept):\n%s", s.key, waiting, ofEnvoy, diff)
			}
		case OnProxyRestart:
			if diff := same(now, kept); diff != "" || len(waiting) > 0 || !slices.Equal(ofEnvoy, []string{s.key}) {
				t.Errorf("%s: %v wait for a restart and %v for Envoy's, want it alone for Envoy's (-now +kept):\n%s", s.key, waiting, ofEnvoy, diff)
			}
		}
	}
}

// The way by which DNS comes is opened at a start: what follows from it waits as it does.
func TestRulesForDNSWaitWithItsMode(t *testing.T) {
	load := func(yaml string) *Config {
		t.Helper()
		c, problems := newMachine(t, map[string]string{wingmanYAML: yaml}).load()
		if c == nil {
			t.Fatal(problems)
		}
		return c
	}
	redirect, resolved := load("dns: {capture: true}\n"), load("dns: {capture: true, mode: resolved}\n")
	for _, tc := range []struct{ old, now *Config }{{redirect, resolved}, {resolved, redirect}} {
		kept, waiting := KeepUntilRestart(tc.old, tc.now)
		if kept.DNS.Mode != tc.old.DNS.Mode || kept.Capture.DNS != tc.old.Capture.DNS || kept.Capture.DNSByResolved != tc.old.Capture.DNSByResolved || !slices.Equal(waiting, []string{"dns.mode"}) {
			t.Errorf("from %s to %s: mode %s, rules %t, names %t, waiting %v; want all as before", tc.old.DNS.Mode, tc.now.DNS.Mode, kept.DNS.Mode, kept.Capture.DNS, kept.Capture.DNSByResolved, waiting)
		}
	}
}
