// Command coredns is CoreDNS with the plugins that the benchmark needs: hosts for the names of the mesh, forward and cache for all others.
//
// It is a module of its own, so that what CoreDNS needs reaches neither the daemon nor the other peers.
package main

import (
	"github.com/coredns/coredns/coremain"
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/forward"
	_ "github.com/coredns/coredns/plugin/hosts"
)

func main() { coremain.Run() }
