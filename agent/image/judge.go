package image

import (
	"bytes"
	"compress/gzip"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
)

// sealMark begins what the agent has sealed (bootstrap/identity).
const sealMark = "wingman-sealed-1\n"

// contents says what is in a file that no two machines may share; empty: nothing. It is pure.
func contents(b []byte) (found []string) {
	h := holding{left: 8 * mostBytes}
	h.look(b, mostLayers)
	for _, is := range []struct {
		there bool
		what  string
	}{
		{h.sealed, "a sealed secret"}, {h.key, "a private key"}, {h.leaf, "a workload's certificate"}, {h.token, "a token"},
		{h.packed, "packed data that is too large to look at"},
	} {
		if is.there {
			found = append(found, is.what)
		}
	}
	for _, kind := range h.closed {
		found = append(found, "packed data ("+kind+") that is not looked into")
	}
	return found
}

// A holding is what was found in a file, or in what is packed in it.
type holding struct {
	sealed, key, leaf, token bool
	packed                   bool     // it holds more than is unpacked
	closed                   []string // kinds of packed data that are not unpacked
	left                     int      // bytes that may still be unpacked
}

// mostLayers is how often base64 and gzip are taken off: user-data may be packed for its cloud, and what it writes inside it once more.
const mostLayers = 5

func (h *holding) look(b []byte, layers int) {
	if h.left -= len(b); h.left < 0 {
		h.packed = true
		return
	}
	h.sealed = h.sealed || bytes.HasPrefix(b, []byte(sealMark))
	h.token = h.token || hasJWT(b)
	h.pem(b)
	h.der(b)
	if kind := closedBy(b); kind != "" && !slices.Contains(h.closed, kind) {
		h.closed = append(h.closed, kind)
	}
	if layers == 0 {
		return
	}
	if bytes.HasPrefix(b, []byte{0x1f, 0x8b}) {
		inner, tooLarge := gunzip(b)
		h.packed = h.packed || tooLarge
		h.look(inner, layers-1)
	}
	for _, inner := range base64s(b) {
		h.look(inner, layers-1)
	}
}

var (
	// One that is cut off, or inside something else, is one all the same. JSON has its line ends in letters.
	beginsKey = regexp.MustCompile(`-----BEGIN [A-Z ]*PRIVATE KEY-----(\s|\\+[nr])*[A-Za-z0-9+/=]`)
	// A JWT (RFC 7519) begins with an object in base64url, as `eyJ`.
	looksLikeJWT = regexp.MustCompile(`eyJ[A-Za-z0-9_-]{2,}\.[A-Za-z0-9_-]{2,}\.[A-Za-z0-9_-]*`)
)

// pem looks for PEM blocks, those inside YAML and JSON too.
func (h *holding) pem(b []byte) {
	h.key = h.key || beginsKey.Match(b)
	at := bytes.Index(b, []byte("-----BEGIN"))
	if at < 0 {
		return
	}
	var rest []byte
	for line := range bytes.Lines(bytes.ReplaceAll(b[at:], []byte(`\n`), []byte("\n"))) {
		rest = append(append(rest, bytes.Trim(bytes.TrimSuffix(bytes.TrimSpace(line), []byte(`\r`)), ` \`)...), '\n')
	}
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return
		}
		h.key = h.key || strings.HasSuffix(block.Type, "PRIVATE KEY")
		h.der(block.Bytes)
	}
}

// der looks at what may be one key or one certificate. Certificates without a name of the mesh's are public, and any machine may have them: those of CAs, those
// of web servers.
func (h *holding) der(b []byte) {
	if len(b) == 0 || b[0] != 0x30 { // a sequence
		return
	}
	var raw asn1.RawValue
	if _, err := asn1.Unmarshal(b, &raw); err != nil {
		return
	}
	b = raw.FullBytes // whatever stands behind it
	_, pkcs8 := x509.ParsePKCS8PrivateKey(b)
	_, pkcs1 := x509.ParsePKCS1PrivateKey(b)
	_, sec1 := x509.ParseECPrivateKey(b)
	h.key = h.key || pkcs8 == nil || pkcs1 == nil || sec1 == nil
	if c, err := x509.ParseCertificate(b); err == nil && !c.IsCA {
		h.leaf = h.leaf || slices.ContainsFunc(c.URIs, func(u *url.URL) bool { return u.Scheme == "spiffe" })
	}
}

// closedBy names packed data that this program has nothing to unpack with, by what it begins with. It may hold anything, and is so never clean.
func closedBy(b []byte) string {
	s := string(b[:min(len(b), 16)])
	for _, kind := range []struct{ name, begins string }{
		{"xz", "\xfd7zXZ\x00"}, {"zstd", "\x28\xb5\x2f\xfd"}, {"lz4", "\x04\x22\x4d\x18"}, {"lzip", "LZIP\x01"}, {"zip", "PK\x03\x04"}, {"7z", "7z\xbc\xaf\x27\x1c"},
	} {
		if strings.HasPrefix(s, kind.begins) {
			return kind.name
		}
	}
	if len(s) < 13 {
		return ""
	}
	switch {
	case s[:3] == "BZh" && (s[4:10] == "1AY&SY" || s[4:10] == "\x17rE8P\x90"):
		return "bzip2"
	case s[:3] == "\x5d\x00\x00" && s[5:13] == strings.Repeat("\xff", 8):
		return "lzma"
	}
	return ""
}

// gunzip unpacks what it can, at most mostBytes.
func gunzip(b []byte) (inner []byte, tooLarge bool) {
	r, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, false
	}
	inner, _ = io.ReadAll(io.LimitReader(r, mostBytes+1)) // what is cut off has a beginning
	return inner, len(inner) > mostBytes
}

// base64s decodes what looks like base64 in a text: each run of its letters alone, and runs that only white space parts as one, for lines are wrapped.
func base64s(b []byte) (decoded [][]byte) {
	const short = 20 // nothing that counts is shorter; a wrapped line is longer
	var joined []byte
	parts := 0
	flush := func() {
		if parts > 1 {
			decoded = append(decoded, fromBase64(joined))
		}
		joined, parts = nil, 0
	}
	for len(b) > 0 {
		n := 0
		for n < len(b) && inBase64(b[n]) {
			n++
		}
		run := b[:n]
		b = b[n:]
		if n >= short {
			decoded = append(decoded, fromBase64(run))
		}
		joined, parts = append(joined, run...), parts+1
		gap := 0
		for gap < len(b) {
			if c := b[gap]; c == ' ' || c == '\t' || c == '\r' || c == '\n' {
				gap++
			} else if c == '\\' && gap+1 < len(b) && (b[gap+1] == 'n' || b[gap+1] == 'r') { // in JSON
				gap += 2
			} else {
				break
			}
		}
		if n < short || gap == 0 { // the last line, a word, or something else between
			flush()
		}
		if gap == 0 && len(b) > 0 { // what is no base64
			gap = 1
			flush()
		}
		b = b[gap:]
	}
	flush()
	return decoded
}

func inBase64(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '+' || c == '/' || c == '-' || c == '_'
}

// fromBase64 decodes as much as there is, in either alphabet.
func fromBase64(b []byte) []byte {
	text := strings.NewReplacer("-", "+", "_", "/").Replace(string(b))
	if len(text)%4 == 1 { // cut off
		text = text[:len(text)-1]
	}
	out, _ := base64.RawStdEncoding.DecodeString(text)
	return out
}

// hasJWT looks for a token anywhere in a text.
func hasJWT(b []byte) bool { return slices.ContainsFunc(looksLikeJWT.FindAll(b, -1), isJWT) }

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

// ourRules reports rules of ours, or of Istio's agent, in a file that puts rules in at boot.
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
	{"placed.list", "the note of what wingman join put in place"},
	{"elsewhere", "the note of folders and logs outside of the agent's own"},
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
