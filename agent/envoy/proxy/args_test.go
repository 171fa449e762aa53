package proxy

import (
	"slices"
	"strings"
	"testing"
	"time"

	"wingman/bootstrap"
)

func TestArguments(t *testing.T) {
	always := []string{"--disable-hot-restart", "--drain-time-s", "45", "--drain-strategy", "immediate", "--local-address-ip-version", "v4",
		"--file-flush-interval-msec", "1000", "--allow-unknown-static-fields", "--skip-deprecated-logs", "--log-format", logFormat}
	tests := []struct {
		name string
		cfg  bootstrap.Envoy
		ipv4 bool
		want []string
	}{
		{"as a VM has it", bootstrap.Envoy{DrainDuration: 45 * time.Second, LogLevel: "warning"}, true,
			append(slices.Clone(always), "--log-level", "warning", "--cpuset-threads")},
		{"levels of components in the level", bootstrap.Envoy{DrainDuration: 45 * time.Second, LogLevel: "info,upstream:debug, config:trace", ComponentLogLevel: "lost:debug"}, true,
			append(slices.Clone(always), "--log-level", "info", "--component-log-level", "upstream:debug,config:trace", "--cpuset-threads")},
		{"levels of components by themselves", bootstrap.Envoy{DrainDuration: 45 * time.Second, LogLevel: "error", ComponentLogLevel: "router:trace", Concurrency: 2}, true,
			append(slices.Clone(always), "--log-level", "error", "--component-log-level", "router:trace", "--concurrency", "2")},
	}
	for _, tt := range tests {
		if got := arguments(tt.cfg, tt.ipv4); !slices.Equal(got, tt.want) {
			t.Errorf("%s:\n got %q\nwant %q", tt.name, got, tt.want)
		}
	}
	if got := arguments(bootstrap.Envoy{}, false); !strings.Contains(strings.Join(got, " "), "--local-address-ip-version v6") {
		t.Errorf("a machine of IPv6 alone: %q", got)
	}
}
