package envoy

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
)

// Facts are what a bootstrap file says about the Envoy that is started with it.
type Facts struct {
	Admin     netip.AddrPort
	Listeners []netip.AddrPort // those of the file itself; additional addresses not among them
	IPv4      bool             // Envoy's own address is one of IPv4
}

// FactsOf reads a bootstrap file, ours or another in JSON.
func FactsOf(file []byte) (Facts, error) {
	type address struct {
		SocketAddress struct {
			Address   netip.Addr `json:"address"`
			PortValue uint16     `json:"port_value"`
		} `json:"socket_address"`
	}
	var b struct {
		Admin struct {
			Address address `json:"address"`
		} `json:"admin"`
		StaticResources struct {
			Listeners []struct {
				Address address `json:"address"`
			} `json:"listeners"`
		} `json:"static_resources"`
	}
	if err := json.Unmarshal(file, &b); err != nil {
		return Facts{}, fmt.Errorf("read envoy's bootstrap file: %w", err)
	}
	at := func(a address) netip.AddrPort {
		return netip.AddrPortFrom(a.SocketAddress.Address, a.SocketAddress.PortValue)
	}
	f := Facts{Admin: at(b.Admin.Address)}
	if !f.Admin.IsValid() || f.Admin.Port() == 0 {
		return Facts{}, errors.New("envoy's bootstrap file has no admin address")
	}
	f.IPv4 = f.Admin.Addr().Is4()
	for _, l := range b.StaticResources.Listeners {
		if a := at(l.Address); a.IsValid() && a.Port() != 0 {
			f.Listeners = append(f.Listeners, a)
		}
	}
	return f, nil
}

// OwnPorts are those of the listeners in the file.
func (f Facts) OwnPorts() []uint16 {
	var ports []uint16
	for _, l := range f.Listeners {
		ports = append(ports, l.Port())
	}
	return ports
}
