// Package status lets people, scripts and scrapers look at the daemon.
//
// It owns two doors and nothing behind them:
//
//	:15020                     /healthz/ready, /metrics, /stats/prometheus: readable by everyone, changes nothing, shows no secret
//	RunDir/admin.sock (0660)   status, DNS table and queries, certificate renewal: root, the daemon's own user and its group only
//
// and the client of the second, which `wingman status` and its sisters use. What is answered comes from functions that agent
// hands in. Goroutines: net/http's, and one for each source of a scrape.
//
// /stats/prometheus is what mesh scrapers ask: the agent's own metrics, Envoy's and the applications', one after the other in constant
// memory (merge.go). Whatever a source does, the others' metrics come and can be read. Envoy is asked at its listener for metrics
// (15090) and not at its admin port, as pilot-agent does: it shows nothing but metrics, so that the scraper's query, which is passed on, can
// reach nothing else, and it is there that ENVOY_PROMETHEUS_PORT moves it. It opens when Envoy has its configuration.
//
// To match: Istio pilot/cmd/pilot-agent/status/server.go for paths and ports that scrapers and load balancers expect.
package status
