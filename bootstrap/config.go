package bootstrap

import (
	"net/netip"
	"slices"
	"time"
)

// IstioVersion is the Istio release whose behaviour this agent implements; istiod generates configuration for it.
const IstioVersion = "1.31.4"

// Config is everything the files say about this machine, merged, checked and with real types. It does not change after Load.
type Config struct {
	Root  string // folder that stands for "/"; "/" on a real machine
	Paths Paths

	TrustDomain       string            // of this workload's SPIFFE id; default "cluster.local"
	Namespace         string            // of the workload in the cluster; default "default"
	ServiceAccount    string            // default "default"
	ClusterID         string            // sent to istiod with every call; empty: istiod's own
	MeshID            string            // empty: istiod's default
	Network           string            // empty: the cluster's own network
	AutoRegisterGroup string            // WorkloadGroup that istiod makes a WorkloadEntry from; empty: no registration
	DrainPropagation  time.Duration     // how long the news that this machine is unhealthy takes to reach all peers, at most
	EntryGrace        time.Duration     // how long istiod keeps a WorkloadEntry whose machine has left
	WorkloadName      string            //
	Service           string            // Envoy's cluster name of the node, as "forum.forum-services"
	Domain            string            // "svc.cluster.local"
	Labels            map[string]string // of the WorkloadEntry; never nil

	Discovery Endpoint                // ADS
	CA        Endpoint                // certificate requests
	Hosts     map[string][]netip.Addr // istioctl's hosts file: lower-case names without final dot to addresses; never nil

	InstanceIPs []netip.Addr // ISTIO_SVC_IP; empty: InstanceAddrs asks the route to istiod
	DualStack   bool         // both families have an address and capture rules

	Identity Identity
	XDS      XDS
	Probe    *Probe // nil: none configured
	DNS      DNS
	Capture  Capture
	Envoy    Envoy
	Status   Status
	Metrics  Metrics
	Log      Log

	ProbeLocalhost bool // probes without a host go to localhost, not to the instance address

	systemNamespace string            // of istiod
	san             string            // ISTIOD_SAN
	instance        string            // POD_NAME; empty: the short host name
	proxyConfig     map[string]any    // PROXY_CONFIG of the node as decoded proto JSON; never changed
	env             map[string]envVar // every variable of the env files and of proxyMetadata
	settings        []Setting         // sorted by Key
	snapshot        Snapshot
}

// Endpoint is a server of the control plane.
type Endpoint struct {
	Address    string // host:port; an IPv6 host in brackets
	ServerName string // the name its certificate must carry
}

// Identity is how to ask for certificates and when to renew them.
type Identity struct {
	TTL         time.Duration // life asked for; istiod may give less
	GraceRatio  float64       // renew when this part of the life as received is left, 0 < GraceRatio < 1
	GraceJitter float64       // added to or taken from GraceRatio at random
	Algorithm   string        // "RSA" or "ECDSA"
	RSABits     int           // at least 2048
	Curve       string        // "P256" or "P384"
	PKCS8       bool          // keys as PKCS#8 instead of PKCS#1 or SEC 1
	CertSigner  string        // Kubernetes signer that istiod forwards to; empty: istiod signs

	Groups      []string // names or gids: their members may read copies of key and certificates
	Credentials []string // where tokens come from, in order: "systemd", "file", "exec", "gce", "aws", "azure"; at least one
	Audience    string   // of tokens
	Exec        CredentialExec
	AzureClient string // managed identity; empty: the machine's own
	Seal        bool   // key and token at rest are sealed
}

// CredentialExec is a program that prints a token. Command begins with an absolute path, or is empty: there is none.
type CredentialExec struct {
	Command []string
	Env     map[string]string // added to a small environment; may hold secrets
	Timeout time.Duration
}

// XDS is how to speak to istiod.
type XDS struct {
	Delta bool // incremental xDS; false: state of the world
}

// Probe is a workload's readinessProbe with Istio's defaults filled in. At most one of HTTP, TCP, Exec, GRPC, Unit and All is set.
type Probe struct {
	HTTP             *HTTPGet
	TCP              *TCPSocket
	Exec             *Exec
	GRPC             *GRPC
	Unit             string        // of systemd, that has to be active; wingman.yaml only
	All              []Probe       // all have to pass, each by its own settings; wingman.yaml only
	Damping          Damping       // wingman.yaml only
	InitialDelay     time.Duration // before the first probe
	Timeout          time.Duration // of one probe
	Period           time.Duration // between probes
	SuccessThreshold int           // probes in a row that make healthy
	FailureThreshold int           // probes in a row that make unhealthy
}

// HTTPGet is healthy when it answers 200 to 399.
type HTTPGet struct {
	Scheme  string // "http" or "https"; certificates are not checked
	Host    string // empty: the instance address
	Path    string
	Port    uint16
	Headers [][2]string // name, value
}

// TCPSocket is healthy when it accepts a connection.
type TCPSocket struct {
	Host string // empty: the instance address
	Port uint16
}

// Exec is healthy when the command ends with status 0.
type Exec struct {
	Command []string
	Memory  uint64 // bytes of data that each of its processes may have; zero: the default. wingman.yaml only
}

// Damping holds back a workload that flaps: once it became unhealthy Changes times within Window it counts as healthy again only after its probes passed
// for Hold. The zero value never does.
type Damping struct {
	Changes      int
	Window, Hold time.Duration
}

// GRPC is healthy when grpc.health.v1 says SERVING.
type GRPC struct {
	Port    uint16
	Service string
}

// DNS is the name proxy.
type DNS struct {
	Capture        bool                        // applications' queries come to Listen
	Mode           string                      // in which way: DNSRedirect or DNSResolved
	CaptureAll     bool                        // every query to port 53, not only those to the servers of resolv.conf
	Listen         netip.AddrPort              // UDP and TCP
	ForwardTimeout time.Duration               // of one question, over all upstream servers and tries
	Forward        map[string][]netip.AddrPort // lower-case suffix without final dot: servers that know names below it; never nil
	CacheSize      int                         // bytes of upstream answers to remember; 0: none
	MaxStale       time.Duration               // how long after its time an answer may still be given; 0: never
	IPv6           bool                        // mesh names have IPv6 addresses on this machine
}

// Ways in which DNS queries come to the agent.
const (
	DNSRedirect = "redirect" // capture rules for port 53
	DNSResolved = "resolved" // systemd-resolved sends those for the mesh's names
)

// placeDNS says in Capture by what way DNS comes.
func (c *Config) placeDNS() {
	redirect := c.DNS.Mode != DNSResolved
	c.Capture.DNS, c.Capture.DNSAll = c.DNS.Capture && redirect, c.DNS.CaptureAll && redirect
	c.Capture.DNSByResolved = c.DNS.Capture && !redirect
}

// PortRange is the ports First to Last, both included; First <= Last.
type PortRange struct{ First, Last uint16 }

// Capture is which traffic is redirected to the agent and to Envoy.
type Capture struct {
	Level                string   // "auto" (all with Envoy, dns without), "none", "dns", "ports" or "all"
	OnlyPorts            []uint16 // with Level "ports": of all TCP only inbound connections to these
	OpenInbound          bool     // traffic goes past an Envoy that is down; else it is refused
	OpenOutbound         bool
	Metadata             bool   // the cloud's metadata addresses are captured too
	User                 string // whose own traffic is never captured: agent and Envoy run as it
	UserKnown            bool   // false: this machine has no such user; ProxyUID and ProxyGID are 0 and mean nothing
	CustomTables         bool   // the operator keeps the rules: none are ours
	Mode                 string // "REDIRECT", "TPROXY" or "NONE"; inbound only
	TProxyMark           uint32
	TProxyTable          int
	InboundAll           bool // all inbound ports but InboundExcludePorts; else InboundPorts
	InboundPorts         []uint16
	InboundExcludePorts  []uint16
	OutboundAll          bool // all destinations but OutboundExcludeCIDRs; else OutboundCIDRs
	OutboundCIDRs        []netip.Prefix
	OutboundExcludeCIDRs []netip.Prefix
	OutboundPorts        []uint16 // captured whatever their destination
	OutboundExcludePorts []PortRange
	OwnerGroupsAll       bool     // traffic of all groups but OwnerGroupsExclude; else of OwnerGroups
	OwnerGroups          []string // gids or names
	OwnerGroupsExclude   []string // gids or names
	ExcludeInterfaces    []string
	VirtualInterfaces    []string // bridges whose inbound traffic counts as outbound
	DNS, DNSAll          bool     // as DNS.Capture and DNS.CaptureAll, where rules do it
	DNSByResolved        bool     // DNS.Capture, where systemd-resolved does it
	DropInvalid          bool
	DualStack            bool
	LoopbackCIDR         netip.Prefix // IPv4; outbound to it on lo is meant for the application
	ProxyUID, ProxyGID   uint32       // of User
	MoreUIDs, MoreGIDs   []uint32     // further owners whose traffic is never captured
	ProxyPort            uint16       // Envoy outbound
	InboundPort          uint16       // Envoy inbound
	TunnelPort           uint16       // HBONE
	DNSPort              uint16       // of DNS.Listen
	Backend              string       // "auto", "nft", "legacy" or "native"
}

// Envoy is the data plane's process.
type Envoy struct {
	Enabled           string        // "auto" (if there is one), "true" or "false"
	Path              string        // program; empty: the usual places
	AdminPort         uint16        //
	Concurrency       int           // worker threads; 0: one per CPU
	LogLevel          string        // as Envoy's --log-level; scopes may follow, as in "info,upstream:debug"
	DrainDuration     time.Duration // over which Envoy closes idle connections while draining
	TerminationDrain  time.Duration // after which a stopping proxy ends even with connections open
	HangTimeout       time.Duration // an Envoy whose admin port does not answer for so long is ended and started again
	HBONE             bool          // announce and serve HBONE
	ComponentLogLevel string        // as Envoy's --component-log-level
}

// Status is where the agent and Envoy answer about themselves.
type Status struct {
	Port           uint16 // agent: /healthz/ready, /metrics, /stats/prometheus
	ReadinessPort  uint16 // Envoy's listener that forwards /healthz/ready
	PrometheusPort uint16 // Envoy's listener for /stats/prometheus
}

// Metrics is what /stats/prometheus of the agent holds beside its own metrics, and for whom.
type Metrics struct {
	Envoy         bool
	Applications  []ScrapeTarget
	LocalhostOnly bool // other machines may not read metrics
}

// ScrapeTarget is where an application on this machine serves its metrics.
type ScrapeTarget struct {
	Port uint16 // none of the agent's or Envoy's
	Path string // begins with "/", may hold a query
}

// Log is what is logged and where.
type Log struct {
	Level  string            // "debug", "info", "warn", "error" or "none"
	Scopes map[string]string // level by scope, as "dns": "debug"; never nil
	Format string            // "text" or "json"
	File   string            // below Root; empty: the journal
}

// SPIFFEID returns the identity this workload asks for, as spiffe://<trust domain>/ns/<namespace>/sa/<service account>.
func (c *Config) SPIFFEID() string {
	return "spiffe://" + c.TrustDomain + "/ns/" + c.Namespace + "/sa/" + c.ServiceAccount
}

// Setting is one effective value and what set it.
type Setting struct {
	Key   string `json:"key"`             // dotted path in wingman.yaml, or the variable's name for what has none
	Istio string `json:"istio,omitempty"` // Istio's name for it
	Value string `json:"value"`           // secrets show as "redacted"
	File  string `json:"file,omitempty"`  // empty: built-in
	Line  int    `json:"line,omitempty"`  // 0: no line
}

// Settings returns every effective value and what set it, sorted by key. Variables that are no settings stand among them by their
// own name. No secret is among the values.
func (c *Config) Settings() []Setting { return slices.Clone(c.settings) }
