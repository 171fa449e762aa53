package status

import (
	"time"

	"wingman/agent/xds"
	"wingman/bootstrap/identity"
	"wingman/systemd/resolved"
)

// Report is everything the daemon knows about itself: what `wingman status -o json` prints. Fields are added, never renamed.
type Report struct {
	Version   string    `json:"version"`
	PID       int       `json:"pid"`
	StartedAt time.Time `json:"startedAt"`
	Time      time.Time `json:"time"`

	// Phase is where the machine stands: "waiting" (for the files to join with; nothing else is known then), "joining" (no certificate or no configuration yet), "joined", "leaving".
	Phase string `json:"phase"`
	// Ready is what /healthz/ready answers; NotReady holds the reasons while it is false.
	Ready    bool     `json:"ready"`
	NotReady []string `json:"notReady,omitempty"`
	// Rejoining is true while the machine is out of the mesh for another WorkloadEntry.
	Rejoining bool `json:"rejoining,omitempty"`
	// Drained says that an operator has taken this machine out of load balancing, and why; empty when it takes part.
	Drained string `json:"drained,omitempty"`
	// Degraded holds one sentence for each thing that a person should look at. Empty means all is well.
	Degraded []string `json:"degraded,omitempty"`

	Config   ConfigReport    `json:"config"`
	Instance InstanceReport  `json:"instance"`
	Identity *identity.State `json:"identity"` // null for a moment while settings change
	XDS      *xds.State      `json:"xds"`      // null before the first address is known
	DNS      DNSReport       `json:"dns"`
	Health   HealthReport    `json:"health"`
	Capture  CaptureReport   `json:"capture"`
	Envoy    EnvoyReport     `json:"envoy"`
}

// ConfigReport says which settings are in force.
type ConfigReport struct {
	// Source is "files", "last good" when the files as they are now cannot be used, or "none" while the machine waits for them.
	Source string `json:"source"`
	// Loaded is when the files were read last, whether or not they could be used.
	Loaded time.Time `json:"loaded"`
	// Problems of the files, one sentence each; errors first.
	Problems []string `json:"problems,omitempty"`
}

// InstanceReport is this machine as the mesh knows it.
type InstanceReport struct {
	NodeID    string     `json:"nodeId,omitempty"`
	Addresses []string   `json:"addresses,omitempty"`
	Group     string     `json:"group,omitempty"`    // WorkloadGroup, namespace/name
	JoinedAt  *time.Time `json:"joinedAt,omitempty"` // first join of this machine; absent before it
}

// DNSReport is the state of the DNS proxy.
type DNSReport struct {
	Listen []string `json:"listen"`
	// Source of the table in use: "istiod", "disk" (saved by an earlier run), or "none" (everything goes upstream).
	Source    string     `json:"source"`
	Names     int        `json:"names"`             // that answer
	LeftOut   int        `json:"leftOut,omitempty"` // that istiod sent and that are not in use, or not whole, because DNS cannot carry them
	Version   string     `json:"version,omitempty"`
	Received  *time.Time `json:"received,omitempty"` // when istiod sent the table in use
	Upstreams []string   `json:"upstreams"`
	Inherited bool       `json:"inherited"` // the sockets were kept by systemd or handed in
	// Mode is how queries come to the agent: "redirect" or "resolved"; of the latter Resolved tells how it is.
	Mode     string          `json:"mode"`
	Resolved *resolved.State `json:"resolved,omitempty"`
}

// HealthReport is the verdict on the workload.
type HealthReport struct {
	Healthy *bool      `json:"healthy"` // null before the first verdict
	Reason  string     `json:"reason,omitempty"`
	Since   *time.Time `json:"since,omitempty"`
}

// CaptureReport says what is redirected.
type CaptureReport struct {
	Wanted string `json:"wanted"` // what the settings ask for: "none", "dns", "ports" or "all"
	Level  string `json:"level"`  // what is in place: "none", "dns", "ports" or "all"
	// Why tells what keeps Level from Wanted.
	Why     string `json:"why,omitempty"`
	InPlace bool   `json:"inPlace"`         // the kernel is as planned
	Repairs int    `json:"repairs"`         // how often rules that others took out were put back since the start
	Trial   bool   `json:"trial,omitempty"` // other rules are on trial (rules try)
}

// EnvoyReport is the state of this machine's Envoy.
type EnvoyReport struct {
	Announced bool   `json:"announced"`         // the mesh is told that this machine takes mutual TLS
	Live      bool   `json:"live"`              // Envoy serves, with configuration of istiod
	Stream    bool   `json:"stream"`            // it has its stream of configuration
	Phase     string `json:"phase,omitempty"`   // of its supervisor (wingman proxy); empty: none runs
	PID       int    `json:"pid,omitempty"`     // Envoy's; 0: none runs
	Starts    int    `json:"starts,omitempty"`  // of Envoy, by this supervisor
	Program   string `json:"program,omitempty"` // as started last
	Version   string `json:"version,omitempty"` // of that; empty before it is live
	Cause     string `json:"cause,omitempty"`   // why Envoy does not serve
}

// DNSAnswer is the answer to one question put to the daemon's own proxy.
type DNSAnswer struct {
	Question string   `json:"question"`
	RCode    string   `json:"rcode"`
	Answers  []string `json:"answers"`
	Micros   int64    `json:"micros"`
	// Explain says which rule answered; only when asked for.
	Explain any `json:"explain,omitempty"`
}

// DNSName is one name of the table.
type DNSName struct {
	Host      string   `json:"host"`
	Addresses []string `json:"addresses"`
	Namespace string   `json:"namespace,omitempty"` // of a Kubernetes service
	Registry  string   `json:"registry,omitempty"`
	// LeftOut is why the name is not in use, or not whole; it has no addresses here in the first case.
	LeftOut string `json:"leftOut,omitempty"`
}
