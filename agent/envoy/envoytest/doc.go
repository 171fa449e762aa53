// Package envoytest helps the tests of agent/envoy and of what lies below it: a network of their own, certificates, a small
// control plane for one Envoy, and the real Envoy.
//
// Main runs a package's tests in a network namespace, where Envoy's well-known ports are free. The real Envoy is the program that
// WINGMAN_ENVOY names; tests that need it are skipped where it is not set, unless REQUIRE_ENVOY=1 makes that a failure.
package envoytest
