// Command generate writes what packages hold beside the program and its units: the settings file with everything commented
// out, its manual page, the licences of all that is linked in, and the changelog in nfpm's form.
//
//	go run ./packaging/generate -version 1.2.3 -date 2026-01-31T12:00:00Z -to DIR
//	go run ./packaging/generate -version 1.2.3 -date 2026-01-31T12:00:00Z -sbom PROGRAM -to FILE   its bill of materials instead
//	go run ./packaging/generate -version 1.40.0-1 -date 2026-01-31T12:00:00Z -envoy-sbom PROGRAM -wheel FILE -to FILE   that of a package of Envoy
package main

import (
	"flag"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"time"

	"wingman/bootstrap"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("generate: ")
	version := flag.String("version", "", "version of the package")
	date := flag.String("date", "", "time of the version, RFC 3339")
	maintainer := flag.String("maintainer", "", "name and address for the changelog")
	to := flag.String("to", "", "folder to write to; of bills of materials: file")
	program := flag.String("sbom", "", "write the bill of materials of this program, and nothing else")
	envoy := flag.String("envoy-sbom", "", "write the bill of materials of a package of this Envoy, and nothing else")
	wheel := flag.String("wheel", "", "of -envoy-sbom: the wheel that the program is of")
	flag.Parse()
	if flag.NArg() > 0 || *version == "" || *to == "" {
		flag.Usage()
		os.Exit(2)
	}
	at, err := time.Parse(time.RFC3339, *date)
	if err != nil {
		log.Fatal(err)
	}
	switch {
	case *program != "":
		err = writeSBOM(*to, *program, *version, at)
	case *envoy != "":
		err = writeEnvoySBOM(*to, *envoy, *wheel, *version, at)
	default:
		err = generate(*to, *version, *maintainer, at.UTC())
	}
	if err != nil {
		log.Fatal(err)
	}
}

// generate writes every file into a folder of the repository's root.
func generate(to, version, maintainer string, at time.Time) error {
	modules, err := linkedModules()
	if err != nil {
		return err
	}
	copyright, err := debianCopyright(modules)
	if err != nil {
		return err
	}
	licences, err := allLicences(modules)
	if err != nil {
		return err
	}
	news, err := os.ReadFile("CHANGELOG.md")
	if err != nil {
		return err
	}
	docs := bootstrap.SettingDocs()
	for name, content := range map[string][]byte{
		"wingman.yaml":   []byte(settingsFile(docs)),
		"wingman.yaml.5": settingsManual(docs, version, at),
		"copyright":      copyright,
		"LICENSES":       licences,
		"changelog.yaml": []byte(changelog(string(news), version, maintainer, at)),
	} {
		if err := os.WriteFile(filepath.Join(to, name), content, 0o644); err != nil {
			return fmt.Errorf("write: %w", err)
		}
	}
	return nil
}
