package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"time"
)

// cyclonedx reads what is linked in from a program itself.
const cyclonedx = "github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.9.0"

// ownLicence is that of the program itself, and of all that belongs to it.
const ownLicence = "Apache-2.0"

// sbom is the bill of materials of a program that was built from this repository, as CycloneDX JSON: what is linked in, with hashes and licences.
func sbom(binary, version string, at time.Time, modules []module) ([]byte, error) {
	cmd := exec.Command("go", "run", cyclonedx, "bin", "-json", "-noserial", "-std", "-version", version, "-output", "-", binary)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go run %s: %w\n%s", cyclonedx, err, &errs)
	}
	licences := map[string][]string{}
	err = eachLicence(modules, func(m module, names []string, _, _ string) { licences[m.Path] = names })
	if err != nil {
		return nil, err
	}
	licences["std"] = licences[modules[0].Path]
	return finish(out, at, licences)
}

// finish makes a bill the same on every machine, with the commit's time and without hashes of the tool, and adds the licences. A component without
// one is an error.
func finish(bill []byte, at time.Time, licences map[string][]string) ([]byte, error) {
	var tree map[string]any
	if err := json.Unmarshal(bill, &tree); err != nil {
		return nil, fmt.Errorf("the bill of materials: %w", err)
	}
	metadata, _ := tree["metadata"].(map[string]any)
	self, _ := metadata["component"].(map[string]any)
	components, _ := tree["components"].([]any)
	if self == nil || len(components) == 0 {
		return nil, fmt.Errorf("the bill of materials: %d components of %v; expected a program and what is linked into it", len(components), self)
	}
	delete(tree, "serialNumber")
	metadata["timestamp"] = at.UTC().Format(time.RFC3339)
	if tools, ok := metadata["tools"].([]any); ok {
		for _, t := range tools {
			if tool, ok := t.(map[string]any); ok {
				delete(tool, "hashes")
			}
		}
	}
	self["licenses"] = licenceChoice([]string{ownLicence})
	for _, c := range components {
		component, _ := c.(map[string]any)
		name, _ := component["name"].(string)
		names := licences[name]
		if names == nil {
			return nil, fmt.Errorf("the bill of materials: component %q has no licence that was read", name)
		}
		component["licenses"] = licenceChoice(names)
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	err := e.Encode(tree)
	return b.Bytes(), err
}

// licenceChoice is CycloneDX's list of licences that all hold.
func licenceChoice(names []string) []any {
	var list []any
	for _, n := range names {
		list = append(list, map[string]any{"license": map[string]any{"id": n}})
	}
	return list
}

// writeSBOM writes the bill of materials of a program to a file.
func writeSBOM(to, binary, version string, at time.Time) error {
	modules, err := linkedModules()
	if err != nil {
		return err
	}
	bill, err := sbom(binary, version, at, modules)
	if err != nil {
		return err
	}
	return os.WriteFile(to, bill, 0o644)
}
