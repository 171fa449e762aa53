package agent

import (
	"fmt"
	"path/filepath"

	"wingman/bootstrap"
	"wingman/bootstrap/identity"
	"wingman/health"
	"wingman/iptables"
)

// This file is where the settings meet the packages that act on them: the leaf packages know nothing of each other, so each has its
// own type for what it is told.

// identityConfig is what the settings say about certificates, and the environment about where credentials are.
func identityConfig(c *bootstrap.Config, getenv func(string) string) identity.Config {
	credentials := identity.Credentials{
		Order:       c.Identity.Credentials,
		Exec:        identity.Exec(c.Identity.Exec),
		AzureClient: c.Identity.AzureClient,
		// The names that the clouds' own libraries have for them.
		GCEHost:     getenv("GCE_METADATA_HOST"),
		AWSEndpoint: getenv("AWS_EC2_METADATA_SERVICE_ENDPOINT"),
		AWSSTS:      getenv("AWS_ENDPOINT_URL_STS"),
		AzureHost:   getenv("AZURE_POD_IDENTITY_AUTHORITY_HOST"),
	}
	if dir := getenv("CREDENTIALS_DIRECTORY"); filepath.IsAbs(dir) {
		credentials.Systemd = filepath.Join(dir, systemdToken)
	}
	return identity.Config{
		CAAddress:   c.CA.Address,
		ServerName:  c.CA.ServerName,
		SPIFFEID:    c.SPIFFEID(),
		ClusterID:   c.ClusterID,
		CertSigner:  c.Identity.CertSigner,
		Audience:    c.Identity.Audience,
		TTL:         c.Identity.TTL,
		GraceRatio:  c.Identity.GraceRatio,
		GraceJitter: c.Identity.GraceJitter,
		Key: identity.KeyOptions{
			Algorithm: c.Identity.Algorithm,
			RSABits:   c.Identity.RSABits,
			Curve:     c.Identity.Curve,
			PKCS8:     c.Identity.PKCS8,
		},
		TokenFile:   c.Paths.Token,
		Credentials: credentials,
		RootFile:    c.Paths.RootCert,
		Seal:        c.Identity.Seal,
		SealKey:     filepath.Join(c.Root, identity.OpenKey),
		RunDir:      c.Paths.RunDir,
		StateDir:    c.Paths.StateDir,
		OutputDir:   c.Paths.OutputCerts,

		WorkloadSocket: c.Paths.WorkloadSocket,
		Groups:         c.Identity.Groups,
		LookupGroup:    func(name string) (uint32, error) { return bootstrap.LookupGroup(c.Root, name) },
	}
}

// systemdToken is the name that a token has among the unit's credentials (LoadCredential=).
const systemdToken = "istio-token"

// probeOf converts the workload's probe; without one the workload counts as healthy as long as the agent lives.
func probeOf(p *bootstrap.Probe) health.Probe {
	if p == nil {
		return health.Probe{}
	}
	h := health.Probe{
		InitialDelay:     p.InitialDelay,
		Timeout:          p.Timeout,
		Period:           p.Period,
		SuccessThreshold: p.SuccessThreshold,
		FailureThreshold: p.FailureThreshold,
	}
	if x := p.HTTP; x != nil {
		h.HTTP = &health.HTTPGet{Scheme: x.Scheme, Host: x.Host, Path: x.Path, Port: x.Port, Headers: x.Headers}
	}
	if x := p.TCP; x != nil {
		h.TCP = &health.TCPSocket{Host: x.Host, Port: x.Port}
	}
	if x := p.Exec; x != nil {
		h.Exec = &health.Exec{Command: x.Command, MemoryLimit: x.Memory}
	}
	if x := p.GRPC; x != nil {
		h.GRPC = &health.GRPC{Port: x.Port, Service: x.Service}
	}
	h.Unit = p.Unit
	for i := range p.All {
		h.All = append(h.All, probeOf(&p.All[i]))
	}
	return h
}

// dampingOf converts how a workload that flaps is held back.
func dampingOf(p *bootstrap.Probe) health.Damping {
	if p == nil {
		return health.Damping{}
	}
	return health.Damping(p.Damping)
}

var modes = map[string]iptables.Mode{
	"REDIRECT": iptables.ModeRedirect,
	"TPROXY":   iptables.ModeTProxy,
	"NONE":     iptables.ModeNone,
}

// captureLevels are the levels of the settings; "auto" is what the facts decide.
var captureLevels = map[string]iptables.Level{
	"none":  iptables.LevelNone,
	"dns":   iptables.LevelDNS,
	"ports": iptables.LevelAll,
	"all":   iptables.LevelAll,
}

// CaptureConfig is what the settings say about capture, at the given level. The error says which user is missing: rules that do
// not know whose traffic is the agent's own would send it round in circles.
func CaptureConfig(c *bootstrap.Config, level iptables.Level) (iptables.Config, error) {
	x := c.Capture
	uid, gid, err := proxyUser(c)
	if err != nil {
		return iptables.Config{}, err
	}
	out := iptables.Config{
		Level:                level,
		Mode:                 modes[x.Mode],
		TProxyMark:           x.TProxyMark,
		TProxyTable:          x.TProxyTable,
		InboundAll:           x.InboundAll,
		InboundPorts:         x.InboundPorts,
		InboundExcludePorts:  x.InboundExcludePorts,
		OutboundAll:          x.OutboundAll,
		OutboundCIDRs:        x.OutboundCIDRs,
		OutboundExcludeCIDRs: x.OutboundExcludeCIDRs,
		OutboundPorts:        x.OutboundPorts,
		OutboundExcludePorts: portRanges(x.OutboundExcludePorts),
		OwnerGroupsAll:       x.OwnerGroupsAll,
		OwnerGroups:          x.OwnerGroups,
		OwnerGroupsExclude:   x.OwnerGroupsExclude,
		ExcludeInterfaces:    x.ExcludeInterfaces,
		VirtualInterfaces:    x.VirtualInterfaces,
		DNS:                  x.DNS,
		DNSAll:               x.DNSAll,
		DropInvalid:          x.DropInvalid,
		DualStack:            x.DualStack,
		LoopbackCIDR:         x.LoopbackCIDR,
		ProxyUID:             uid,
		ProxyGID:             gid,
		MoreUIDs:             x.MoreUIDs,
		MoreGIDs:             x.MoreGIDs,
		ProxyPort:            x.ProxyPort,
		InboundPort:          x.InboundPort,
		TunnelPort:           x.TunnelPort,
		DNSPort:              x.DNSPort,
		CaptureMetadata:      x.Metadata,
		Backend:              x.Backend,
	}
	if x.Level == "ports" && level == iptables.LevelAll {
		out = out.OnlyInbound(x.OnlyPorts)
	}
	return out, nil
}

func portRanges(in []bootstrap.PortRange) []iptables.PortRange {
	out := make([]iptables.PortRange, 0, len(in))
	for _, r := range in {
		out = append(out, iptables.PortRange(r))
	}
	return out
}

// proxyUser is the user whose own traffic is never captured: agent and Envoy run as it.
func proxyUser(c *bootstrap.Config) (uid, gid uint32, err error) {
	if c.Capture.UserKnown {
		return c.Capture.ProxyUID, c.Capture.ProxyGID, nil
	}
	uid, gid, err = bootstrap.LookupUser(c.Root, c.Capture.User)
	if err != nil {
		return 0, 0, fmt.Errorf("capture rules exempt the traffic of the user that agent and Envoy run as: %w: create it (useradd --system %s) or set EXEC_USER", err, c.Capture.User)
	}
	return uid, gid, nil
}
