// Package status lets people, scripts and scrapers look at the daemon.
//
// It owns two doors and nothing behind them:
//
//	:15020                     /healthz/ready, /metrics: readable by everyone, changes nothing, shows no secret
//	RunDir/admin.sock (0660)   status, DNS table and queries, certificate renewal: root, the daemon's own user and its group only
//
// and the client of the second, which `wingman status` and its sisters use. What is answered comes from functions that agent
// hands in. Goroutines: net/http's.
//
// To match: Istio pilot/cmd/pilot-agent/status/server.go for paths and ports that scrapers and load balancers expect.
package status
