// Package enrol makes a machine a member of a mesh and undoes that: `wingman join` and `wingman leave`.
//
//	join:   folder or tar of istioctl's files ─► checked as a whole ─► istiod reached ─► put in place ─► units started ─► waited for
//	leave:  units stopped (unhealthy, drain, rules out, Envoy, stream) ─► rules ─► identity, state ─► istioctl's files as they were before the join
//
// Nothing is written before everything that can be checked was checked. What join replaces it keeps beside the file (.before-join) and notes in the
// state folder, so that leave knows what to put back; files that an operator put there himself stay. Both can be run again at any point,
// also after they were killed half way.
//
// The daemon itself is the units' (systemd) or somebody else's process; this package asks it by the admin socket and by signals, and works without one.
// The effects on the machine are in machine.go; what is decided from them, in plan.go, is pure. It has no goroutines.
package enrol
