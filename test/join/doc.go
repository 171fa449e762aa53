// Package join tests the daemon as a whole, without a kernel's help: agent.Run on the files of a root folder of its own, against the
// stand-in control plane, asked by real DNS and HTTP clients on loopback.
//
// machine_test.go has the words (a machine, its files, its daemon); the other files are the promises of the design that need more
// than one package: DNS always answers, identity outlives its token, bad input loses nothing.
package join
