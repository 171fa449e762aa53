package envoy

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestMissingProgramsAreNamed(t *testing.T) {
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "envoy")
	if err := os.WriteFile(program, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name   string
		places []string
		want   string
		part   string
	}{
		{"the first that is there", []string{filepath.Join(dir, "none"), program}, program, ""},
		{"nowhere", []string{filepath.Join(dir, "none"), filepath.Join(dir, "neither")}, "", "none or "},
		{"a file that is no program is not passed over", []string{plain, program}, "", "no program that this user may run"},
		{"a folder", []string{dir}, "", "no program that this user may run"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := find(tt.places)
			if got != tt.want || (tt.part == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), tt.part) {
				t.Errorf("find(%q) = %q, %v; want %q, error with %q", tt.places, got, err, tt.want, tt.part)
			}
		})
	}
}
