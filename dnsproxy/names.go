package dnsproxy

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"github.com/miekg/dns"
)

// Inside the package a name is a key: RFC 1035 wire format, ASCII letters in lower case (RFC 4343), without the root's
// zero octet. A suffix of a key at a label boundary is the key of an ancestor, and appending two keys joins two names.

// maxName is the longest name on the wire, root octet included (RFC 1035 section 2.3.4).
const maxName = 255

// maxLabel is the longest label (RFC 1035 section 2.3.4).
const maxLabel = 63

// wildcardLabel starts the key of a wildcard name.
const wildcardLabel = "\x01*"

// appendKey appends the key of host, a name in the form the control plane writes: labels and dots, no escapes, the
// final dot optional.
func appendKey(key []byte, host string) ([]byte, error) {
	host = strings.TrimSuffix(host, ".")
	if host == "" {
		return nil, errors.New("empty name")
	}
	if len(host)+2 > maxName {
		return nil, fmt.Errorf("name of %d octets, at most %d", len(host)+2, maxName)
	}
	length := len(key) // where the length of the label goes
	key = append(key, 0)
	for i := 0; i <= len(host); i++ {
		if i < len(host) && host[i] != '.' {
			c := host[i]
			if c <= ' ' || c >= 0x7f || c == '\\' {
				return nil, fmt.Errorf("character %q", c)
			}
			key = append(key, lower(c))
			continue
		}
		switch n := len(key) - length - 1; {
		case n == 0:
			return nil, errors.New("empty label")
		case n > maxLabel:
			return nil, fmt.Errorf("label of %d octets, at most %d", n, maxLabel)
		default:
			key[length] = byte(n)
		}
		if i < len(host) {
			length = len(key)
			key = append(key, 0)
		}
	}
	return key, nil
}

// keyOf is appendKey for a name in presentation format (RFC 1035 section 5.1), escapes included, as miekg/dns has it.
// The root's key is empty.
func keyOf(name string) ([]byte, error) {
	var wire [maxName + 1]byte
	n, err := dns.PackDomainName(dns.Fqdn(name), wire[:], 0, nil, false)
	if err != nil {
		return nil, fmt.Errorf("name %q: %w", name, err)
	}
	return lowered(wire[:n-1]), nil
}

// lowered returns key with ASCII letters in lower case. Length octets are below 'A' and stay.
func lowered(key []byte) []byte {
	out := make([]byte, len(key))
	for i, c := range key {
		out[i] = lower(c)
	}
	return out
}

// lower is the lower case of an ASCII letter and any other octet unchanged.
func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c | 0x20
	}
	return c
}

// parent is the key without its first label; empty at the root.
func parent[K string | []byte](key K) K {
	if len(key) == 0 {
		return key
	}
	return key[1+int(key[0]):]
}

// isBelow reports whether key is a name under ancestor (or ancestor itself).
func isBelow[K, A string | []byte](key K, ancestor A) bool {
	for len(key) > len(ancestor) {
		key = parent(key)
	}
	return string(key) == string(ancestor)
}

// nameOf is the presentation form of a key, with the final dot.
func nameOf(key []byte) string {
	name, _, err := dns.UnpackDomainName(append(bytes.Clone(key), 0), 0)
	if err != nil {
		return "."
	}
	return name
}
