// Package tested says which releases of others the suites run this agent against. It is the one place that knows: test/mesh builds and stamps Istio
// by it, `wingman version` prints it, and test/repo compares it with what test/mesh fetches.
package tested

const (
	// Istio is the version that istiod, istioctl and pilot-agent of the suites name themselves: of a development build, the release and the commit.
	Istio = "1.31-alpha.eed52ebb66ad"
	// Envoy is the version of the unmodified Envoy, which package wingman-envoy holds.
	Envoy = "1.40.0"
)
