// Package adopt takes an istio-sidecar machine over as it runs, and gives it back: `wingman adopt` and `wingman adopt --undo`.
//
//	plan:  facts of the machine ─► what will be done, or why not
//	trial: certificate, istiod's configuration, Envoy's word on its bootstrap file, DNS at a port beside    pilot-agent serves, nothing is changed
//	rules: ours in the place of pilot-agent's, one transaction; DNS goes to the trial                       pilot-agent's Envoy serves
//	switch: connections held ─► istio.service masked and stopped ─► wingman started ─► ready ─► let go       bounded; else back
//	undo:  connections held ─► wingman stopped ─► rules out ─► istio.service unmasked and started ─► let go
//
// Each step is in the record (record.go) and on disk before it begins, so that an adopt that was killed is finished by the next one, or undone.
// What is decided from facts is pure (plan.go); effects are thin. Holding connections (hold.go) means that the kernel drops what opens one, for at most some
// seconds, and whoever opens it tries again by itself: nothing is refused, and nothing passes in plaintext.
//
// It reads what Istio's package has where it is; it moves and writes none of that. Goroutines: none that outlive a call. Files: RecordFile, the trial's
// folder, the state folder by way of the trial. Units: istio.service, wingman.service, and wingman-trial.service for the time of a switch.
//
// To match: Istio tools/packaging/common/istio.service and istio-start.sh, tools/packaging/deb/postinst.sh.
package adopt
