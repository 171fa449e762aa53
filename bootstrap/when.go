package bootstrap

import (
	"reflect"
)

// When says when a change of a setting takes effect on a machine that runs.
type When string

const (
	// OnReload: systemctl reload wingman.
	OnReload When = "reload"
	// OnRestart: systemctl restart wingman. The daemon opened something by it when it started: a socket, a file, a cache.
	OnRestart When = "restart"
	// OnProxyRestart: systemctl restart wingman-proxy. The supervisor reads it when it starts, or Envoy was started with it.
	OnProxyRestart When = "restart of Envoy"
)

// field is where a setting is in a Config.
type field struct {
	same func(a, b *Config) bool
	copy func(to, from *Config)
}

func fieldAt[T any](at func(*Config) *T) field {
	return field{
		same: func(a, b *Config) bool { return reflect.DeepEqual(*at(a), *at(b)) },
		copy: func(to, from *Config) { *at(to) = *at(from) },
	}
}

// Changed returns the keys of the settings of that kind which differ, in the order of the docs. OnReload is not known here: ask for the others.
func Changed(old, now *Config, w When) (keys []string) {
	for _, s := range settings {
		if s.when == w && s.field.same != nil && !s.field.same(old, now) {
			keys = append(keys, s.key)
		}
	}
	return keys
}

// KeepUntilRestart returns now with what only a restart changes as it was in old: rules, watchdog and status then all speak of the sockets that
// are really there. waiting holds the keys of those that differ.
func KeepUntilRestart(old, now *Config) (kept *Config, waiting []string) {
	c := *now
	waiting = Changed(old, now, OnRestart)
	for _, s := range settings {
		if s.when == OnRestart {
			s.field.copy(&c, old)
		}
	}
	// What follows from them.
	c.Capture.DNSPort, c.Capture.DualStack = c.DNS.Listen.Port(), c.DualStack
	c.placeDNS()
	if old.Capture.User != now.Capture.User {
		o := old.Capture
		c.Capture.UserKnown, c.Capture.ProxyUID, c.Capture.ProxyGID = o.UserKnown, o.ProxyUID, o.ProxyGID
	}
	return &c, waiting
}
