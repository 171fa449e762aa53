package bootstrap

import (
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// credentialSources are where tokens can come from.
var credentialSources = []string{"systemd", "file", "exec", "gce", "aws", "azure"}

// credentials completes identity.credentials: its program, and what does not fit together.
func (l *loader) credentials() {
	id := &l.c.Identity
	if t, ok := l.ownTrees["identity.exec"]; ok {
		before := len(t.y.problems)
		id.Exec = readCredentialExec(t.y, t.node, "identity.exec")
		l.add(t.y.problems[before:]...)
		// Its arguments may hold secrets: only the program is shown.
		l.set("identity.exec", value{text: strings.Join(id.Exec.Command[:min(1, len(id.Exec.Command))], ""),
			file: t.y.file, line: t.y.line(t.key), key: "identity.exec", rank: rankWingman})
	}
	if s := l.source("identity.credentials"); len(id.Credentials) == 0 && s.File != "" && strings.Trim(s.Value, ", ") == "" {
		l.refuse(Error, "identity.credentials", "no source", "at least one of "+strings.Join(credentialSources, ", "), "")
	}
	for i, name := range id.Credentials {
		if slices.Contains(id.Credentials[:i], name) {
			l.refuse(Error, "identity.credentials", name+" twice", "each source once", "")
		}
	}
	switch wanted := slices.Contains(id.Credentials, "exec"); {
	case wanted && len(id.Exec.Command) == 0:
		if !l.isSet("identity.exec") { // else its own problem is said
			l.refuse(Error, "identity.credentials", "exec without a program", "identity.exec with a command", "")
		}
	case !wanted && len(id.Exec.Command) > 0:
		l.refuse(Warning, "identity.exec", "a program that is never asked", "exec among identity.credentials", "credentials: [file, exec]")
	}
}

// readCredentialExec reads the program that prints tokens: argv without a shell, what to add to its environment, and its time.
func readCredentialExec(y *yamlFile, n *yaml.Node, path string) (e CredentialExec) {
	r := &probeReader{y: y, strict: true, before: len(y.problems)}
	e.Timeout = 10 * time.Second
	r.mapping(n, path, func(name, key string, v *yaml.Node) bool {
		switch name {
		case "command":
			list, expected := fieldValue(v, listField)
			if expected != "" {
				y.refuse(v, key, describe(v), expected, "a program and its arguments, each an item")
				return true
			}
			for _, arg := range list.([]any) {
				e.Command = append(e.Command, arg.(string))
			}
			if len(e.Command) == 0 || !strings.HasPrefix(e.Command[0], "/") {
				y.refuse(v, key, describe(v), "a list that begins with the absolute path of a program", "there is no shell and no search path")
				e.Command = nil
			}
		case "env":
			e.Env = readExecEnv(y, v, key)
		case "timeoutSeconds":
			r.seconds(v, key, &e.Timeout, false)
		default:
			return false
		}
		return true
	}, []string{"command", "env", "timeoutSeconds"})
	if len(e.Command) == 0 && len(y.problems) == r.before {
		y.refuse(n, join(path, "command"), "no command", "a program and its arguments", "")
	}
	return e
}

func readExecEnv(y *yamlFile, n *yaml.Node, path string) map[string]string {
	if n.Kind != yaml.MappingNode {
		y.refuse(n, path, describe(n), "a mapping of names to texts", "")
		return nil
	}
	env := map[string]string{}
	for _, e := range y.entries(n, path) {
		text, ok := scalarText(e.value, false)
		if !ok || strings.ContainsAny(e.name, "=\x00") || strings.Contains(text, "\x00") {
			y.refuse(e.value, join(path, e.name), describe(e.value), "text", "")
			continue
		}
		env[e.name] = text
	}
	return env
}
