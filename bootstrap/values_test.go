package bootstrap

import (
	"slices"
	"testing"
)

func TestParseLevel(t *testing.T) {
	tests := []struct {
		text  string
		level string // empty: refused
		ports []uint16
	}{
		{"auto", "auto", nil},
		{"all", "all", nil},
		{"ports:[8080]", "ports", []uint16{8080}},
		{"ports:[8080, 9090,8080]", "ports", []uint16{8080, 9090}},
		{"ports: 8080,9090", "ports", []uint16{8080, 9090}},
		{"ports:[]", "", nil},
		{"ports:[8080", "", nil},
		{"ports:8080]", "", nil},
		{"ports:[0]", "", nil},
		{"ports:[70000]", "", nil},
		{"ports:*", "", nil},
		{"ports", "", nil},
		{"everything", "", nil},
		{"", "", nil},
	}
	for _, tt := range tests {
		got, ok := parseLevel(tt.text)
		if ok != (tt.level != "") || ok && (got.level != tt.level || !slices.Equal(got.ports, tt.ports)) {
			t.Errorf("parseLevel(%q) = %+v, %t; want %q %v", tt.text, got, ok, tt.level, tt.ports)
		}
	}
}
