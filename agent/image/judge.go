package image

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"path"
	"regexp"
	"strings"
)

// sealMark begins what the agent has sealed (bootstrap/identity).
const sealMark = "wingman-sealed-1\n"

// contents says what is in a file that no two machines may share; empty: nothing. It is pure.
func contents(b []byte) (found []string) {
	if bytes.HasPrefix(b, []byte(sealMark)) {
		found = append(found, "a sealed secret")
	}
	key, leaf := keysAndLeaves(b)
	if key {
		found = append(found, "a private key")
	}
	if leaf {
		found = append(found, "a workload's certificate")
	}
	if hasJWT(b) {
		found = append(found, "a token")
	}
	return found
}

// keysAndLeaves looks for PEM blocks. A certificate of a CA is no secret, and belongs to the mesh.
func keysAndLeaves(b []byte) (key, leaf bool) {
	for rest := b; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		switch {
		case strings.HasSuffix(block.Type, "PRIVATE KEY"):
			key = true
		case block.Type == "CERTIFICATE":
			c, err := x509.ParseCertificate(block.Bytes)
			leaf = leaf || err == nil && !c.IsCA
		}
	}
	// One that is cut off, or inside something else, is one all the same.
	return key || beginsKey.Match(b), leaf
}

var (
	beginsKey = regexp.MustCompile(`-----BEGIN [A-Z ]*PRIVATE KEY-----\s*[A-Za-z0-9+/=]`)
	// A JWT (RFC 7519) begins with an object in base64url, as `eyJ`.
	looksLikeJWT = regexp.MustCompile(`eyJ[A-Za-z0-9_-]{2,}\.[A-Za-z0-9_-]{2,}\.[A-Za-z0-9_-]*`)
	// base64 of what begins so, as in cloud-init's write_files.
	looksLikeBase64 = regexp.MustCompile(`ZXlK[A-Za-z0-9+/]{16,}`)
)

// hasJWT looks for a token anywhere in a text, also in base64.
func hasJWT(b []byte) bool {
	for _, m := range looksLikeJWT.FindAll(b, -1) {
		if isJWT(m) {
			return true
		}
	}
	for _, m := range looksLikeBase64.FindAll(b, -1) {
		inner, err := base64.RawStdEncoding.DecodeString(string(m[:len(m)/4*4]))
		if err == nil && looksLikeJWT.Match(inner) && isJWT(looksLikeJWT.Find(inner)) {
			return true
		}
	}
	return false
}

func isJWT(b []byte) bool {
	parts := strings.Split(string(b), ".")
	if len(parts) != 3 {
		return false
	}
	for i, p := range parts[:2] {
		raw, err := base64.RawURLEncoding.DecodeString(p)
		var claims map[string]any
		if err != nil || json.Unmarshal(raw, &claims) != nil {
			return false
		}
		if _, ok := claims["alg"].(string); i == 0 && !ok {
			return false
		}
	}
	return true
}

// ours reports rules of ours, or of Istio's agent, in a file that puts rules in at boot.
func ourRules(b []byte) bool {
	return regexp.MustCompile(`(?m)^\s*(:|-A |-N |add chain |chain )[^\n]*\b(ISTIO|WINGMAN)_|table inet wingman\b`).Match(b)
}

// stateNames are the files of the state folder, by name or by the name of the folder in it.
var stateNames = []struct{ name, what string }{
	{"identity", "the machine's identity: key, certificates, copy of its token"},
	{"nametable", "the saved table of mesh names"},
	{"joined.json", "the note that this machine has joined, with its node and address"},
	{"last-good.json", "the settings that this machine joined with"},
	{"rules.json", "rules for the next boot, with this machine's addresses"},
	{"rules.in", "the note that rules are in the kernel"},
	{"drained.json", "the note that this machine is drained: its copies would be"},
	{"health.json", "the history of health"},
	{"placed.json", "the note of what wingman join put in place"},
}

// ofState says what a file of the state folder is; name is its path there.
func ofState(name string) string {
	first, _, _ := strings.Cut(name, "/")
	for _, s := range stateNames {
		if first == s.name || strings.HasPrefix(first, s.name+".") {
			return s.what
		}
	}
	return "state of an agent that ran here"
}

// byName says what a file in a folder of certificates, tokens or istioctl's files is that is somebody's whatever it holds; empty: it depends on what it holds.
func byName(file string) string {
	name := path.Base(file)
	switch {
	case name == "istio-token", strings.HasPrefix(name, "istio-token."):
		return "a token"
	case strings.Contains(name, ".before-join"):
		return "what wingman join replaced"
	case strings.HasSuffix(name, ".before-wingman"):
		return "what the agent's link replaced"
	case strings.HasPrefix(name, "envoy-rev"), name == "envoy_bootstrap.json":
		return "Envoy's bootstrap file, with the machine's address"
	}
	return ""
}

// loadedFrom lists the files that a unit's settings take credentials from: LoadCredential= and LoadCredentialEncrypted= with a path. set reports a
// SetCredential=, whose secret is in the unit itself. Other credentials than ours count too: whatever is given to the agent is secret. It is pure.
func loadedFrom(unit string) (files []string, set bool) {
	for line := range strings.Lines(unit) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok {
			continue
		}
		switch strings.TrimSpace(key) {
		case "LoadCredential", "LoadCredentialEncrypted":
			if _, file, ok := strings.Cut(strings.TrimSpace(value), ":"); ok && strings.HasPrefix(file, "/") {
				files = append(files, path.Clean(file))
			}
		case "SetCredential", "SetCredentialEncrypted":
			set = set || strings.TrimSpace(value) != ""
		}
	}
	return files, set
}
