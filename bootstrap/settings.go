package bootstrap

import (
	"net/netip"
	"time"
)

// A setting is one thing an operator may decide: how it is called, what it may be, where it goes. The table below is the only
// place that knows; reading, `config show`, suggestions and docs/settings.md follow it.
type setting struct {
	key    string   // dotted path in wingman.yaml
	istio  []string // Istio's variables, or flags of ISTIO_AGENT_FLAGS; a later one wins over an earlier one
	mesh   string   // field of mesh.yaml's defaultConfig
	def    string   // built-in value; empty: none
	proxy  bool     // when it stands in PROXY_CONFIG, the field comes before the variables
	empty  bool     // an empty value is a decision, not an absence
	when   When     // when a change takes effect
	doc    string   // what it means, one sentence or two
	reader          // what it may be and where it goes
}

// reader turns a setting's text into a field of Config.
type reader struct {
	accepts string // completes "accepts …" in the docs
	list    bool   // a YAML list will do
	read    func(c *Config, text string) *badValue
	tree    bool // not text: read by code of its own (labels, scopes, probe)
	field        // for settings whose change waits; its zero value: read alone knows the field
}

// one is a single value.
func one[T any](k kind[T], at func(*Config) *T) reader {
	return reader{accepts: k.expected, field: fieldAt(at), read: func(c *Config, text string) *badValue {
		v, bad := k.read(text)
		if bad == nil {
			*at(c) = v
		}
		return bad
	}}
}

// many is a list of values.
func many[T any](k kind[T], plural string, at func(*Config) *[]T) reader {
	list := listOf(k, plural)
	return reader{accepts: plural + ", each " + k.expected, list: true, read: func(c *Config, text string) *badValue {
		v, bad := list(text)
		if bad == nil {
			*at(c) = v
		}
		return bad
	}}
}

// firstAndMore is a list whose first value counts more than the others.
func firstAndMore[T any](k kind[T], plural string, first func(*Config) *T, more func(*Config) *[]T) reader {
	list := listOf(k, plural)
	return reader{accepts: "one or more " + plural + ", each " + k.expected, list: true, read: func(c *Config, text string) *badValue {
		v, bad := list(text)
		if bad != nil {
			return bad
		}
		if len(v) == 0 {
			return &badValue{found: quote(text), expected: k.expected}
		}
		*first(c), *more(c) = v[0], v[1:]
		return nil
	}}
}

// allOr is "*" or a list of values.
func allOr[T any](k kind[T], plural string, all func(*Config) *bool, at func(*Config) *[]T) reader {
	list := star(listOf(k, plural))
	return reader{accepts: `"*" or ` + plural + ", each " + k.expected, list: true, read: func(c *Config, text string) *badValue {
		everything, v, bad := list(text)
		if bad == nil {
			*all(c), *at(c) = everything, v
		}
		return bad
	}}
}

// captureReader reads the level of capture and, where it is one of ports, those.
var captureReader = reader{accepts: captureLevel.expected, read: func(c *Config, text string) *badValue {
	v, bad := captureLevel.read(text)
	if bad == nil {
		c.Capture.Level, c.Capture.OnlyPorts = v.level, v.ports
	}
	return bad
}}

// tree is a mapping that settings have code of their own for.
func tree[T any](accepts string, at func(*Config) *T) reader {
	return reader{accepts: accepts, tree: true, field: fieldAt(at)}
}

const year = 365 * 24 * time.Hour

// settings is the table, in the order of the docs.
var settings = []setting{
	// The control plane.
	{key: "istiod.namespace", when: OnReload, istio: []string{"ISTIO_SYSTEM_NAMESPACE"}, def: "istio-system",
		doc:    "Namespace of istiod, part of its default address.",
		reader: one(dnsLabel, func(c *Config) *string { return &c.systemNamespace })},
	{key: "istiod.address", when: OnReload, istio: pilotAddress.istio, mesh: "discoveryAddress", proxy: true,
		doc:    "Where istiod serves configuration; default `istiod.<istiod.namespace>.svc:15012`. ISTIO_PILOT_PORT changes only the port of the default.",
		reader: one(hostPort, func(c *Config) *string { return &c.Discovery.Address })},
	{key: "istiod.caAddress", when: OnReload, istio: []string{"CA_ADDR"},
		doc:    "Where certificates are signed; default: PILOT_ADDRESS, else ISTIO_PILOT_PORT, else istiod's default address if ISTIO_SYSTEM_NAMESPACE is set, else istiod.address.",
		reader: one(hostPort, func(c *Config) *string { return &c.CA.Address })},
	{key: "istiod.san", when: OnReload, istio: []string{"ISTIOD_SAN"},
		doc:    "Name to expect in istiod's certificate instead of the address's host; for an address that is an IP.",
		reader: one(dnsName, func(c *Config) *string { return &c.san })},
	{key: "istiod.rootCert", when: OnReload, istio: []string{"CA_ROOT_CA", "XDS_ROOT_CA"},
		doc:    "Certificates (PEM) that istiod's own must chain to; default root-cert.pem in identity.provisionedDir.",
		reader: one(filePath, func(c *Config) *string { return &c.Paths.RootCert })},

	// The workload.
	{key: "workload.namespace", when: OnReload, istio: []string{"POD_NAMESPACE", "ISTIO_NAMESPACE"}, def: "default",
		doc:    "Namespace of the workload.",
		reader: one(dnsLabel, func(c *Config) *string { return &c.Namespace })},
	{key: "workload.serviceAccount", when: OnReload, istio: []string{"SERVICE_ACCOUNT"}, def: "default",
		doc:    "Service account of the workload; with the namespace its identity.",
		reader: one(dnsLabel, func(c *Config) *string { return &c.ServiceAccount })},
	{key: "workload.trustDomain", when: OnReload, istio: []string{"TRUST_DOMAIN"}, def: "cluster.local",
		doc:    "Trust domain of the workload's SPIFFE id.",
		reader: one(dnsName, func(c *Config) *string { return &c.TrustDomain })},
	{key: "workload.group", when: OnReload, istio: []string{"ISTIO_META_AUTO_REGISTER_GROUP"}, empty: true,
		doc:    "WorkloadGroup that istiod makes this machine's WorkloadEntry from; empty: the machine is not registered.",
		reader: one(optionalLabel, func(c *Config) *string { return &c.AutoRegisterGroup })},
	{key: "workload.entryGrace", when: OnReload, def: "12s",
		doc:    "How long istiod keeps the WorkloadEntry of a machine that left, with a margin (istiod's PILOT_WORKLOAD_ENTRY_GRACE_PERIOD is 10s): labels change only with a new entry, so when Envoy comes or goes for good the machine stays out of the mesh for so long.",
		reader: one(duration(0, 10*time.Minute), func(c *Config) *time.Duration { return &c.EntryGrace })},
	{key: "workload.name", when: OnReload, istio: []string{"ISTIO_META_WORKLOAD_NAME"}, empty: true,
		doc:    "Name of the workload in telemetry.",
		reader: one(anyText, func(c *Config) *string { return &c.WorkloadName })},
	{key: "workload.service", when: OnReload, istio: []string{"ISTIO_SERVICE"}, mesh: "serviceCluster", proxy: true,
		doc:    "Envoy's cluster name of this node; default `<app label>.<namespace>`.",
		reader: one(anyText, func(c *Config) *string { return &c.Service })},
	{key: "workload.instance", when: OnReload, istio: []string{"POD_NAME"},
		doc:    "Name of this machine in its node id; default the short host name.",
		reader: one(anyText, func(c *Config) *string { return &c.instance })},
	{key: "workload.labels", when: OnReload, istio: []string{"ISTIO_METAJSON_LABELS"},
		doc:    "Labels of the WorkloadEntry; those of wingman.yaml are added to Istio's, or replace them.",
		reader: tree("a mapping of labels to values", func(c *Config) *map[string]string { return &c.Labels })},
	{key: "workload.addresses", when: OnReload, istio: []string{"INSTANCE_IP", "ISTIO_SVC_IP"},
		doc:    "Address of this machine in the mesh, one per family; default the source address of the route to istiod.",
		reader: many(instanceAddr, "at most one IPv4 and one IPv6 address", func(c *Config) *[]netip.Addr { return &c.InstanceIPs })},
	{key: "workload.cluster", when: OnReload, istio: []string{"ISTIO_META_CLUSTER_ID"}, empty: true,
		doc:    "Cluster whose istiod this is, as istiod knows it.",
		reader: one(anyText, func(c *Config) *string { return &c.ClusterID })},
	{key: "workload.mesh", when: OnReload, istio: []string{"ISTIO_META_MESH_ID"}, mesh: "meshId", empty: true,
		doc:    "Mesh id in telemetry.",
		reader: one(anyText, func(c *Config) *string { return &c.MeshID })},
	{key: "workload.network", when: OnReload, istio: []string{"ISTIO_META_NETWORK"}, empty: true,
		doc:    "Network of this machine; endpoints of other networks are reached by their gateway.",
		reader: one(anyText, func(c *Config) *string { return &c.Network })},
	{key: "workload.domain", when: OnReload, istio: []string{"--domain"}, def: "svc.cluster.local",
		doc:    "Domain of the cluster's services.",
		reader: one(dnsName, func(c *Config) *string { return &c.Domain })},
	{key: "dualStack", when: OnRestart, istio: []string{"DUAL_STACK", "ISTIO_DUAL_STACK"}, def: "false",
		doc:    "IPv4 and IPv6 both: an address of each family, rules for both.",
		reader: one(boolean, func(c *Config) *bool { return &c.DualStack })},
	{key: "user", when: OnRestart, istio: []string{"ENVOY_USER", "EXEC_USER"}, def: "istio-proxy",
		doc:    "User of agent and Envoy; traffic of its processes is never captured.",
		reader: one(userName, func(c *Config) *string { return &c.Capture.User })},

	// Identity.
	{key: "identity.ttl", when: OnReload, istio: []string{"SECRET_TTL"}, def: "24h",
		doc:    "Life to ask for; istiod may give less. Counts from the next certificate on (wingman cert renew).",
		reader: one(duration(5*time.Second, 10*year), func(c *Config) *time.Duration { return &c.Identity.TTL })},
	{key: "identity.graceRatio", when: OnReload, istio: []string{"SECRET_GRACE_PERIOD_RATIO"}, def: "0.5",
		doc:    "Part of a certificate's life at whose remaining it is renewed.",
		reader: one(ratio, func(c *Config) *float64 { return &c.Identity.GraceRatio })},
	{key: "identity.graceJitter", when: OnReload, istio: []string{"SECRET_GRACE_PERIOD_RATIO_JITTER"}, def: "0.01",
		doc:    "Random change of graceRatio, up or down, so that many machines do not renew at once.",
		reader: one(jitter, func(c *Config) *float64 { return &c.Identity.GraceJitter })},
	{key: "identity.algorithm", when: OnReload, istio: []string{"ECC_SIGNATURE_ALGORITHM"}, def: "RSA",
		doc:    "Kind of key. Counts from the next certificate on (wingman cert renew).",
		reader: one(oneOf("RSA", "ECDSA"), func(c *Config) *string { return &c.Identity.Algorithm })},
	{key: "identity.rsaBits", when: OnReload, istio: []string{"WORKLOAD_RSA_KEY_SIZE"}, def: "2048",
		doc:    "Size of an RSA key. Counts from the next certificate on (wingman cert renew).",
		reader: one(rsaBits, func(c *Config) *int { return &c.Identity.RSABits })},
	{key: "identity.curve", when: OnReload, istio: []string{"ECC_CURVE"}, def: "P256",
		doc:    "Curve of an ECDSA key. Counts from the next certificate on (wingman cert renew).",
		reader: one(oneOf("P256", "P384"), func(c *Config) *string { return &c.Identity.Curve })},
	{key: "identity.pkcs8", when: OnReload, istio: []string{"PKCS8_KEY"}, def: "false",
		doc:    "Write keys as PKCS#8. Counts from the next certificate on (wingman cert renew).",
		reader: one(boolean, func(c *Config) *bool { return &c.Identity.PKCS8 })},
	{key: "identity.certSigner", when: OnReload, istio: []string{"ISTIO_META_CERT_SIGNER"}, empty: true,
		doc:    "Kubernetes signer that istiod forwards requests to.",
		reader: one(anyText, func(c *Config) *string { return &c.Identity.CertSigner })},
	{key: "identity.credentials", when: OnReload, def: "systemd,file",
		doc:    "Where tokens come from, in the order to try: systemd (LoadCredential=istio-token), file (identity.tokenFile), exec (identity.exec), and the clouds' metadata services ([identity.md](identity.md)).",
		reader: many(oneOf(credentialSources...), "sources", func(c *Config) *[]string { return &c.Identity.Credentials })},
	{key: "identity.audience", when: OnReload, def: "istio-ca",
		doc:    "What tokens must be for, and what clouds are asked for: one of istiod's TOKEN_AUDIENCES. For azure the application's id or URI.",
		reader: one(oneWord, func(c *Config) *string { return &c.Identity.Audience })},
	{key: "identity.exec", when: OnReload,
		doc:    "Program that prints a token as JSON, as kubectl's credential plugins do: command (argv, no shell), env (names to texts), timeoutSeconds (10).",
		reader: tree("a mapping with command, env and timeoutSeconds", func(c *Config) *CredentialExec { return &c.Identity.Exec })},
	{key: "identity.azureClient", when: OnReload, empty: true,
		doc:    "Client id of a user-assigned managed identity; empty: the machine's own.",
		reader: one(anyText, func(c *Config) *string { return &c.Identity.AzureClient })},
	{key: "identity.tokenFile", when: OnReload, def: "/var/run/secrets/tokens/istio-token",
		doc:    "Token of source file: a JWT, or JSON that holds one; used at once when it changes. As all files and programs that the agent is to read or run: not below /home, /root and /tmp, which its unit does not see.",
		reader: one(filePath, func(c *Config) *string { return &c.Paths.Token })},
	{key: "identity.workloadSocket", when: OnReload, istio: []string{"WORKLOAD_IDENTITY_SOCKET_FILE"}, empty: true,
		doc:    "SPIFFE Workload API, a SPIRE agent's say, that certificates and roots come from instead of istiod's CA; no token is needed then. A name without a folder is one in /var/run/secrets/workload-spiffe-uds. Empty: none.",
		reader: one(socketFile, func(c *Config) *string { return &c.Paths.WorkloadSocket })},
	{key: "identity.seal", when: OnReload, def: "false",
		doc:    "Seal the private key and the copy of the token at rest, with the key that `wingman cert seal` makes ([identity.md](identity.md)).",
		reader: one(boolean, func(c *Config) *bool { return &c.Identity.Seal })},
	{key: "identity.provisionedDir", when: OnReload, istio: []string{"PROV_CERT"}, def: "/etc/certs", empty: true,
		doc:    "Folder with istiod's root-cert.pem; empty: /etc/certs.",
		reader: one(optionalPath, func(c *Config) *string { return &c.Paths.ProvCert })},
	{key: "identity.outputDir", when: OnReload, istio: []string{"OUTPUT_CERTS"}, def: "/etc/certs", empty: true,
		doc:    "Folder where applications find key.pem, cert-chain.pem and root-cert.pem; empty: nowhere. Outside /etc/certs the unit needs leave to write there: systemctl edit wingman, [Service] ReadWritePaths=.",
		reader: one(optionalPath, func(c *Config) *string { return &c.Paths.OutputCerts })},
	{key: "identity.groups", when: OnReload, empty: true,
		doc:    "Groups whose members may read key and certificates: each has copies of its own in the folder groups/GROUP of identity.outputDir.",
		reader: many(fileGroup, "groups", func(c *Config) *[]string { return &c.Identity.Groups })},

	// Configuration stream and health.
	{key: "drain.propagation", when: OnReload, def: "5s",
		doc:    "How long `wingman drain`, and a stop with Envoy, wait after istiod was told for the news to reach every peer.",
		reader: one(duration(0, 10*time.Minute), func(c *Config) *time.Duration { return &c.DrainPropagation })},
	{key: "xds.delta", when: OnReload, istio: []string{"ISTIO_DELTA_XDS"}, def: "true",
		doc:    "Incremental xDS; false: state of the world.",
		reader: one(boolean, func(c *Config) *bool { return &c.XDS.Delta })},
	{key: "probe", when: OnReload, mesh: "readinessProbe",
		doc:    "Health check of the application, in the shape of a WorkloadGroup's probe: one of httpGet, tcpSocket, exec, grpc, and initialDelaySeconds, timeoutSeconds (1), periodSeconds (10), successThreshold (1), failureThreshold (1). In wingman.yaml also systemdUnit: a unit that has to be active; all: a list of probes that all have to pass; exec's memoryBytes (536870912); damping: {changes, windowSeconds, holdSeconds} for a workload that flaps.",
		reader: tree("a readinessProbe", func(c *Config) **Probe { return &c.Probe })},
	{key: "probeLocalhost", when: OnReload, istio: []string{"REWRITE_PROBE_LEGACY_LOCALHOST_DESTINATION"}, def: "false",
		doc:    "Probe localhost instead of the instance address where the probe names no host.",
		reader: one(boolean, func(c *Config) *bool { return &c.ProbeLocalhost })},

	// DNS.
	{key: "dns.capture", when: OnReload, istio: []string{"REDIRECT_DNS", "ISTIO_META_DNS_CAPTURE"}, def: "false",
		doc:    "Applications' DNS queries come to the agent, in the way that dns.mode says.",
		reader: one(boolean, func(c *Config) *bool { return &c.DNS.Capture })},
	{key: "dns.mode", when: OnRestart, def: DNSRedirect,
		doc:    "How queries come to the agent: redirect (rules for port 53), or resolved (no rules: systemd-resolved is told which names are the mesh's, and asks the agent for those alone).",
		reader: one(oneOf(DNSRedirect, DNSResolved), func(c *Config) *string { return &c.DNS.Mode })},
	{key: "dns.captureAll", when: OnReload, istio: []string{"CAPTURE_ALL_DNS"}, def: "false",
		doc:    "Redirect every query to port 53, not only those to the servers of resolv.conf.",
		reader: one(boolean, func(c *Config) *bool { return &c.DNS.CaptureAll })},
	{key: "dns.listen", when: OnRestart, istio: []string{"DNS_PROXY_ADDR"}, def: "localhost:15053",
		doc:    "Where the agent answers DNS.",
		reader: one(listenAddr, func(c *Config) *netip.AddrPort { return &c.DNS.Listen })},
	{key: "dns.forwardTimeout", when: OnRestart, istio: []string{"DNS_FORWARD_TIMEOUT"}, def: "5s",
		doc:    "Longest wait for an upstream answer, over all servers and tries, less a tenth; resolv.conf's timeout, where shorter, bounds it too.",
		reader: one(duration(10*time.Millisecond, time.Minute), func(c *Config) *time.Duration { return &c.DNS.ForwardTimeout })},
	{key: "dns.forward", when: OnRestart,
		doc:    "Split DNS: names below a suffix are asked of servers of their own, the longest suffix first, as corp.example: [10.0.0.53].",
		reader: tree("a mapping of name suffixes to servers", func(c *Config) *map[string][]netip.AddrPort { return &c.DNS.Forward })},
	{key: "dns.cacheSize", when: OnRestart, def: "4194304",
		doc:    "Bytes of upstream answers to remember; 0: none.",
		reader: one(cacheSize, func(c *Config) *int { return &c.DNS.CacheSize })},
	{key: "dns.maxStale", when: OnRestart, def: "1h",
		doc:    "How long after its time an upstream answer may still be given while no upstream answers (RFC 8767); 0s: never.",
		reader: one(duration(0, 7*24*time.Hour), func(c *Config) *time.Duration { return &c.DNS.MaxStale })},
	{key: "dns.ipv6", when: OnReload, def: "true",
		doc:    "Whether mesh names have IPv6 addresses on this machine; false: where the mesh carries none, AAAA is answered with no data.",
		reader: one(boolean, func(c *Config) *bool { return &c.DNS.IPv6 })},

	// Capture.
	{key: "capture", when: OnReload, def: "auto",
		doc:    "How much is captured: none, dns, all, ports:[8080, 9090] (DNS, and of all other traffic only inbound connections to these ports), or auto (all with Envoy, dns without).",
		reader: captureReader},
	{key: "rules.custom", when: OnReload, istio: []string{"ISTIO_CUSTOM_IP_TABLES"}, def: "false",
		doc:    "The operator keeps the capture rules; the agent adds and removes none.",
		reader: one(boolean, func(c *Config) *bool { return &c.Capture.CustomTables })},
	{key: "rules.mode", when: OnReload, istio: []string{"ISTIO_INBOUND_INTERCEPTION_MODE"}, def: "REDIRECT",
		doc:    "How inbound traffic reaches Envoy; TPROXY keeps the client's address. NONE captures no TCP in either direction, as in Istio; DNS is captured all the same.",
		reader: one(oneOf("REDIRECT", "TPROXY", "NONE"), func(c *Config) *string { return &c.Capture.Mode })},
	{key: "rules.tproxyMark", when: OnReload, istio: []string{"ISTIO_INBOUND_TPROXY_MARK"}, def: "1337",
		doc:    "Mark of packets that TPROXY diverts.",
		reader: one(packetMark, func(c *Config) *uint32 { return &c.Capture.TProxyMark })},
	{key: "rules.tproxyTable", when: OnReload, istio: []string{"ISTIO_INBOUND_TPROXY_ROUTE_TABLE"}, def: "133",
		doc:    "Routing table that TPROXY uses.",
		reader: one(routeTable, func(c *Config) *int { return &c.Capture.TProxyTable })},
	{key: "rules.inboundPorts", when: OnReload, istio: []string{"ISTIO_INBOUND_PORTS"}, empty: true,
		doc:    "Inbound ports that are captured.",
		reader: allOr(portNum, "ports", func(c *Config) *bool { return &c.Capture.InboundAll }, func(c *Config) *[]uint16 { return &c.Capture.InboundPorts })},
	{key: "rules.inboundExcludePorts", when: OnReload, istio: []string{"ISTIO_LOCAL_EXCLUDE_PORTS"}, empty: true,
		doc:    `Inbound ports that are not, when inboundPorts is "*".`,
		reader: many(portNum, "ports", func(c *Config) *[]uint16 { return &c.Capture.InboundExcludePorts })},
	{key: "rules.outboundCIDRs", when: OnReload, istio: []string{"ISTIO_SERVICE_CIDR"}, empty: true,
		doc:    "Destinations whose traffic is captured.",
		reader: allOr(cidr, "CIDRs", func(c *Config) *bool { return &c.Capture.OutboundAll }, func(c *Config) *[]netip.Prefix { return &c.Capture.OutboundCIDRs })},
	{key: "rules.outboundExcludeCIDRs", when: OnReload, istio: []string{"ISTIO_SERVICE_EXCLUDE_CIDR"}, empty: true,
		doc:    "Destinations whose traffic is not.",
		reader: many(cidr, "CIDRs", func(c *Config) *[]netip.Prefix { return &c.Capture.OutboundExcludeCIDRs })},
	{key: "rules.outboundPorts", when: OnReload, istio: []string{"ISTIO_OUTBOUND_PORTS"}, empty: true,
		doc:    "Destination ports that are captured whatever the destination.",
		reader: many(portNum, "ports", func(c *Config) *[]uint16 { return &c.Capture.OutboundPorts })},
	{key: "rules.outboundExcludePorts", when: OnReload, istio: []string{"ISTIO_LOCAL_OUTBOUND_PORTS_EXCLUDE"}, empty: true,
		doc:    "Destination ports, or ranges of them, that are not.",
		reader: many(portRange, "ports", func(c *Config) *[]PortRange { return &c.Capture.OutboundExcludePorts })},
	{key: "rules.groups", when: OnReload, istio: []string{"ISTIO_OUTBOUND_OWNER_GROUPS"}, def: "*", empty: true,
		doc:    "Groups whose processes' outbound traffic is captured; at most 64. Empty: nobody's.",
		reader: allOr(groupName, "groups", func(c *Config) *bool { return &c.Capture.OwnerGroupsAll }, func(c *Config) *[]string { return &c.Capture.OwnerGroups })},
	{key: "rules.excludeGroups", when: OnReload, istio: []string{"ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE"}, empty: true,
		doc:    `Groups whose traffic is not, when groups is "*".`,
		reader: many(groupName, "groups", func(c *Config) *[]string { return &c.Capture.OwnerGroupsExclude })},
	{key: "rules.excludeInterfaces", when: OnReload, istio: []string{"ISTIO_EXCLUDE_INTERFACES"}, empty: true,
		doc:    "Interfaces whose traffic is left alone in both directions.",
		reader: many(iface, "interfaces", func(c *Config) *[]string { return &c.Capture.ExcludeInterfaces })},
	{key: "rules.virtualInterfaces", when: OnReload, istio: []string{"KUBE_VIRT_INTERFACES"}, empty: true,
		doc:    "Bridges of containers or guests, whose inbound traffic is treated as outbound.",
		reader: many(iface, "interfaces", func(c *Config) *[]string { return &c.Capture.VirtualInterfaces })},
	{key: "rules.inboundWhenDown", when: OnReload, def: "closed",
		doc:    "What becomes of captured inbound connections while Envoy is down: closed refuses them, open lets them past it.",
		reader: one(closedOrOpen, func(c *Config) *bool { return &c.Capture.OpenInbound })},
	{key: "rules.outboundWhenDown", when: OnReload, def: "closed",
		doc:    "The same for outbound connections.",
		reader: one(closedOrOpen, func(c *Config) *bool { return &c.Capture.OpenOutbound })},
	{key: "rules.captureMetadata", when: OnReload, def: "false",
		doc:    "Capture traffic to the cloud's metadata addresses (169.254.169.254 and others) too.",
		reader: one(boolean, func(c *Config) *bool { return &c.Capture.Metadata })},
	{key: "rules.dropInvalid", when: OnReload, istio: []string{"DROP_INVALID", "INVALID_DROP"}, def: "false",
		doc:    "Drop inbound packets that conntrack calls invalid.",
		reader: one(boolean, func(c *Config) *bool { return &c.Capture.DropInvalid })},
	{key: "rules.loopbackCIDR", when: OnReload, istio: []string{"ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR"}, def: "127.0.0.1/32",
		doc:    "IPv4 loopback addresses that traffic on lo may have when it is meant for the application.",
		reader: one(loopback, func(c *Config) *netip.Prefix { return &c.Capture.LoopbackCIDR })},
	{key: "rules.proxyUID", when: OnReload, istio: []string{"PROXY_UID"},
		doc:    "Uids whose traffic is never captured, that of agent and Envoy first; default that of user.",
		reader: firstAndMore(userID, "ids", func(c *Config) *uint32 { return &c.Capture.ProxyUID }, func(c *Config) *[]uint32 { return &c.Capture.MoreUIDs })},
	{key: "rules.proxyGID", when: OnReload, istio: []string{"PROXY_GID"},
		doc:    "Gids whose traffic is never captured, that of agent and Envoy first; default that of user.",
		reader: firstAndMore(userID, "ids", func(c *Config) *uint32 { return &c.Capture.ProxyGID }, func(c *Config) *[]uint32 { return &c.Capture.MoreGIDs })},
	{key: "rules.proxyPort", when: OnReload, def: "15001",
		doc:    "Envoy's port for outbound traffic; the mesh's proxyListenPort.",
		reader: one(portNum, func(c *Config) *uint16 { return &c.Capture.ProxyPort })},
	{key: "rules.inboundPort", when: OnReload, istio: []string{"INBOUND_CAPTURE_PORT"}, def: "15006",
		doc:    "Envoy's port for inbound traffic; the mesh's proxyInboundListenPort.",
		reader: one(portNum, func(c *Config) *uint16 { return &c.Capture.InboundPort })},
	{key: "rules.tunnelPort", when: OnReload, istio: []string{"INBOUND_TUNNEL_PORT"}, def: "15008",
		doc:    "Envoy's port for HBONE.",
		reader: one(portNum, func(c *Config) *uint16 { return &c.Capture.TunnelPort })},
	{key: "rules.backend", when: OnReload, istio: []string{"FORCE_IPTABLES_BINARY", "NATIVE_NFTABLES"}, def: "auto",
		doc:    "What carries the rules: iptables in its nft or legacy form, native nftables, or auto (the form that holds rules already). NATIVE_NFTABLES=true is native.",
		reader: one(oneOf("auto", "nft", "legacy", "native"), func(c *Config) *string { return &c.Capture.Backend })},

	// Envoy, status, logs.
	{key: "envoy.enabled", when: OnProxyRestart, istio: []string{"DISABLE_ENVOY"}, def: "auto",
		doc:    "Whether Envoy runs here; auto: when its program is there. DISABLE_ENVOY=true is false.",
		reader: one(oneOf("auto", "true", "false"), func(c *Config) *string { return &c.Envoy.Enabled })},
	{key: "envoy.path", when: OnProxyRestart, mesh: "binaryPath",
		doc:    "Envoy's program; default /usr/local/bin/envoy, then /usr/libexec/wingman-envoy/envoy, then /usr/bin/envoy.",
		reader: one(filePath, func(c *Config) *string { return &c.Envoy.Path })},
	{key: "envoy.adminPort", when: OnProxyRestart, mesh: "proxyAdminPort", def: "15000",
		doc:    "Envoy's admin port on loopback.",
		reader: one(portNum, func(c *Config) *uint16 { return &c.Envoy.AdminPort })},
	{key: "envoy.concurrency", when: OnProxyRestart, istio: []string{"--concurrency"}, mesh: "concurrency", def: "0",
		doc:    "Envoy's worker threads; 0: one per CPU.",
		reader: one(threads, func(c *Config) *int { return &c.Envoy.Concurrency })},
	{key: "envoy.logLevel", when: OnProxyRestart, istio: []string{"--proxyLogLevel"}, def: "warning",
		doc:    "Envoy's log level, as info, or info,upstream:debug.",
		reader: one(envoyLevel, func(c *Config) *string { return &c.Envoy.LogLevel })},
	{key: "envoy.componentLogLevel", when: OnProxyRestart, istio: []string{"--proxyComponentLogLevel"},
		doc:    "Envoy's log level by component, as upstream:debug,router:trace.",
		reader: one(anyText, func(c *Config) *string { return &c.Envoy.ComponentLogLevel })},
	{key: "envoy.drainDuration", when: OnProxyRestart, mesh: "drainDuration", def: "45s",
		doc:    "Time over which a draining Envoy closes connections.",
		reader: one(wholeSeconds(time.Second, time.Hour), func(c *Config) *time.Duration { return &c.Envoy.DrainDuration })},
	{key: "envoy.terminationDrain", when: OnProxyRestart, mesh: "terminationDrainDuration", def: "5s",
		doc:    "Time that connections have to end when Envoy is stopped.",
		reader: one(duration(0, time.Hour), func(c *Config) *time.Duration { return &c.Envoy.TerminationDrain })},
	{key: "envoy.hangTimeout", when: OnProxyRestart, def: "1m",
		doc:    "An Envoy whose admin port does not answer for so long is ended and started again; one whose readiness port is silent too, after about ten seconds. A large push keeps the admin port busy for seconds, the other one not.",
		reader: one(duration(time.Second, time.Hour), func(c *Config) *time.Duration { return &c.Envoy.HangTimeout })},
	{key: "envoy.hbone", when: OnReload, istio: []string{"ENABLE_HBONE", "ISTIO_META_ENABLE_HBONE"}, def: "false",
		doc:    "Announce and serve HBONE.",
		reader: one(boolean, func(c *Config) *bool { return &c.Envoy.HBONE })},
	{key: "status.port", when: OnRestart, mesh: "statusPort", def: "15020",
		doc:    "The agent's port for readiness and metrics.",
		reader: one(portNum, func(c *Config) *uint16 { return &c.Status.Port })},
	{key: "status.readinessPort", when: OnProxyRestart, istio: []string{"ENVOY_STATUS_PORT"}, def: "15021",
		doc:    "Envoy's port for /healthz/ready.",
		reader: one(portNum, func(c *Config) *uint16 { return &c.Status.ReadinessPort })},
	{key: "status.prometheusPort", when: OnProxyRestart, istio: []string{"ENVOY_PROMETHEUS_PORT"}, def: "15090",
		doc:    "Envoy's port for /stats/prometheus.",
		reader: one(portNum, func(c *Config) *uint16 { return &c.Status.PrometheusPort })},
	{key: "metrics.envoy", when: OnReload, istio: []string{"PILOT_AGENT_MERGE_ENVOY_STATS"}, def: "true",
		doc:    "Whether /stats/prometheus of status.port holds Envoy's metrics too.",
		reader: one(boolean, func(c *Config) *bool { return &c.Metrics.Envoy })},
	{key: "metrics.applications", when: OnReload, istio: []string{"ISTIO_PROMETHEUS_ANNOTATIONS"}, empty: true,
		doc:    "Applications on this machine whose metrics /stats/prometheus holds too, asked on loopback. The variable is pilot-agent's JSON object of scrape, port, path and targets.",
		reader: many(scrapeTarget, "targets", func(c *Config) *[]ScrapeTarget { return &c.Metrics.Applications })},
	{key: "metrics.localhostOnly", when: OnReload, istio: []string{"METRICS_LOCALHOST_ACCESS_ONLY"}, def: "false",
		doc:    "Metrics of agent and Envoy are for this machine alone: others are answered 403 by the agent and not at all by Envoy.",
		reader: one(boolean, func(c *Config) *bool { return &c.Metrics.LocalhostOnly })},
	{key: "log.level", when: OnReload, istio: []string{"--log_output_level"}, def: "info",
		doc:    "Least severe level that is logged. The flag may name scopes too, as default:info,dns:debug.",
		reader: one(logLevel, func(c *Config) *string { return &c.Log.Level })},
	{key: "log.scopes", when: OnRestart, istio: []string{"--log_output_level"},
		doc:    "Levels of parts of the agent (agent, capture, dns, envoy, health, identity, member, proxy, status, xds), as dns: debug. The flag may have pilot-agent's names, as xdsproxy.",
		reader: tree("a mapping of scopes to levels", func(c *Config) *map[string]string { return &c.Log.Scopes })},
	{key: "log.format", when: OnRestart, istio: []string{"--log_as_json"}, def: "text",
		doc:    "Shape of log lines; the flag means json.",
		reader: one(oneOf("text", "json"), func(c *Config) *string { return &c.Log.Format })},
	{key: "log.file", when: OnRestart, istio: []string{"ISTIO_LOG_DIR", "--log_target"},
		doc:    "File to log to instead of the journal; ISTIO_LOG_DIR gives istio.log in that folder. Outside /var/log/istio the unit needs ReadWritePaths= for it.",
		reader: one(filePath, func(c *Config) *string { return &c.Log.File })},
}
