package bootstrap

import (
	"cmp"
	"encoding/json"
	"strings"
)

// agentFlags are the flags of pilot-agent that mean something here, and whether each takes a value. They are settings by their
// names with dashes, as if they were variables.
var agentFlags = map[string]bool{
	"--log_output_level": true, "--log_as_json": false, "--log_target": true, "--proxyLogLevel": true, "--proxyComponentLogLevel": true,
	"--concurrency": true, "--domain": true, "--meshConfig": true,
}

// idleFlags are the flags of pilot-agent that have nothing to act on here, and whether each takes a value.
var idleFlags = map[string]bool{
	"--log_caller": true, "--log_stacktrace_level": true, "--log_rotate": true, "--log_rotate_max_age": true, "--log_rotate_max_backups": true,
	"--log_rotate_max_size": true, "--serviceCluster": true, "--outlierLogPath": true, "--profiling": false, "--stsPort": true, "--templateFile": true,
	"--tokenManagerPlugin": true, "--vklog": true, "-v": true,
}

// readAgentFlags takes ISTIO_AGENT_FLAGS apart as istio-start.sh does: at spaces, quotes mean nothing.
func (l *loader) readAgentFlags() {
	const name = "ISTIO_AGENT_FLAGS"
	v, ok := l.vars[name]
	if !ok {
		return
	}
	warn := func(found, expected, hint string) {
		l.add(Problem{Severity: Warning, File: v.file, Line: v.line, Key: name, Found: found, Expected: expected, Hint: hint})
	}
	words := strings.Fields(v.value)
	for i := 0; i < len(words); i++ {
		flag, text, joined := strings.Cut(words[i], "=")
		takesValue, known := agentFlags[flag]
		_, idle := idleFlags[flag]
		switch {
		case !strings.HasPrefix(flag, "-"):
			warn(quote(words[i]), "a flag such as --log_output_level=dns:debug", "the word has no effect")
			continue
		case idle:
			warn(flag, "a flag that acts on this agent", "it has no effect here")
			takesValue = idleFlags[flag]
		case !known:
			warn(flag, "a flag of pilot-agent", didYouMean(flag, mapKeys(agentFlags)))
			continue
		}
		if !joined && takesValue {
			if i+1 >= len(words) {
				warn(flag+" without a value", flag+"=VALUE", "it has no effect")
				break
			}
			i++
			text = words[i]
		}
		if !joined && !takesValue {
			text = "true"
		}
		if known {
			l.vars[flag] = envVar{value: text, file: v.file, line: v.line, rank: v.rank}
		}
	}
	if f, ok := l.vars["--meshConfig"]; ok && f.value != "" {
		l.c.Paths.MeshConfig = under(l.c.Root, f.value)
	}
}

// shownName is how a variable or flag is called in messages.
func shownName(name string) string {
	if strings.HasPrefix(name, "-") {
		return "ISTIO_AGENT_FLAGS " + name
	}
	return name
}

// conversions turn the text of a variable into the text of its setting, where the two differ. An empty result says nothing.
var conversions = map[string]func(c *Config, text string) (string, *badValue){
	"ISTIO_PILOT_PORT": func(c *Config, text string) (string, *badValue) {
		if _, bad := portNum.read(text); bad != nil {
			return "", bad
		}
		return "istiod." + c.systemNamespace + ".svc:" + strings.TrimSpace(text), nil
	},
	"CA_ROOT_CA":    certificateFile,
	"XDS_ROOT_CA":   certificateFile,
	"DISABLE_ENVOY": flagged("false"),

	"ISTIO_PROMETHEUS_ANNOTATIONS": annotatedTargets,

	"NATIVE_NFTABLES": flagged("native"),
	"--log_as_json":   flagged("json"),
	"--domain": func(c *Config, text string) (string, *badValue) { // pilot-agent's includes the namespace
		return strings.TrimPrefix(text, c.Namespace+"."), nil
	},
	"--log_output_level": func(_ *Config, text string) (string, *badValue) {
		level, _, bad := splitLogLevels(text)
		return level, bad
	},
	"--log_target": func(_ *Config, text string) (string, *badValue) {
		if text == "stdout" || text == "stderr" {
			return "", nil
		}
		return text, nil
	},
	"ISTIO_LOG_DIR": func(_ *Config, text string) (string, *badValue) {
		return strings.TrimSuffix(text, "/") + "/istio.log", nil
	},
}

// annotatedTargets lists the applications that pilot-agent would scrape (NewServer in pilot/cmd/pilot-agent/status/server.go): all of
// targets, else port with Istio's defaults, and none when scrape is false.
func annotatedTargets(_ *Config, text string) (string, *badValue) {
	type target struct{ Port, Path string }
	var a struct {
		target
		Scrape  string
		Targets []target
	}
	if err := json.Unmarshal([]byte(text), &a); err != nil {
		return "", &badValue{found: quote(text), expected: `a JSON object of texts such as {"scrape":"true","port":"8080","path":"/metrics"}`, hint: jsonReason(err)}
	}
	if a.Scrape == "false" {
		return "", nil
	}
	if len(a.Targets) == 0 {
		a.Targets = []target{{cmp.Or(a.Port, "80"), a.Path}}
	}
	var list []string
	for _, t := range a.Targets {
		if _, bad := portNum.read(t.Port); bad != nil {
			return "", bad
		}
		// A comma would end this target in the list; in a path or query it means the same escaped.
		list = append(list, t.Port+":"+strings.ReplaceAll(cmp.Or(t.Path, "/metrics"), ",", "%2C"))
	}
	return strings.Join(list, ","), nil
}

// certificateFile refuses pilot-agent's word for the roots of the system, which stand in a file elsewhere on each distribution.
func certificateFile(_ *Config, text string) (string, *badValue) {
	if text == "SYSTEM" {
		return "", &badValue{found: quote(text), expected: "a file of certificates", hint: "such as /etc/ssl/certs/ca-certificates.crt"}
	}
	return text, nil
}

// flagged is a variable that turns something on: true gives value, false says nothing.
func flagged(value string) func(*Config, string) (string, *badValue) {
	return func(_ *Config, text string) (string, *badValue) {
		on, bad := boolean.read(text)
		if bad != nil || !on {
			return "", bad
		}
		return value, nil
	}
}

// logScopes are the parts of the agent that log.
var logScopes = []string{"agent", "capture", "dns", "envoy", "health", "identity", "member", "proxy", "status", "xds"}

// istioScopes are pilot-agent's names for what our parts do.
var istioScopes = map[string]string{
	"ads": "xds", "delta": "xds", "xdsproxy": "xds", "healthcheck": "health", "cache": "identity", "ca": "identity", "citadelclient": "identity",
	"sds": "identity", "security": "identity", "spiffe": "identity", "iptables": "capture",
}

// splitLogLevels reads Istio's --log_output_level: levels by scope, as "info,dns:debug"; a level alone, or scope default, is
// that of everything else; scope "all" is every scope. Names of scopes are ours where pilot-agent has another.
func splitLogLevels(text string) (level string, scopes map[string]string, bad *badValue) {
	scopes = map[string]string{}
	for _, part := range strings.Split(text, ",") {
		scope, word, scoped := strings.Cut(strings.TrimSpace(part), ":")
		if !scoped {
			scope, word = "default", scope
		}
		if word == "" && !scoped {
			continue
		}
		parsed, bad := logLevel.read(word)
		if bad != nil {
			return "", nil, bad
		}
		switch scope {
		case "default", "all", "":
			level = parsed
		default:
			scopes[cmp.Or(istioScopes[scope], scope)] = parsed
		}
	}
	return level, scopes, nil
}
